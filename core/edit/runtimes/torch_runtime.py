"""The `torch` runtime: diffusers' transformer as it is, or one loaded from a quantized checkpoint.

Unquantized it computes in BF16 on a GPU and in float32 on a CPU. A quantized checkpoint runs on a GPU's own FP8
products (`core.edit.native`) where there are any. Elsewhere it is emulated: every number is rounded as the low-bit
kernels round it, with no gain in speed.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.edit import native
from core.edit.context import ContextCache
from core.edit.quantized import Emulated, load_transformer, read_quant_file
from core.edit.sampling import Conditioning, Predict

CACHE_BYTES = 4 << 30
"""Emulation keeps dequantized weights up to this much; a big model's are made anew at each step."""


class TorchRuntime:
    """Runs a `FluxTransformer2DModel`. `precision` is what the arithmetic is done in: fp32, bf16, or a recipe's."""

    name = "torch"
    device_bytes = 0

    def __init__(self, transformer: Any, precision: str | None = None) -> None:
        self.transformer = transformer
        self.precision = precision or ("fp32" if transformer.dtype == torch.float32 else "bf16")
        self._cache = ContextCache(transformer)

    @property
    def kept_bytes(self) -> int:
        """What `keep_context` holds of the edit at work, or of the last one."""
        return self._cache.bytes

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
            with native.fastest_attention() if latents.is_cuda else nullcontext():
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


def load_checkpoint(folder: Path, device: torch.device, dtype: torch.dtype) -> TorchRuntime:
    """The runtime of a quantized checkpoint: `core.edit.quantized` says what is in the folder."""
    arithmetic = native.Native() if native.serves(device) else Emulated(CACHE_BYTES)
    transformer = load_transformer(folder, device, dtype, arithmetic)
    native.speed_up(transformer)
    return TorchRuntime(transformer, str(read_quant_file(folder).get("recipe", "bf16")))
