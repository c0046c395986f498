"""Which models there are, and what is said of a folder that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.edit import loading, models
from core.edit.models import MODELS, find_spec, locate
from core.errors import UnavailableError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model in a folder of its own, to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(MODELS["kontext-tiny"].folder, folder)
    return folder


def test_a_copy_of_a_model_is_a_model_with_its_own_numbers(copy):
    spec = find_spec(str(copy))
    assert locate(spec) == copy
    tiny = find_spec("kontext-tiny")
    assert (spec.text_tokens, spec.sizes, spec.steps) == (tiny.text_tokens, tiny.sizes, tiny.steps)


def test_a_folder_without_numbers_gets_those_of_kontext_dev(copy):
    (copy / "kontext-tui.json").unlink()
    spec = find_spec("model", copy.parent)
    dev = MODELS["kontext-dev"]
    assert (spec.text_tokens, spec.sizes, spec.steps, spec.guidance) == (512, dev.sizes, 28, 2.5)
    assert len(dev.sizes) == 17


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("{"), "not JSON"),
        (lambda f: (f / "kontext-tui.json").write_text('{"sizes": 3}'), "not a model spec"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "incomplete"),
        (lambda f: (f / "text_encoder_2" / "config.json").unlink(), "incomplete"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "incomplete"),
        (lambda f: _cut(f / "transformer" / "diffusion_pytorch_model.safetensors"), "cut short"),
        (lambda f: _rename(f / "model_index.json", "StableDiffusionXLPipeline"), "StableDiffusionXLPipeline"),
        (lambda f: _rename(f / "model_index.json", "FluxPipeline"), "FluxPipeline"),
        (lambda f: _rename(f / "transformer" / "config.json", "SD3Transformer2DModel"), "SD3Transformer2DModel"),
        (lambda f: _shard(f / "transformer"), "00002-of-00002"),
        (lambda f: _lora(f / "pytorch_lora_weights.safetensors"), "fuse it first"),
        (lambda f: _lora(f / "transformer" / "diffusion_pytorch_model.safetensors"), "fuse it first"),
    ],
)
def test_a_damaged_or_foreign_model_is_named_in_one_line(copy, damage, words):
    damage(copy)
    with pytest.raises(UnavailableError) as error:
        locate(find_spec(str(copy)))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 4


def test_offline_and_missing_says_where_to_get_it():
    with pytest.raises(UnavailableError, match="hf download black-forest-labs/FLUX.1-Kontext-dev"):
        locate(MODELS["kontext-dev"])
    with pytest.raises(UnavailableError, match="cannot be reached"):
        locate(MODELS["kontext-dev"], download=True)


def test_gated_says_how_to_get_in(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    class Response:
        status_code, headers, request = 403, {}, None

    def snapshot_download(repo, *, local_files_only=False, **_):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise GatedRepoError("403", response=Response())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UnavailableError, match="accept its licence at https://huggingface.co/black-forest-labs"):
        locate(MODELS["kontext-dev"], download=True)


def test_weights_of_other_shapes_are_refused_when_they_load(copy):
    import torch

    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    spec = find_spec(str(copy))
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        loading.load(spec, locate(spec), torch.device("cpu"))


def test_weights_that_config_asks_for_and_files_lack_are_named(copy):
    import torch

    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": config["num_layers"] + 1}))
    spec = find_spec(str(copy))
    with pytest.raises(UnavailableError, match=r"its files lack transformer_blocks\.\d"):
        loading.load(spec, locate(spec), torch.device("cpu"))


def test_each_distinct_prompt_is_encoded_once(tiny, monkeypatch):
    from core.edit.studio import LoadedSession

    seen = []
    real = loading._tokens
    monkeypatch.setattr(loading, "_tokens", lambda t, text, n: seen.append(text) or real(t, text, n))
    monkeypatch.setattr(tiny, "prompts", {})

    class Runtime:
        name, precision = "torch", "fp32"

    LoadedSession(tiny, Runtime()).prepare(["add fog", "make it night", "add fog"])
    first = loading.encode_prompt(tiny, "add fog")
    assert seen == ["add fog"] * 2 + ["make it night"] * 2  # CLIP and T5
    assert first.embeddings.shape[1] == tiny.spec.text_tokens


def test_the_embedded_model_is_within_its_size_limit():
    total = sum(path.stat().st_size for path in models.MODELS["kontext-tiny"].folder.rglob("*") if path.is_file())
    assert total < 40e6


def _lora(file: Path) -> None:
    save_file({"x_embedder.lora_A.weight": torch.zeros(4, 64)}, file)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _rename(path: Path, name: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))


def _shard(part: Path) -> None:
    """As if the second of two files had not been downloaded."""
    one = part / "diffusion_pytorch_model-00001-of-00002.safetensors"
    (part / "diffusion_pytorch_model.safetensors").rename(one)
    index = {"weight_map": {"a": one.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
