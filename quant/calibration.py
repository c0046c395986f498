"""Calibration: what a model's layers see while it edits.

Pairs of a picture and a prompt come from a folder with a `pairs.jsonl`, a line each: {"image": name, "prompt": text},
and where the exact result is known, "target": name, for `compare`.
The unquantized model edits each of them with the real denoise loop, and what its transformer was given at each step
is kept: real latents at real sigmas, conditioning image and text included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.edit import editor, images, sampling
from core.edit.geometry import to_working, working_size
from core.edit.loading import Model
from core.edit.sampling import Conditioning, Predict
from core.errors import InputError, KontextError, UsageError

DEFAULT_PAIRS = Path(__file__).parent / "data" / "pairs"
PAIRS_FILE = "pairs.jsonl"
FEWEST = 8
STEPS = 8
"""Denoising steps of a calibration edit unless told otherwise: sigmas from 1 to the last eighth."""

OnProgress = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)"""
OnSkip = Callable[[str], None]
"""A line that names what was skipped and why."""


@dataclass(frozen=True)
class Pair:
    """A conditioning image and the edit asked of it."""

    image: Path
    prompt: str
    target: Path | None = None
    """The exact result, where it is known."""


@dataclass(frozen=True)
class PairSet:
    """Usable pairs; `digest` is of their pictures' bytes and prompts, in order."""

    pairs: tuple[Pair, ...]
    digest: str


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


def read_pairs(
    folder: Path | None = None,
    *,
    limit: int | None = None,
    fewest: int = FEWEST,
    on_skip: OnSkip = lambda line: None,
) -> PairSet:
    """The pairs of a folder (those that ship with the project by default), at most `limit`, spread over the file.

    What cannot be used is named through `on_skip`. Raises UsageError where there is no pair list, InputError where
    fewer than `fewest` pairs are left.
    """
    folder = DEFAULT_PAIRS if folder is None else folder
    path = folder / PAIRS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: no readable pair list; a line each: {_EXAMPLE}") from None
    wanted = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if limit is not None and limit < fewest:
        raise UsageError(f"--limit {limit}: calibration needs at least {fewest} pairs")
    pairs: list[Pair] = []
    digest = hashlib.sha256()
    for number, line in _spread(wanted, limit):
        try:
            pair, picture = _read_pair(folder, line)
        except (KontextError, OSError) as error:
            on_skip(f"{path}:{number}: skipped: {error}")
            continue
        pairs.append(pair)
        digest.update(f"{picture} {pair.prompt}\n".encode())
    if len(pairs) < fewest:
        raise InputError(f"{path}: {len(pairs)} usable pairs; at least {fewest} are needed")
    return PairSet(tuple(pairs), digest.hexdigest())


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


_EXAMPLE = '{"image": "cat.jpg", "prompt": "Make it warmer"}'


def _read_pair(folder: Path, line: str) -> tuple[Pair, str]:
    try:
        entry = json.loads(line)
        name, prompt, target = entry["image"], entry["prompt"], entry.get("target")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"not a pair such as {_EXAMPLE}") from None
    if not (isinstance(name, str) and isinstance(prompt, str) and prompt.strip()):
        raise InputError("image and prompt must be text")
    if not (target is None or isinstance(target, str)):
        raise InputError("target must be the name of a picture")
    return Pair(folder / name, prompt, folder / target if target else None), images.load(folder / name).sha256


def _spread(lines: Sequence[tuple[int, str]], limit: int | None) -> list[tuple[int, str]]:
    if limit is None or limit >= len(lines):
        return list(lines)
    return [lines[i * len(lines) // limit] for i in range(limit)]
