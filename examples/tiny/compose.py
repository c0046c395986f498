"""From plans to pixels: pairs of pictures, composited on whatever device the bank lies on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny import effects
from examples.tiny.bank import OBJECT, Pixels
from examples.tiny.plans import LAYER_FIELDS, Plan

CHANGED = 1 / 32
"""A pixel has changed where one of its channels moved by more, of 1."""


@dataclass(frozen=True)
class Pairs:
    """source and target [N, 3, H, W] in 0..1, whole 8-bit levels; mask [N, 1, H, W]: 1 where they differ.

    things [N, L, H, W] (or None): at each level of the pile, where a thing that changed stands, before or after.
    """

    source: Tensor
    target: Tensor
    mask: Tensor
    things: Tensor | None


@torch.no_grad()
def compose(pixels: Pixels, plan: Plan, *, things: bool = False) -> Pairs:
    """Draw a plan's pairs, and with `things` where those stand that change.

    No autocast: half precision would show in the gradients of skies.
    """
    device = pixels.sprites.device
    width, height = plan.size
    with torch.autocast(device.type, enabled=False):
        canvas = _backdrops(pixels, plan)  # [2 N, 3, H, W]: before and after of pair 0, of pair 1 ...
        levels = int(plan.depth.max()) + 1 if len(plan.depth) else 0
        standing = (
            torch.zeros(len(plan.kinds), levels, height, width, dtype=torch.bool, device=device) if things else None
        )
        for level in range(levels):
            _paste(pixels, plan, level, canvas, standing)
        pairs = _levels(canvas).view(len(plan.kinds), 2, 3, height, width)
        source, target = pairs[:, 0].clone(), pairs[:, 1].clone()
        tints = torch.from_numpy(plan.tints).to(device)
        for name in set(plan.effects) - {""}:
            rows = [row for row, effect in enumerate(plan.effects) if effect == name]
            target[rows] = _levels(effects.apply(name, target[rows], tints[rows]))
        mask = ((source - target).abs().amax(1, keepdim=True) > CHANGED).float()
    return Pairs(source, target, mask, standing)


def _levels(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


def _backdrops(pixels: Pixels, plan: Plan) -> Tensor:
    device = pixels.backdrops.device
    width, height = plan.size
    scale, x, y, mirror, gamma = torch.from_numpy(plan.crops).to(device).flatten(0, 1).unbind(1)
    across, along = scale * width / max(plan.size), scale * height / max(plan.size)
    theta = torch.zeros(len(scale), 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = across * mirror, x * (1 - across)
    theta[:, 1, 1], theta[:, 1, 2] = along, y * (1 - along)
    pictures = pixels.backdrops[torch.from_numpy(plan.backdrops).to(device).flatten()].float() / 255
    grid = F.affine_grid(theta, [len(theta), 3, height, width], align_corners=False)
    canvas = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gains = torch.from_numpy(plan.gains).to(device).flatten(0, 1)
    canvas = (canvas.clamp(1e-4, 1) ** gamma.view(-1, 1, 1, 1) * gains[:, :, None, None]).clamp(0, 1)
    plain = torch.from_numpy(plan.plain).to(device).flatten(0, 1)[:, :, None, None]
    canvas = torch.where(plain.isnan(), canvas, plain)
    for way in ("blur", "grey"):
        rows = [2 * row + 1 for row, behind in enumerate(plan.behind) if behind == way]
        if rows:
            canvas[rows] = (
                effects.blur(canvas[rows], 4.0)
                if way == "blur"
                else effects.apply("bw", canvas[rows], torch.empty(0))
            )
    return canvas


def _paste(pixels: Pixels, plan: Plan, level: int, canvas: Tensor, standing: Tensor | None) -> None:
    """Paste one level of things, at most one a picture, with the shadow that each throws."""
    device = canvas.device
    entries = np.flatnonzero(plan.depth == level)
    layers = {name: plan.layers[entries, column] for column, name in enumerate(LAYER_FIELDS)}
    pair = plan.pair[entries]
    changed = (layers["before"] != layers["after"]) | (layers["colour"] != layers["colour_after"])
    for side, shown, colour in ((0, "before", "colour"), (1, "after", "colour_after")):
        rows = np.flatnonzero(layers[shown])
        if not len(rows):
            continue
        drawn = _draw(
            pixels, {name: torch.from_numpy(layers[name][rows]).to(device) for name in layers}, colour, plan
        )
        where = torch.from_numpy(2 * pair[rows] + side).to(device)
        canvas[where] = _over(canvas[where], drawn)
        if standing is not None and changed[rows].any():
            moved = np.flatnonzero(changed[rows])
            opaque = drawn[torch.from_numpy(moved).to(device), 3] > 0.7
            standing[torch.from_numpy(pair[rows][moved]).to(device), level] |= opaque


def _draw(pixels: Pixels, layers: dict[str, Tensor], colour: str, plan: Plan) -> Tensor:
    """Drawings placed, turned and coloured: [n, 4, H, W], premultiplied."""
    width, height = plan.size
    small = (layers["w"] * width < 0.65 * OBJECT).long()
    sprites = pixels.sprites[layers["sprite"].long(), small].float()
    chosen = layers[colour].long()
    if bool((plan.layers[:, LAYER_FIELDS.index(colour)] >= 0).any()):
        opacity = sprites[:, 3:]
        table = effects.colour_table(sprites.device)
        coloured = effects.recolour(sprites[:, :3] / opacity.clamp_min(1e-3), table[chosen.clamp_min(0)]) * opacity
        sprites = torch.cat([torch.where((chosen >= 0).view(-1, 1, 1, 1), coloured, sprites[:, :3]), opacity], 1)
    cos, sin, flip = layers["turn"].cos(), layers["turn"].sin(), layers["flip"]
    dx, dy, w, h = 2 * layers["cx"] - 1, 2 * layers["cy"] - 1, layers["w"], layers["h"]
    theta = torch.zeros(len(w), 2, 3, device=sprites.device)
    theta[:, 0, 0], theta[:, 0, 1] = flip * cos / w, flip * sin / h
    theta[:, 1, 0], theta[:, 1, 1] = -sin / w, cos / h
    theta[:, 0, 2] = -flip * (cos * dx / w + sin * dy / h)
    theta[:, 1, 2] = sin * dx / w - cos * dy / h
    grid = F.affine_grid(theta, [len(w), 4, height, width], align_corners=False)
    return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _over(canvas: Tensor, drawn: Tensor) -> Tensor:
    """Premultiplied `drawn` over the canvas, with a soft shadow to the lower right."""
    opacity = drawn[:, 3:]
    shadow = F.avg_pool2d(F.avg_pool2d(opacity, 9, 1, 4), 9, 1, 4)
    shadow = F.pad(shadow, (3, 0, 5, 0))[:, :, : canvas.shape[2], : canvas.shape[3]]
    return canvas * (1 - 0.3 * shadow) * (1 - opacity) + drawn[:, :3]
