"""Calibration: what a model's layers see while it edits.

The unquantized model edits pairs of a picture and a prompt (`quant.pairs`) with the real denoise loop, and what its
transformer was given at each step is kept: real latents at real sigmas, conditioning image and text included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.edit import editor, images, sampling
from core.edit.geometry import to_working, working_size
from core.edit.loading import Model
from core.edit.sampling import Conditioning, Predict
from quant.pairs import Pair

STEPS = 8
"""Denoising steps of a calibration edit unless told otherwise: sigmas from 1 to the last eighth."""

OnProgress = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)"""


@dataclass(frozen=True)
class Sample:
    """What the transformer was given at one step of one edit."""

    conditioning: Conditioning
    latents: Tensor  # [1, image tokens, C]
    timestep: Tensor  # [1], sigma x 1000

    def inputs(self) -> dict[str, Any]:
        """As `FluxTransformer2DModel.forward` takes them."""
        given = self.conditioning
        return {
            "hidden_states": torch.cat([self.latents, given.context], dim=1),
            "encoder_hidden_states": given.prompt,
            "pooled_projections": given.pooled,
            "timestep": self.timestep / 1000,
            "img_ids": given.image_ids,
            "txt_ids": given.text_ids,
            "guidance": given.guidance,
            "return_dict": False,
        }


def record(
    model: Model, pairs: Sequence[Pair], *, steps: int = STEPS, on_progress: OnProgress = lambda *_: None
) -> list[Sample]:
    """Edit every pair with the unquantized model (seeds 0, 1, ...) and keep the transformer's inputs of all steps."""
    samples: list[Sample] = []
    for index, pair in enumerate(pairs):
        size = working_size(*(picture := images.load(pair.image).rgb).size, model.spec.sizes)
        context = editor.encode(model, editor.to_pixels(to_working(picture, size), model))
        conditioning = editor.condition(model, context, pair.prompt, model.spec.guidance)
        _, channels, height, width = context.shape
        noise = sampling.make_noise(index, channels, height, width, like=context)
        sigmas = sampling.schedule(model.scheduler, steps, image_tokens=noise.shape[1])

        def count(step: int, ms: float, latents: Tensor, outlook: object, done: int = index * steps) -> None:
            on_progress("editing the calibration pairs", done + step, len(pairs) * steps)

        sampling.denoise(_recorder(model.transformer, conditioning, samples), noise, sigmas, on_step=count)
    return samples


def thin(samples: Sequence[Sample], pairs: int, count: int) -> list[Sample]:
    """About `count` of the samples of `pairs` edits, such that every pair and every step comes evenly often."""
    steps = len(samples) // pairs
    stride = max(1, len(samples) // max(count, pairs))
    return [s for i, s in enumerate(samples) if (i % steps) % stride == (i // steps) % stride]


def _recorder(transformer: Any, conditioning: Conditioning, samples: list[Sample]) -> Predict:
    def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
        sample = Sample(conditioning, latents, timestep)
        samples.append(sample)
        velocity: Tensor = transformer(**sample.inputs())[0]
        return velocity[:, : latents.shape[1]]

    return predict
