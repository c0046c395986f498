"""Which steps should look at the context anew, at equal cost: PSNR to the exact edit with kontext-tiny.

    python -m quant.schedules                  # every schedule for one step in 2 and one in 4; long
    python -m quant.schedules 4 plain chosen   # these alone

Prints a line a schedule: full steps of 28, median and worst dB over eight edits of `quant.quality_set`, and which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image

from core.edit import editor, sampling
from core.edit.geometry import to_working, working_size
from core.edit.loading import Model, load
from core.edit.models import find_spec, locate
from core.edit.refresh import full_steps
from core.edit.runtimes.torch_runtime import TorchRuntime
from quant.metrics import psnr
from quant.quality_set import SEED, Subject, quality_set

STEPS = 28
EDITS = (0, 2, 3, 5, 6, 8, 9, 10)
"""Two or three of each photograph's; some change all of the picture, some a part."""

Schedule = Callable[[int, list[float]], set[int]]
"""(number of full steps, sigmas of the steps) -> the full ones."""


def spread(power: float) -> Schedule:
    """At (i / n) ** power of the way: 1 is every k-th, above 1 dense early, below 1 dense late."""
    return lambda count, sigmas: _filled({round(STEPS * (i / count) ** power) for i in range(count)}, count)


def even_sigmas(count: int, sigmas: list[float]) -> set[int]:
    """At equal distances of sigma."""
    return _filled({min(range(STEPS), key=lambda s: abs(sigmas[s] - (1 - i / count))) for i in range(count)}, count)


def _filled(steps: set[int], count: int) -> set[int]:
    """Where two fell on one step, the first free ones too: all schedules cost the same."""
    return steps | set([step for step in range(STEPS) if step not in steps][: count - len(steps)])


def chosen(count: int, sigmas: list[float]) -> set[int]:
    """What `context_refresh` means."""
    return {step for step, full in enumerate(full_steps(STEPS, round(STEPS / count))) if full}


SCHEDULES: dict[str, Schedule] = {
    "plain": spread(1.0), "early": spread(1.4), "late": spread(0.75), "sigma": even_sigmas, "chosen": chosen,
}  # fmt: skip


@torch.inference_mode()
def edit(model: Model, subject: Subject, seed: int, full: list[bool] | None) -> np.ndarray:
    """An edit in 0..1; full None: exact."""
    size = working_size(*subject.image.size, model.spec.sizes)
    context = editor.encode(model, editor.to_pixels(to_working(subject.image, size), model))
    _, channels, height, width = context.shape
    latents = sampling.make_noise(seed, channels, height, width, like=context)
    conditioning = editor.condition(model, context, subject.prompt, model.spec.guidance)
    predict = TorchRuntime(model.transformer).begin(conditioning, keep_context=full is not None)
    sigmas = sampling.schedule(model.scheduler, STEPS, image_tokens=latents.shape[1])
    latents = sampling.denoise(predict, latents, sigmas, full_steps=full)
    picture: Image.Image = editor.to_image(editor.decode(model, latents, *size))
    return np.asarray(picture, dtype=np.float32) / 255


def main(arguments: list[str]) -> None:
    refreshes = [int(each) for each in arguments if each.isdecimal()] or [2, 4]
    names = [each for each in arguments if not each.isdecimal()] or list(SCHEDULES)
    spec = find_spec("kontext-tiny")
    model = load(spec, locate(spec), torch.device("cpu"))
    subjects = [(SEED + index, subject) for index, subject in enumerate(quality_set()) if index in EDITS]
    exact = [edit(model, subject, seed, None) for seed, subject in subjects]
    sigmas = [float(each) for each in sampling.schedule(model.scheduler, STEPS, 256)][:-1]
    for refresh in refreshes:
        for name in names:
            steps = SCHEDULES[name](-(-STEPS // refresh), sigmas)
            full = [step in steps for step in range(STEPS)]
            near = [psnr(edit(model, s, seed, full), e) for (seed, s), e in zip(subjects, exact, strict=True)]
            marks = "".join("F" if each else "." for each in full)
            print(f"1 in {refresh}  {name:7} {sum(full):2}  {median(near):.1f}  {min(near):.1f}  {marks}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
