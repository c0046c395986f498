"""From a choice to a runtime that is ready: the heavy half of `core.edit.runtimes`."""

from __future__ import annotations

from core.edit.loading import Model
from core.edit.runtimes import Choice, Runtime


def open_runtime(choice: Choice, model: Model) -> Runtime:
    """Make ready what `choose` chose. Raises UnavailableError for an artifact that must not be used."""
    if choice.artifact is None:
        from core.edit.native import speed_up
        from core.edit.runtimes.torch_runtime import TorchRuntime

        speed_up(model.transformer)
        return TorchRuntime(model.transformer)
    from core.edit.artifacts import check_once

    check_once(choice.artifact)
    if choice.runtime == "torch":
        from core.edit.runtimes.torch_runtime import load_checkpoint

        return load_checkpoint(choice.artifact.folder, model.device, model.dtype)
    if choice.runtime == "onnx":
        from core.edit.runtimes.onnx_runtime import OnnxRuntime

        return OnnxRuntime(choice.artifact.folder / "model.onnx", choice.precision)
    from core.edit.runtimes.tensorrt_runtime import TensorrtRuntime

    return TensorrtRuntime(choice.artifact, model)
