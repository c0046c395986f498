"""How near edits come to their targets. Pictures are [N, 3, H, W] in 0..1, masks [N, 1, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.edit import editor, sampling
from core.edit.loading import Model
from core.edit.sampling import Conditioning
from examples.tiny import effects
from examples.tiny.model import GUIDANCE, image_ids, to_tokens, token_ids

LEFT_UNDONE = 0.5
"""An edit is ok if less than this share of the required change is left undone."""
AT_ONCE = 48  # pictures


@torch.inference_mode()
def edit(model: Model, image: Tensor, prompts: Sequence[str], *, steps: int, seed: int) -> Tensor:
    """Edit many pictures of one size as the editor does one, picture i with the noise of seed + i; 8-bit levels."""
    found = []
    for start in range(0, len(prompts), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        part = image[rows].to(model.device)
        height, width = part.shape[2:]
        context = to_tokens(model, part)
        noise = [
            sampling.make_noise(
                seed + start + row, model.vae.config.latent_channels, height // 8, width // 8, like=context
            )
            for row in range(len(part))
        ]
        clip, t5 = (ids.to(model.device) for ids in token_ids(model, prompts[rows]))
        ids = image_ids((width, height), like=context)
        given = Conditioning(
            context=context,
            prompt=model.text_encoder_2(input_ids=t5)[0],
            pooled=model.text_encoder(input_ids=clip).pooler_output,
            image_ids=ids,
            text_ids=torch.zeros(t5.shape[1], 3, device=model.device),
            guidance=torch.full([len(part)], GUIDANCE, device=model.device),
        )
        sigmas = sampling.schedule(model.scheduler, steps, image_tokens=context.shape[1])
        latents = sampling.denoise(_predict(model, given), torch.cat(noise), sigmas)
        found.append(in_levels(editor.decode(model, latents, width, height) / 2 + 0.5).to(image.device))
    return torch.cat(found)


def _predict(model: Model, given: Conditioning) -> sampling.Predict:
    from core.edit.runtimes.torch_runtime import TorchRuntime

    return TorchRuntime(model.transformer).begin(replace(given))


def in_levels(image: Tensor) -> Tensor:
    """Clipped to 0..1 and rounded to 8 bits."""
    return (image.clamp(0, 1) * 255).round() / 255


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N] in dB over the pixels of the mask; 70 where nothing differs."""
    if mask is None:
        mask = torch.ones_like(target[:, :1])
    error = ((image - target) ** 2 * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3))).clamp_min(1)
    return -10 * torch.log10(error.clamp_min(1e-7))


def undone(image: Tensor, source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """[N]: the error left inside the mask, as a share of what the source's was: 0 is the target, 1 the source."""
    left = ((image - target).abs() * mask).sum((1, 2, 3))
    return left / ((source - target).abs() * mask).sum((1, 2, 3)).clamp_min(1e-6)


def all_done(image: Tensor, source: Tensor, target: Tensor, mask: Tensor, things: Tensor) -> Tensor:
    """[N] bool: each changed thing ok by itself, and so is the rest of the mask, where that is more than a margin.

    things: [N, L, H, W] bool, as compose gives them.
    """
    done = torch.ones(len(image), dtype=torch.bool, device=image.device)
    for level in range(things.shape[1]):
        part = mask * things[:, level : level + 1]
        done &= (undone(image, source, target, part) < LEFT_UNDONE) | (part.sum((1, 2, 3)) < 16)
    rest = mask * (1 - F.max_pool2d(things.any(1, keepdim=True).float(), 25, 1, 12))
    return done & ((undone(image, source, target, rest) < LEFT_UNDONE) | (rest.mean((1, 2, 3)) < 0.05))


def inpainted(source: Tensor, mask: Tensor) -> Tensor | None:
    """What a program makes of removals that is told where they are: OpenCV's inpainting (Telea, 2004) of the exact
    mask and a pixel around it. What it cannot guess from the surroundings is hard to guess. None without OpenCV."""
    try:
        import cv2
    except ImportError:
        return None
    pictures = (source.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    holes = F.max_pool2d(mask, 3, 1, 1)[:, 0].to(torch.uint8).cpu().numpy()
    filled = [cv2.inpaint(picture, hole, 5, cv2.INPAINT_TELEA) for picture, hole in zip(pictures, holes, strict=True)]
    return torch.stack([torch.from_numpy(each) for each in filled]).permute(0, 3, 1, 2).to(source) / 255


def colour_found(image: Tensor, source: Tensor, thing: Tensor) -> Tensor:
    """[N]: the index of the colour that the thing's mean is nearest to, of the source's thing in each colour."""
    area = thing.float()

    def mean(picture: Tensor) -> Tensor:
        return (picture * area).sum((2, 3)) / area.sum((2, 3)).clamp_min(1)

    table = effects.colour_table(image.device)
    each = [mean(effects.recolour(source, colour.expand(len(source), 3))) for colour in table]
    return ((mean(image)[:, None] - torch.stack(each, 1)) ** 2).sum(2).argmin(1)


def outside(mask: Tensor) -> Tensor:
    """The mask of what is not within 8 pixels of the change."""
    return 1 - F.max_pool2d(mask, 17, 1, 8)
