"""The sampler: free functions over plain tensors, from noise to latents.

FLUX.1 Kontext is a rectified flow (https://arxiv.org/abs/2506.15742): the model sees the noisy tokens with the
conditioning image's tokens behind them and predicts the velocity, noise minus image; Euler steps follow it down the
sigmas. Bit-equal on a CPU to diffusers' `FluxKontextPipeline` for the same seed, prompt and size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATCH = 2  # latents are packed 2x2 into one token

Predict = Callable[[Tensor, Tensor, bool], Tensor]
"""(latents [B, T, C], timestep [B] = sigma x 1000, full) -> velocity [B, T, C]; a step that is not `full` may reuse
what the last full one kept of the context."""
OnStep = Callable[[int, float, Tensor, Callable[[], Tensor]], None]
"""(finished steps, milliseconds of this step, latents [B, T, C], outlook): `outlook()` is where the latents would end
if the last velocity were right all the way."""


@dataclass(frozen=True)
class Conditioning:
    """All that stays the same from step to step of one edit."""

    context: Tensor  # [B, C tokens, 64]: the conditioning image
    prompt: Tensor  # [B, text tokens, joint width]: T5
    pooled: Tensor  # [B, pooled width]: CLIP
    image_ids: Tensor  # [T + C tokens, 3]: rope positions, noise tokens first
    text_ids: Tensor  # [text tokens, 3]: zeros
    guidance: Tensor | None  # [B] float32, None for a model without guidance embedding
    timesteps: Tensor | None = None
    """[steps]: all that `Predict` will be asked for, where they are known: what depends on them and on nothing that
    a step makes can be computed for all at once."""


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H/2 * W/2, C * 4]."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // PATCH) * (width // PATCH), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, H/2 * W/2, C * 4] -> [B, C, H, W], with H and W of the latents."""
    batch, count, channels = tokens.shape
    if count * PATCH * PATCH != height * width:
        raise ValueError(f"{count} tokens do not make latents of {height} x {width}")
    patches = tokens.view(batch, height // PATCH, width // PATCH, channels // 4, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def token_ids(height: int, width: int, *, context: bool, like: Tensor) -> Tensor:
    """Rope positions [H/2 * W/2, 3] of latents of H x W: (0, row, column), with 1 in front for context tokens."""
    ids = torch.zeros(height // PATCH, width // PATCH, 3)
    ids[..., 0] = 1 if context else 0
    ids[..., 1] = torch.arange(height // PATCH)[:, None]
    ids[..., 2] = torch.arange(width // PATCH)[None, :]
    return ids.reshape(-1, 3).to(device=like.device, dtype=like.dtype)


def make_noise(seed: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """Noise tokens [1, H/2 * W/2, C * 4]. Drawn on the CPU: a seed means the same picture on any device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(1, channels, height, width, generator=generator, dtype=like.dtype)
    return pack(noise.to(like.device))


def schedule(scheduler: Any, steps: int, image_tokens: int) -> Tensor:
    """Sigmas [steps + 1] from 1 down to 0, shifted for the number of image tokens (not counting the context).

    `scheduler`: diffusers' FlowMatchEulerDiscreteScheduler as the model's folder configures it.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = image_tokens * slope + (config.base_shift - slope * config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    sigmas: Tensor = scheduler.sigmas
    return sigmas.clone()


def timesteps_of(sigmas: Tensor, like: Tensor) -> Tensor:
    """Sigmas x 1000, rounded as the model is given them."""
    return (sigmas * 1000).to(like)


@torch.inference_mode()
def denoise(
    predict: Predict,
    latents: Tensor,
    sigmas: Tensor,
    *,
    first_step: int = 0,
    full_steps: Sequence[bool] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Follow the predicted velocity from `sigmas[first_step]` down to 0.

    latents: [B, T, C] at sigma `sigmas[first_step]`; sigmas: [steps + 1] float32 on the CPU. `on_step` is called
    after every step and may raise to stop. `first_step` goes on from a checkpoint.
    """
    clock = time.perf_counter()
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        if step < first_step:
            continue
        timestep = timesteps_of(sigma, latents).expand(len(latents))
        velocity = predict(latents, timestep, full_steps is None or full_steps[step])
        # Euler in float32: in BF16 the last, small steps would round away.
        latents = (latents.float() + (following - sigma) * velocity).to(velocity.dtype)
        if on_step is not None:
            synchronize(latents)
            now = time.perf_counter()
            on_step(step + 1, (now - clock) * 1000, latents, partial(_outlook, latents, velocity, following))
            clock = time.perf_counter()  # a step's time is the model's alone
    return latents


def _outlook(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    return latents.float() - sigma * velocity


def synchronize(tensor: Tensor) -> None:
    """Wait for the device that computes `tensor`, so that a clock read next is true."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
