"""The `torch` runtime: diffusers' transformer as it is, or one loaded from a quantized checkpoint.

In float32 on a CPU. A quantized checkpoint is emulated: every number is rounded as the low-bit kernels round it, with
no gain in speed. On a GPU `native_runtime` takes this one's place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.edit.context import ContextCache
from core.edit.sampling import Conditioning, Predict


class TorchRuntime:
    """Runs a `FluxTransformer2DModel`. `precision` is what the arithmetic is done in: fp32, bf16, or a recipe's."""

    name = "torch"
    device_bytes = 0
    caveat = ""
    recorded_bytes = 0

    def __init__(self, transformer: Any, precision: str | None = None) -> None:
        self.transformer = transformer
        self.precision = precision or ("fp32" if transformer.dtype == torch.float32 else "bf16")
        self._cache = ContextCache(transformer)

    @property
    def weight_bytes(self) -> int:
        return sum(
            t.numel() * t.element_size() for t in (*self.transformer.parameters(), *self.transformer.buffers())
        )

    @property
    def kept_bytes(self) -> int:
        """What `keep_context` holds of the edit at work, or of the last one."""
        return self._cache.bytes

    def release(self) -> None:
        self._cache.end()

    def begin(self, conditioning: Conditioning, *, keep_context: bool = False) -> Predict:
        context = conditioning.context
        if keep_context:
            self._cache.begin(context)
        else:
            self._cache.end()

        def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
            tokens, ids = latents, conditioning.image_ids[: latents.shape[1]]
            if keep_context:
                self._cache.next_step(full=full)
            if full or not keep_context:
                tokens, ids = torch.cat([latents, context], dim=1), conditioning.image_ids
            velocity: Tensor = self.transformer(
                hidden_states=tokens,
                encoder_hidden_states=conditioning.prompt,
                pooled_projections=conditioning.pooled,
                timestep=timestep / 1000,
                img_ids=ids,
                txt_ids=conditioning.text_ids,
                guidance=conditioning.guidance,
                return_dict=False,
            )[0]
            return velocity[:, : latents.shape[1]]

        return predict
