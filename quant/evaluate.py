"""Precisions side by side: the same pictures, prompts and seeds through each, held against the unquantized model.

The counterpart of figures 6 and 7 of NVIDIA's post on FLUX.1 Kontext in low precision, with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from PIL import Image, ImageChops
from torch import Tensor, nn

from core.edit import editor, sampling
from core.edit.geometry import to_working, working_size
from core.edit.loading import Model
from core.edit.runtimes import Runtime
from quant.metrics import Closeness, closeness
from quant.quality_set import Subject


@dataclass(frozen=True)
class Edited:
    """One subject in one precision, at the model's working size."""

    subject: str
    prompt: str
    image: Image.Image
    step_ms: float
    """Median over the steps; the mean where they differ, because the context is kept between some."""
    to_reference: Closeness | None
    to_target: Closeness | None


@dataclass(frozen=True)
class BlockLoss:
    """How far a block's output is from the unquantized block's for the same input, relative: |q - b| / |b|."""

    block: str
    error: float


def edit_all(
    model: Model,
    runtime: Runtime,
    subjects: Sequence[Subject],
    *,
    steps: int,
    guidance: float,
    seed: int,
    context_refresh: int = 1,
    reference: Sequence[Edited] | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> list[Edited]:
    """Edit every subject with one runtime; `reference` are the same subjects in the precision to compare with."""
    results = []
    for index, subject in enumerate(subjects):
        size = working_size(*subject.image.size, model.spec.sizes)
        pixels = editor.to_pixels(to_working(subject.image, size), model)
        latents, times = editor.edit_latents(
            model, runtime, pixels, subject.prompt, seed=seed + index, steps=steps, guidance=guidance,
            context_refresh=context_refresh,
        )  # fmt: skip
        image = editor.to_image(editor.decode(model, latents, *size))
        against = reference[index].image if reference else None
        target = to_working(subject.target, size) if subject.target else None
        results.append(
            Edited(
                subject.name,
                subject.prompt,
                image,
                median(times) if context_refresh == 1 else fmean(times),
                closeness(image, against) if against else None,
                closeness(image, target) if target else None,
            )
        )
        on_done()
    return results


@torch.inference_mode()
def block_losses(
    model: Model,
    others: Mapping[str, Callable[..., Any]],
    subject: Subject,
    *,
    guidance: float,
    seed: int,
    sigma: float = 0.7,
) -> list[BlockLoss]:
    """The loss of each block on its own: both get what the unquantized model computes up to there.

    others: the quantized blocks by name. One step at `sigma`; only one block's input is kept at a time.
    """
    size = working_size(*subject.image.size, model.spec.sizes)
    context = editor.encode(model, editor.to_pixels(to_working(subject.image, size), model))
    conditioning = editor.condition(model, context, subject.prompt, guidance)
    _, channels, height, width = context.shape
    noise = sampling.make_noise(seed, channels, height, width, like=context)
    latents = sigma * noise + (1 - sigma) * conditioning.context
    losses: list[BlockLoss] = []

    def compare(name: str) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            ours = others[name](*args, **kwargs)
            losses.append(BlockLoss(name, relative_error(_flat(ours), _flat(output))))

        return hook

    hooks = [
        block.register_forward_hook(compare(name), with_kwargs=True)
        for name, block in named_blocks(model.transformer)
    ]
    try:
        model.transformer(
            hidden_states=torch.cat([latents, conditioning.context], dim=1),
            encoder_hidden_states=conditioning.prompt,
            pooled_projections=conditioning.pooled,
            timestep=torch.full([1], sigma).to(latents),
            img_ids=conditioning.image_ids,
            txt_ids=conditioning.text_ids,
            guidance=conditioning.guidance,
            return_dict=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return losses


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs| in the Euclidean norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def summarize(edits: Sequence[Edited]) -> dict[str, float]:
    """Medians over the subjects, and the worst PSNR; empty values are left out."""
    near = [e.to_reference for e in edits if e.to_reference]
    exact = [e.to_target for e in edits if e.to_target]
    values = {"step_ms": median(e.step_ms for e in edits)}
    if near:
        values |= {
            "psnr": median(c.psnr for c in near),
            "psnr_worst": min(c.psnr for c in near),
            "ssim": median(c.ssim for c in near),
            "flip": median(c.flip for c in near),
        }
        learned = [c.lpips for c in near if c.lpips is not None]
        values |= {"lpips": median(learned)} if learned else {}
    if exact:
        values |= {"target_psnr": median(c.psnr for c in exact)}
    return values


def contact_sheet(
    subjects: Sequence[Subject], edits: Mapping[str, Sequence[Edited]], cell: int = 192, gain: int = 8
) -> Image.Image:
    """A row a subject: input | target if one is known | each precision | the last one's difference to the first."""
    from PIL import ImageDraw, ImageFont, ImageOps

    names = list(edits)
    targets = ["target"] if any(subject.target for subject in subjects) else []
    columns = ["input", *targets, *names, f"{names[-1]} - {names[0]}, x{gain}"]
    gap, caption = 6, 20
    sheet = Image.new(
        "RGB", (len(columns) * (cell + gap) + gap, caption + len(subjects) * (cell + caption + gap)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, name in enumerate(columns):
        draw.text((gap + column * (cell + gap), 3), name, fill="black", font=font)
    for row, subject in enumerate(subjects):
        results = [edits[name][row].image for name in names]
        difference = ImageChops.difference(results[-1], results[0]).point(lambda level: min(255, level * gain))
        y = caption + row * (cell + caption + gap)
        exact = [subject.target or Image.new("RGB", (1, 1), "white")] if targets else []
        shape = ImageOps.contain(
            subject.image, (cell, cell)
        ).size  # results have the model's shape, not the picture's
        for column, image in enumerate([subject.image, *exact, *results, difference]):
            fitted = ImageOps.pad(image.resize(shape), (cell, cell), color="white")
            sheet.paste(fitted, (gap + column * (cell + gap), y))
        draw.text((gap, y + cell + 2), subject.prompt, fill="black", font=font)
    return sheet


def named_blocks(transformer: Any) -> list[tuple[str, nn.Module]]:
    return [
        (f"{kind}.{index}", block)
        for kind in ("transformer_blocks", "single_transformer_blocks")
        for index, block in enumerate(getattr(transformer, kind))
    ]


def _flat(output: Any) -> Tensor:
    parts = output if isinstance(output, tuple) else (output,)
    return torch.cat([part.flatten() for part in parts])
