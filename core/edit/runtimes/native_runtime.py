"""The `torch` runtime on a GPU (`core.edit.native`); on a CPU the same steps in plain torch, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from core.edit import native
from core.edit.native import plain
from core.edit.native.flux import Flux, Kept, Prepared
from core.edit.native.graphs import Graphs
from core.edit.native.proof import LIMIT, disagreement
from core.edit.sampling import Conditioning, Predict


@dataclass
class _Place:
    """Tensors of one shape of edit, at the addresses that its recorded steps read."""

    prepared: Prepared
    latents: Tensor
    timestep: Tensor


class NativeRuntime:
    """Runs a transformer's weights fused, a step at a time. `precision`: bf16, or a recipe's name."""

    name = "torch"
    device_bytes = 0

    def __init__(self, transformer: Any, precision: str, *, ops: ModuleType | None = None) -> None:
        """Takes the transformer over: its blocks are gone from it. ops: `plain` or `kernels`, as fits by itself.

        Raises `core.edit.native.weights.Unsupported`, with the transformer as it was.
        """
        self.precision = precision
        device: torch.device = transformer.x_embedder.weight.device
        if device.type == "cuda":  # kernels and graphs go where torch stands, not where their tensors are
            torch.cuda.set_device(device)
        compiled = ops is None and device.type == "cuda" and native.can_compile()
        self.flux = Flux(transformer, ops or _ops(compiled=compiled), fp8_attention=_fp8_attention(device, compiled))
        self.caveat = "" if self.flux.ops is plain else _prove(self.flux)
        self._graphs = Graphs() if compiled and not self.caveat else None
        self._places: dict[tuple[int, ...], _Place] = {}
        self._kept: Kept | None = None

    @property
    def kept_bytes(self) -> int:
        """What `keep_context` holds of the edit at work, or of the last one."""
        return 0 if self._kept is None else self._kept.bytes

    @property
    def recorded_bytes(self) -> int:
        return 0 if self._graphs is None else self._graphs.bytes

    @property
    def weight_bytes(self) -> int:
        return self.flux.bytes

    def release(self) -> None:
        """Give back all memory but the weights'; the next edit takes it anew."""
        self._places.clear()
        self._kept = None
        if self._graphs is not None:
            self._graphs.clear()

    @torch.inference_mode()
    def begin(self, conditioning: Conditioning, *, keep_context: bool = False) -> Predict:
        key, place = self._place(conditioning)
        context_tokens = len(place.prepared.context)
        if (not keep_context and self._kept is not None) or self._is_of_other_shape(context_tokens):
            self._kept = None
            if self._graphs is not None:
                self._graphs.clear()  # they hold what was kept
        if keep_context and self._kept is None:
            self._kept = self.flux.keep(context_tokens)
        filled = False

        @torch.inference_mode()
        def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
            nonlocal filled
            if keep_context and not full and not filled:
                raise RuntimeError("the first step of an edit must be a full one: there is no context to reuse yet")
            filled = True
            whole = full or not keep_context
            place.latents.copy_(latents[0])
            place.timestep.copy_(timestep)
            if not place.prepared.known:
                self.flux.prepare_step(place.prepared, conditioning, place.timestep)

            def step() -> Tensor:
                return self.flux.velocity(place.prepared, place.latents, place.timestep, self._kept, full=whole)

            if self._graphs is None:
                return step()[None]
            return self._graphs.call((key, keep_context, whole), step)[None].clone()

        return predict

    def _is_of_other_shape(self, context_tokens: int) -> bool:
        return self._kept is not None and self._kept.rows.shape[2] != context_tokens

    def _place(self, conditioning: Conditioning) -> tuple[tuple[int, ...], _Place]:
        """Where this edit's tensors lie: over those of an earlier one of its shape."""
        made = self.flux.prepare(conditioning)
        noise = len(conditioning.image_ids) - conditioning.context.shape[1]
        key = (noise, len(made.context), len(made.text), len(made.timesteps), int(made.known))
        place = self._places.get(key)
        if place is None:
            channels = conditioning.context.shape[2]
            latents = made.context.new_empty(noise, channels)
            place = self._places[key] = _Place(made, latents, made.context.new_empty(1))
        else:
            for old, new in zip(place.prepared.tensors(), made.tensors(), strict=True):
                old.copy_(new)
        return key, place


def _ops(*, compiled: bool) -> ModuleType:
    if not compiled:
        return plain
    from core.edit.native import kernels

    return kernels


def _prove(flux: Flux) -> str:
    """Leave compiled kernels out where they cannot run or compute something else; returns the reason, in words."""
    try:
        error = disagreement(flux, flux.ops, plain)
        if error <= LIMIT:
            return ""
        reason = f"what they compute is {error:.2f} off"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as found:  # whatever a compiler or a library raises on a GPU that it does not know
        reason = (str(found).strip().splitlines() or [type(found).__name__])[0]
    flux.ops = plain
    return f"plain torch computes, slower: compiled kernels cannot be used here ({reason})"


def _fp8_attention(device: torch.device, compiled: bool) -> bool:
    """On a GPU by cuDNN alone; on a CPU, where nothing is fast, as the checkpoint says."""
    from core.edit.native.attention import has_cudnn

    return device.type != "cuda" or (compiled and has_cudnn())
