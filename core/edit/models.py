"""Which models there are, what each one needs, and where its files lie. No torch here: commands ask this first.

A model is a folder in diffusers' layout. `MODELS` names the known ones; any other name is a path to such a folder.
A folder may carry a `kontext-tui.json` with its own text length, sizes, steps and guidance; without one it is taken
for a FLUX.1 Kontext [dev] (or a fine-tune of it) and gets that model's numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.edit.geometry import KONTEXT_BUCKETS
from core.errors import UnavailableError

SPEC_FILE = "kontext-tui.json"


@dataclass(frozen=True)
class ModelSpec:
    """What a model was trained with. Sizes are (width, height) in pixels.

    The numbers of kontext-dev: https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev (model card) and the
    buckets of BFL's sampling code.
    """

    name: str
    repo: str | None = None
    """Where the hub has it; None for a folder."""
    folder: Path | None = None
    text_tokens: int = 512
    """Length the T5 prompt is padded or cut to."""
    sizes: tuple[tuple[int, int], ...] = KONTEXT_BUCKETS
    steps: int = 28
    guidance: float = 2.5


MODELS = {
    "kontext-tiny": ModelSpec("kontext-tiny", folder=Path(__file__).parents[1] / "data" / "kontext-tiny"),
    "kontext-dev": ModelSpec("kontext-dev", repo="black-forest-labs/FLUX.1-Kontext-dev"),
}

# The repository also holds the weights a second time, as single files of 24 GB.
HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model"]


def find_spec(name: str, base: Path | None = None) -> ModelSpec:
    """The spec of a known model, or of the diffusers folder at `name` (relative to `base`).

    Raises UnavailableError where the name is neither. The files themselves are checked by `locate`.
    """
    spec = MODELS.get(name)
    if spec is None:
        folder = ((base or Path()) / Path(name).expanduser()).resolve()
        if not folder.is_dir():
            raise UnavailableError(
                f"there is no model {name!r}: name one of {', '.join(MODELS)}, or the path of a diffusers folder"
            )
        spec = ModelSpec(str(folder), folder=folder)
    return spec if spec.folder is None else _with_spec_file(spec, spec.folder)


def locate(spec: ModelSpec, *, download: bool = False) -> Path:
    """The model's folder, checked to be whole and a FLUX.1 Kontext; with `download`, fetched from the hub if needed.

    Raises UnavailableError: gated, offline, missing, half downloaded, another architecture.
    """
    folder = spec.folder or hub_folder(spec, download=download)
    check_folder(folder, spec.name)
    return folder


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that is not a whole FLUX.1 Kontext model, by names and sizes alone (no weights are read)."""
    index = _read_json(folder / "model_index.json", name)
    pipeline = index.get("_class_name")
    if pipeline not in ("FluxKontextPipeline", "FluxKontextInpaintPipeline"):
        raise UnavailableError(
            f"{name}: {folder} is a {pipeline}; kontext-tui edits with FLUX.1 Kontext (FluxKontextPipeline)"
        )
    config = _read_json(folder / "transformer" / "config.json", name)
    if config.get("_class_name") != "FluxTransformer2DModel":
        raise UnavailableError(
            f"{name}: its transformer is a {config.get('_class_name')}, not a FluxTransformer2DModel"
        )
    for part in ("text_encoder", "text_encoder_2", "vae", "transformer"):
        _check_weights(folder / part, name)
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        if not (folder / part).is_dir():
            raise UnavailableError(_incomplete(name, folder / part))


def _with_spec_file(spec: ModelSpec, folder: Path) -> ModelSpec:
    path = folder / SPEC_FILE
    if not path.is_file():
        return spec
    known = {f.name for f in fields(ModelSpec)} - {"name", "repo", "folder"}
    values = {key: value for key, value in _read_json(path, spec.name).items() if key in known}
    try:
        if "sizes" in values:
            values["sizes"] = tuple((int(w), int(h)) for w, h in values["sizes"])
        return replace(spec, **values)
    except (TypeError, ValueError) as error:
        raise UnavailableError(f"{spec.name}: {path} is not a model spec ({error})") from None


def hub_folder(spec: ModelSpec, *, download: bool = False) -> Path:
    """Where the hub's cache has a model, whole or not; with `download`, fetched. Raises UnavailableError."""
    from huggingface_hub import snapshot_download  # 0.3 s
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    assert spec.repo is not None
    try:
        return Path(snapshot_download(spec.repo, allow_patterns=HUB_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        if not download:
            raise UnavailableError(
                f"{spec.name} is not on this machine: `hf download {spec.repo}` fetches it (about 33 GB)"
            ) from None
    try:
        return Path(snapshot_download(spec.repo, allow_patterns=HUB_PATTERNS))
    except GatedRepoError:
        raise UnavailableError(
            f"{spec.name} is gated: accept its licence at https://huggingface.co/{spec.repo}, "
            "then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UnavailableError(f"{spec.name}: the hub has no {spec.repo}, or not for you (`hf auth login`)") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise UnavailableError(
            f"{spec.name} is not on this machine and the hub cannot be reached: "
            f"go online, or copy {spec.repo} into a folder and give its path as the model"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UnavailableError(f"{spec.name}: downloading {spec.repo} failed: {_first_line(error)}") from None


def _check_weights(part: Path, name: str) -> None:
    """A component's weights are there: each file its index names, and each as long as its header says."""
    _read_json(part / "config.json", name)
    files = weight_files(part, name)
    if not files:
        raise UnavailableError(_incomplete(name, part / "*.safetensors"))
    for file in files:
        tensors = whole_header(file) if file.is_file() else None
        if tensors is None:
            raise UnavailableError(_incomplete(name, file))
        if any(is_lora(tensor) for tensor in tensors):
            raise UnavailableError(_unfused(name, file))
    for file in (*part.parent.glob("*lora*.safetensors"), *part.glob("*lora*.safetensors")):
        raise UnavailableError(_unfused(name, file))


def weight_files(part: Path, name: str = "the model") -> list[Path]:
    """A component's safetensors: those its index names, or all there are. name: of the model, for messages."""
    indexes = sorted(part.glob("*.safetensors.index.json"))
    if not indexes:
        return sorted(part.glob("*.safetensors"))
    shards = {str(file) for file in _read_json(indexes[0], name).get("weight_map", {}).values()}
    return [part / shard for shard in sorted(shards)]


def is_lora(tensor: str) -> bool:
    """Whether a tensor's name is that of a LoRA's factor, as peft, diffusers and kohya name them."""
    return any(part in tensor for part in ("lora_A", "lora_B", "lora_down", "lora_up"))


def _unfused(name: str, file: Path) -> str:
    return (
        f"{name}: {file} holds a LoRA, which would be left out: fuse it first "
        "(diffusers: load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained)"
    )


def whole_header(file: Path) -> dict[str, Any] | None:
    """A safetensors file's tensors, None if it is not as long as its header says (huggingface/safetensors)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            return None
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError:
            return None
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    return header if 8 + length + max(ends, default=0) == size else None


def _incomplete(name: str, path: Path) -> str:
    return f"{name} is incomplete: {path} is missing or cut short; download the model again"


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError:
        raise UnavailableError(_incomplete(name, path)) from None
    except ValueError:
        raise UnavailableError(f"{name}: {path} is not JSON; download the model again") from None
    if not isinstance(value, dict):
        raise UnavailableError(f"{name}: {path} is not a JSON object; download the model again")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
