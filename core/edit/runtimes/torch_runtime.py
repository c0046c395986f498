"""The `torch` runtime: diffusers' transformer as it is, in BF16 on a GPU and float32 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.edit.sampling import Conditioning, Predict


class TorchRuntime:
    """Runs a `FluxTransformer2DModel`. `precision` is what the arithmetic is done in: fp32 or bf16."""

    name = "torch"

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.precision = "fp32" if transformer.dtype == torch.float32 else "bf16"

    def begin(self, conditioning: Conditioning) -> Predict:
        context = conditioning.context

        def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
            velocity: Tensor = self.transformer(
                hidden_states=torch.cat([latents, context], dim=1),
                encoder_hidden_states=conditioning.prompt,
                pooled_projections=conditioning.pooled,
                timestep=timestep / 1000,
                img_ids=conditioning.image_ids,
                txt_ids=conditioning.text_ids,
                guidance=conditioning.guidance,
                return_dict=False,
            )[0]
            return velocity[:, : latents.shape[1]]

        return predict
