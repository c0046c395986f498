"""A small picture of latents, without decoding them: a linear map from their channels to RGB.

The map is fitted to the model's own VAE, by encoding one synthetic chart of colours at many scales: it fits any
model, and costs one small encode a session (RMS error on photographs 0.09 of -1..1 with kontext-tiny).
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from core.edit import sampling
from core.edit.editor import encode, to_image
from core.edit.loading import Model

CHART = 256  # pixels a side
RIDGE = 0.01


@torch.inference_mode()
def colour_factors(model: Model) -> Tensor:
    """[C + 1, 3] float32 on the CPU: what each latent channel, and the constant 1, adds to red, green and blue."""
    chart = _chart().to(device=model.device, dtype=model.dtype)
    latents = encode(model, chart)[0].flatten(1).T.float().cpu()  # [positions, C]
    colours = F.avg_pool2d(chart.float(), model.pixels_per_latent)[0].flatten(1).T.cpu()
    known = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    ridge = RIDGE * len(known) * torch.eye(known.shape[1])
    ridge[-1, -1] = 0.0
    factors: Tensor = torch.linalg.solve(known.T @ known + ridge, known.T @ colours)
    return factors


@torch.inference_mode()
def sketch(model: Model, factors: Tensor, tokens: Tensor, width: int, height: int) -> Image.Image:
    """Packed latents [1, T, C * 4] of a picture of so many pixels as RGB, one pixel a latent position."""
    scale = model.pixels_per_latent
    latents = sampling.unpack(tokens.float().cpu(), height // scale, width // scale)
    colours = torch.einsum("bchw,cr->brhw", latents, factors[:-1]) + factors[-1][None, :, None, None]
    return to_image(colours)


def _chart() -> Tensor:
    """[1, 3, CHART, CHART] in -1..1: noise at every scale, coarse to fine, the same each time."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 3, CHART, CHART)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = 0.35 * torch.randn(1, 3, cells, cells, generator=generator)
        total += F.interpolate(noise, (CHART, CHART), mode="bilinear")
    return total.clamp(-1, 1)
