"""From a choice to a runtime that is ready: the heavy half of `core.edit.runtimes`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from core.edit import native
from core.edit.loading import Model
from core.edit.runtimes import Choice, Runtime

CACHE_BYTES = 4 << 30
"""Emulation keeps dequantized weights up to this much; a big model's are made anew at each step."""


def open_runtime(choice: Choice, model: Model) -> Runtime:
    """Make ready what `choose` chose. Raises UnavailableError for an artifact that must not be used."""
    if choice.artifact is None:
        return open_transformer(model.transformer)
    from core.edit.artifacts import check_once

    check_once(choice.artifact)
    if choice.runtime == "torch":
        return open_checkpoint(choice.artifact.folder, model)
    if choice.runtime == "onnx":
        from core.edit.runtimes.onnx_runtime import OnnxRuntime

        return OnnxRuntime(choice.artifact.folder / "model.onnx", choice.precision)
    from core.edit.runtimes.tensorrt_runtime import TensorrtRuntime

    return TensorrtRuntime(choice.artifact, model)


def open_checkpoint(folder: Path, model: Model) -> Runtime:
    """The `torch` runtime of a quantized checkpoint: `core.edit.quantized` says what is in the folder."""
    from core.edit.quantized import Emulated, load_transformer, read_quant_file

    transformer = load_transformer(folder, model.device, model.dtype, Emulated(CACHE_BYTES))
    return open_transformer(transformer, str(read_quant_file(folder).get("recipe", "bf16")))


def open_transformer(transformer: Any, precision: str | None = None) -> Runtime:
    """The `torch` runtime: fused on a GPU, where it serves the format; else the transformer as it is, emulated.

    precision: the recipe of a quantized transformer.
    """
    from core.edit.native.weights import Unsupported
    from core.edit.runtimes.native_runtime import NativeRuntime
    from core.edit.runtimes.torch_runtime import TorchRuntime

    if transformer.device.type == "cuda" and (precision in (None, "bf16") or native.serves(transformer.device)):
        with suppress(Unsupported):
            return NativeRuntime(transformer, precision or "bf16")
    return TorchRuntime(transformer, precision)
