"""From a choice to a runtime that is ready: the heavy half of `core.edit.runtimes`."""

from __future__ import annotations

import gc

import torch

from core.edit.loading import Model
from core.edit.placement import CONTEXT_BYTES
from core.edit.runtimes import Choice, Runtime


def limit_memory(device: torch.device, limit: int | None, *, beside: int = 0) -> None:
    """Let this process take at most `limit` bytes of a GPU, its context and what others hold `beside` torch included;
    what a model that has gone left cached goes back first."""
    if device.type != "cuda":
        return
    gc.collect()
    torch.cuda.empty_cache()
    if limit is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        share = max(0, limit - CONTEXT_BYTES - beside) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device.index or 0)


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
