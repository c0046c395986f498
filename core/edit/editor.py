"""One edit, from picture to picture: geometry, VAE, prompt, denoise loop, and back to the picture's own size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.edit import sampling
from core.edit.geometry import from_working, to_working, working_size
from core.edit.loading import Model, encode_prompt
from core.edit.refresh import full_steps
from core.edit.runtimes import Runtime
from core.edit.sampling import Conditioning, OnStep


@dataclass(frozen=True)
class Edit:
    """A finished edit. `model_seconds` is the part of `seconds` spent inside the model; times of steps in ms."""

    image: Image.Image
    size: tuple[int, int]
    step_ms: tuple[float, ...]
    seconds: float
    model_seconds: float


@dataclass(frozen=True)
class Progress:
    """The state inside an unfinished edit, after `step` steps: from it the rest gives the same bits.

    The latents alone: the noise is drawn before the first step and Euler steps draw none. `data` is little-endian.
    """

    step: int
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def snapshot(step: int, latents: Tensor) -> Progress:
    """latents [1, tokens, C] after `step` steps, as they can be stored."""
    raw = latents.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return Progress(step, str(latents.dtype).removeprefix("torch."), tuple(latents.shape), raw)


def restore(progress: Progress, like: Tensor) -> Tensor:
    """The latents of a snapshot on the device of `like`. Raises ValueError where they are of another edit."""
    if progress.shape != tuple(like.shape) or progress.dtype != str(like.dtype).removeprefix("torch."):
        raise ValueError(f"a snapshot of {progress.dtype} {progress.shape} is not one of {like.dtype} {like.shape}")
    raw = torch.frombuffer(bytearray(progress.data), dtype=torch.uint8)
    return raw.view(like.dtype).view(like.shape).to(like.device)


def edit(
    model: Model,
    runtime: Runtime,
    image: Image.Image,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance: float,
    context_refresh: int = 1,
    keep_model_size: bool = False,
    on_step: OnStep | None = None,
    resume: Progress | None = None,
) -> Edit:
    """Edit an RGB picture by a sentence; the result has the picture's own size unless `keep_model_size`.

    `on_step` may raise to stop between two steps; nothing is left behind. `resume` goes on from a snapshot, which
    must stand before a full step (`core.edit.refresh.can_resume`). context_refresh: 1 is exact.
    """
    start = time.perf_counter()
    size = working_size(*image.size, model.spec.sizes)
    pixels = to_pixels(to_working(image, size), model)
    model_start = time.perf_counter()
    latents, step_ms = edit_latents(
        model, runtime, pixels, prompt, seed=seed, steps=steps, guidance=guidance, context_refresh=context_refresh,
        on_step=on_step, resume=resume,
    )  # fmt: skip
    result = to_image(decode(model, latents, *size))
    model_seconds = time.perf_counter() - model_start
    if not keep_model_size:
        result = from_working(result, image.size)
    return Edit(result, size, step_ms, time.perf_counter() - start, model_seconds)


def edit_latents(
    model: Model,
    runtime: Runtime,
    pixels: Tensor,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance: float,
    context_refresh: int = 1,
    on_step: OnStep | None = None,
    resume: Progress | None = None,
) -> tuple[Tensor, tuple[float, ...]]:
    """The edit on tensors: pixels [1, 3, H, W] in -1..1 -> packed latents [1, tokens, C] and the ms of each step
    that was computed here."""
    context = encode(model, pixels)  # [1, C, H/8, W/8]
    _, channels, height, width = context.shape
    latents = sampling.make_noise(seed, channels, height, width, like=context)
    full = full_steps(steps, context_refresh)
    sigmas = sampling.schedule(model.scheduler, steps, image_tokens=latents.shape[1])
    predict = runtime.begin(condition(model, context, prompt, guidance, sigmas), keep_context=not all(full))
    times: list[float] = []

    def record(step: int, ms: float, current: Tensor, outlook: Callable[[], Tensor]) -> None:
        times.append(ms)
        if on_step is not None:
            on_step(step, ms, current, outlook)

    first_step = resume.step if resume else 0
    if resume:
        if not full[first_step]:
            raise ValueError(f"a snapshot after {first_step} steps lacks what was kept of the context")
        latents = restore(resume, like=latents)
    latents = sampling.denoise(predict, latents, sigmas, first_step=first_step, full_steps=full, on_step=record)
    return latents, tuple(times)


def condition(
    model: Model, context: Tensor, prompt: str, guidance: float, sigmas: Tensor | None = None
) -> Conditioning:
    """What stays the same over the steps. context: latents [1, C, H, W] of the conditioning image; sigmas
    [steps + 1]: the edit's, where they are known."""
    encoded = encode_prompt(model, prompt)
    height, width = context.shape[2:]
    ids = [
        sampling.token_ids(height, width, context=is_context, like=encoded.embeddings) for is_context in (False, True)
    ]
    return Conditioning(
        context=sampling.pack(context),
        prompt=encoded.embeddings,
        pooled=encoded.pooled,
        image_ids=torch.cat(ids),
        text_ids=torch.zeros(encoded.embeddings.shape[1], 3).to(encoded.embeddings),
        guidance=torch.full([1], guidance, device=model.device, dtype=torch.float32)
        if model.guidance_embeds
        else None,
        timesteps=None if sigmas is None else sampling.timesteps_of(sigmas[:-1], encoded.embeddings),
    )


@torch.inference_mode()
def encode(model: Model, pixels: Tensor) -> Tensor:
    """VAE encode [1, 3, H, W] in -1..1 to scaled latents [1, C, H/8, W/8], at the mode of the distribution."""
    config = model.vae.config
    latents: Tensor = model.vae.encode(pixels).latent_dist.mode()
    scaled: Tensor = (latents - config.shift_factor) * config.scaling_factor
    return scaled


@torch.inference_mode()
def decode(model: Model, tokens: Tensor, width: int, height: int) -> Tensor:
    """VAE decode packed latents [1, tokens, C] to pixels [1, 3, H, W] in -1..1 (not clipped)."""
    config, scale = model.vae.config, model.pixels_per_latent
    latents = sampling.unpack(tokens, height // scale, width // scale)
    pixels: Tensor = model.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    return pixels


def to_pixels(image: Image.Image, model: Model) -> Tensor:
    """An RGB picture as [1, 3, H, W] in -1..1 on the model's device."""
    # By a table of the 256 levels, computed on the CPU: the same bits on any device, and bytes are what travels.
    levels = 2.0 * torch.from_numpy(np.arange(256, dtype=np.float32) / 255.0) - 1.0
    table = levels.to(device=model.device, dtype=model.dtype)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).to(model.device)
    return table[pixels.int()[None]].permute(0, 3, 1, 2)


def to_image(pixels: Tensor) -> Image.Image:
    """[1, 3, H, W] in -1..1 as an RGB picture; values outside are clipped."""
    levels = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().mul(255).round()
    return Image.fromarray(levels[0].to(torch.uint8).cpu().numpy())
