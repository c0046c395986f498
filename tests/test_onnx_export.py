"""The exported graph: its interface, its weights bit for bit, one graph for every size, and what export refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_checkpoints as small
import torch
from safetensors.torch import load_file, save_file

from core.edit import artifacts, lowbit
from core.edit.models import find_spec
from core.edit.runtimes.onnx_runtime import read_tensor
from core.errors import UnavailableError, UsageError
from kontext_tui.cli.export import export as command
from quant.lint import tensor_bytes
from quant.onnx_export import export
from quant.onnx_files import read_graph

PRECISIONS = ("bf16", "fp8", "fp4", "fp4-svd")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interface(precision: str) -> None:
    model = onnx.load(small.graph(precision) / "model.onnx", load_external_data=False)
    bf16, fp32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    assert found == {
        "hidden_states": (bf16, [1, "tokens", 64]),
        "encoder_hidden_states": (bf16, [1, 48, 128]),
        "pooled_projections": (bf16, [1, 64]),
        "timestep": (bf16, [1]),
        "img_ids": (fp32, ["tokens", 3]),
        "txt_ids": (fp32, [48, 3]),
        "guidance": (fp32, [1]),
        "latent": (bf16, [1, "tokens", 64]),
    }
    path = small.graph(precision) / "model.onnx"
    read_graph(path).check(path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_valid_onnx(precision: str) -> None:
    """Types of strongly typed operations included; the one operation of TensorRT's own has no schema."""
    model = onnx.load(small.graph(precision) / "model.onnx", load_external_data=False)
    onnx.checker.check_model(str(small.graph(precision) / "model.onnx"))
    if precision in ("bf16", "fp8"):
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


@pytest.mark.parametrize("precision", ["fp8", "fp4", "fp4-svd"])
def test_weights_are_the_checkpoints_bit_for_bit(precision: str) -> None:
    folder = small.graph(precision)
    stored = load_file(small.source(precision) / "diffusion_pytorch_model.safetensors")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in stored.items():
        assert tensor_bytes(tensors[name], folder) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("precision", ["fp4", "fp4-svd"])
def test_fp4_weights_dequantize_to_the_checkpoints(precision: str) -> None:
    """Read by ONNX's rules: E2M1 codes and E4M3 block scales, as the two DequantizeLinears see them."""
    stored = load_file(small.source(precision) / "diffusion_pytorch_model.safetensors")
    model = onnx.load(small.graph(precision) / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    linears = [name.removesuffix(".weight_scale_2") for name in stored if name.endswith(".weight_scale_2")]
    assert len(linears) == small.LINEARS
    for name in linears:
        codes = onnx.numpy_helper.to_array(tensors[f"{name}.weight"]).astype(np.float32)
        blocks = onnx.numpy_helper.to_array(tensors[f"{name}.weight_scale"]).astype(np.float32)
        scale = onnx.numpy_helper.to_array(tensors[f"{name}.weight_scale_2"])
        ours = codes * np.repeat(blocks * scale, lowbit.BLOCK, axis=-1)
        parts = (stored[f"{name}.{part}"] for part in ("weight", "weight_scale", "weight_scale_2"))
        assert np.array_equal(ours, lowbit.from_nvfp4(*parts, torch.float32).numpy())


def test_plain_weights_are_the_models_rounded_to_bf16() -> None:
    stored = load_file(small.TINY / "diffusion_pytorch_model.safetensors")
    model = onnx.load(small.graph("bf16") / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in stored.items():
        assert torch.equal(read_tensor(tensors[name]), tensor.to(torch.bfloat16)), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_constant_depends_on_a_token_count(precision: str) -> None:
    """All integers in the graph are widths, heads, axes or the fixed text length."""
    model = onnx.load(small.graph(precision) / "model.onnx", load_external_data=False)
    integers = {
        int(value)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
        for value in onnx.numpy_helper.to_array(tensor).flatten()
    }
    assert integers <= {-1, 0, 1, 2, 4, 64, 256, small.TEXT_TOKENS, np.iinfo(np.int64).max}


def test_float16_checkpoints_are_rounded(tmp_path: Path) -> None:
    stored = load_file(small.TINY / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor.half() for name, tensor in stored.items()}, tmp_path / "a.safetensors")
    shutil.copy(small.TINY / "config.json", tmp_path)
    export(tmp_path, tmp_path / "out", "bf16", 48)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    name = "proj_out.weight"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    assert torch.equal(read_tensor(tensor), stored[name].half().to(torch.bfloat16))


def test_refusals(tmp_path: Path) -> None:
    fp8 = small.source("fp8")
    with pytest.raises(UsageError, match="is fp8, not fp4"):
        export(fp8, tmp_path / "out", "fp4", 48)
    with pytest.raises(UsageError, match="no precision 'int8'"):
        export(fp8, tmp_path / "out", "int8", 48)
    with pytest.raises(UnavailableError, match="no config.json"):
        export(tmp_path, tmp_path / "out", "bf16", 48)

    config = json.loads((small.TINY / "config.json").read_text())
    stored = load_file(small.TINY / "diffusion_pytorch_model.safetensors")

    def folder(name: str, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
        path = tmp_path / name
        path.mkdir()
        save_file(tensors, path / "a.safetensors")
        (path / "config.json").write_text(json.dumps(config | changes))
        return path

    with pytest.raises(UsageError, match="holds a SD3Transformer2DModel"):
        export(folder("sd3", stored, _class_name="SD3Transformer2DModel"), tmp_path / "out", "bf16", 48)
    with pytest.raises(UsageError, match="fuse it first"):
        lora = {"x_embedder.lora_A.weight": torch.zeros(4, 64)}
        export(folder("lora", stored | lora), tmp_path / "out", "bf16", 48)
    with pytest.raises(UnavailableError, match="no tensor 'x_embedder.weight'"):
        left = {name: tensor for name, tensor in stored.items() if name != "x_embedder.weight"}
        export(folder("less", left), tmp_path / "out", "bf16", 48)
    with pytest.raises(UnavailableError, match="no place for extra.weight"):
        export(folder("more", stored | {"extra.weight": torch.zeros(4)}), tmp_path / "out", "bf16", 48)
    short = folder("short", stored) / "a.safetensors"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(UnavailableError, match="cut short"):
        export(short.parent, tmp_path / "out", "bf16", 48)
    assert not (tmp_path / "out").exists()


def test_foreign_interface_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    model = onnx.load(small.graph("bf16") / "model.onnx", load_external_data=False)
    model.graph.input[0].name = "x"
    del model.graph.input[6]
    onnx.save(model, path)
    with pytest.raises(UsageError, match="is without hidden_states, guidance"):
        read_graph(path).check(path, "bf16")
    path.write_bytes(b"not a graph")
    with pytest.raises(UsageError, match="is not an ONNX graph"):
        read_graph(path).check(path, "bf16")


class TestCommand:
    """`export`, called as typer calls it; the store is in the test's own home."""

    def test_from_a_checkpoint_in_the_store_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = find_spec("kontext-tiny").folder
        assert folder is not None
        key = artifacts.model_hash(folder / "transformer")

        def build(target: Path) -> dict[str, str]:
            shutil.copytree(small.source("fp8"), target, dirs_exist_ok=True)
            return {}

        with pytest.raises(UnavailableError, match="kontext-tui quantize --model kontext-tiny --precision fp8"):
            command("fp8", "kontext-tiny")
        checkpoint = artifacts.make("checkpoint", {"model": key, "precision": "fp8"}, build)
        command("fp8", "kontext-tiny", json=True)
        first = json.loads(capsys.readouterr().out)
        assert first["built"]
        assert first["gemms"] == {"bf16": 10, "fp8": small.LINEARS}
        assert Path(first["path"]).parent.parent.name == "onnx"
        command("fp8", "kontext-tiny", output=tmp_path / "copy", json=True)
        second = json.loads(capsys.readouterr().out)
        assert (second["built"], second["key"]) == (False, first["key"])
        copied = {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()}
        assert copied == {
            name: (small.graph("fp8") / name).read_bytes() for name in ("model.onnx", "model.onnx.data")
        }
        found = artifacts.find("onnx", model=key, precision="fp8", checkpoint=checkpoint.key)
        assert [artifact.key for artifact in found] == [first["key"]]

    def test_a_broken_promise_leaves_nothing_in_the_store(self, tmp_path: Path) -> None:
        folder = find_spec("kontext-tiny").folder
        assert folder is not None
        key = artifacts.model_hash(folder / "transformer")

        def build(target: Path) -> dict[str, str]:
            shutil.copytree(small.source("fp8"), target, dirs_exist_ok=True)
            quant_file = json.loads((target / "kontext-tui-quant.json").read_text())
            del quant_file["attention"]["transformer_blocks.1.attn"]
            (target / "kontext-tui-quant.json").write_text(json.dumps(quant_file))
            return {}

        artifacts.make("checkpoint", {"model": key, "precision": "fp8"}, build)
        with pytest.raises(UnavailableError, match="attention transformer_blocks.1.attn: q k"):
            command("fp8", "kontext-tiny")
        assert artifacts.list_all("onnx") == []

    def test_a_graph_from_elsewhere(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = small.graph("fp4") / "model.onnx"
        command("fp4", onnx=path, quiet=True)
        assert capsys.readouterr() == (f"{path}\n", "")
        with pytest.raises(UsageError, match="there is no such file"):
            command("fp4", onnx=tmp_path / "none.onnx")
        with pytest.raises(UsageError, match="no precision 'fp16'"):
            command("fp16")
