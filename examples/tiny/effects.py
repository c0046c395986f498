"""What can be done to a whole picture, and to a thing's colour: free functions over [N, 3, H, W] in 0..1."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny.bank import COLOURS

LUMA = (0.299, 0.587, 0.114)


def luminance(image: Tensor) -> Tensor:
    """[N, 1, H, W]: Rec. 601 luma."""
    return (image * _colour(image, *LUMA)).sum(1, keepdim=True)


def blur(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels, mirrored at the borders."""
    reach = int(3 * sigma) | 1
    offsets = torch.arange(2 * reach + 1, device=image.device) - reach
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    channels = image.shape[1]
    across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    along = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    image = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="reflect"), across, groups=channels)
    return F.conv2d(F.pad(image, (0, 0, reach, reach), mode="reflect"), along, groups=channels)


def recolour(image: Tensor, colours: Tensor) -> Tensor:
    """The image in one hue each: light and shade stay. colours: [N, 3] in 0..1, as in COLOURS."""
    light, colour = luminance(image), colours.view(-1, 3, 1, 1)
    level = 0.2 + 0.65 * light
    hue = torch.where(level < 0.5, colour * 2 * level, colour + (1 - colour) * (2 * level - 1))
    mean = colour.mean(1, keepdim=True)
    grey = torch.where(
        mean < 0.2, 0.03 + 0.3 * light, torch.where(mean > 0.9, 0.68 + 0.32 * light, 0.2 + 0.55 * light)
    )
    colourless = (colour.amax(1, keepdim=True) - colour.amin(1, keepdim=True)) < 0.01
    return torch.where(colourless, grey.expand_as(hue), hue)


def colour_table(device: torch.device | str) -> Tensor:
    """[11, 3]: COLOURS."""
    return torch.tensor(list(COLOURS.values()), device=device)


def apply(name: str, image: Tensor, tints: Tensor) -> Tensor:
    """An effect of phrases.EFFECTS. tints: [N] indices of COLOURS, for "tint"."""
    if name == "tint":
        return recolour(image, colour_table(image.device)[tints]).clamp(0, 1)
    return _EFFECTS[name](image).clamp(0, 1)


def _colour(image: Tensor, *rgb: float) -> Tensor:
    return image.new_tensor(rgb).view(1, 3, 1, 1)


def _saturate(image: Tensor, amount: float) -> Tensor:
    light = luminance(image)
    return light + amount * (image - light)


def _night(image: Tensor) -> Tensor:
    dim = 0.32 * image + 0.12 * luminance(image)
    return dim * _colour(image, 0.6, 0.75, 1.3) + _colour(image, 0, 0.01, 0.06)


def _pixels(image: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(image, 16), scale_factor=16.0)


def _sketch(image: Tensor) -> Tensor:
    smooth = blur(luminance(image), 1.0)
    across = F.pad(smooth[:, :, :, 2:] - smooth[:, :, :, :-2], (1, 1, 0, 0))
    along = F.pad(smooth[:, :, 2:] - smooth[:, :, :-2], (0, 0, 1, 1))
    return (1.02 - 3.2 * (across**2 + along**2 + 1e-6).sqrt()).expand_as(image)


_EFFECTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bw": lambda x: luminance(x).expand_as(x),
    "sepia": lambda x: luminance(x) * _colour(x, 1.02, 0.84, 0.62) + _colour(x, 0.06, 0.03, 0),
    "warm": lambda x: x * _colour(x, 1.12, 1, 0.78) + _colour(x, 0.04, 0.01, 0),
    "cool": lambda x: x * _colour(x, 0.78, 1, 1.12) + _colour(x, 0, 0.01, 0.05),
    "bright": lambda x: x.clamp(0, 1) ** 0.6,
    "dark": lambda x: x * 0.5,
    "contrast": lambda x: (x - 0.5) * 1.7 + 0.5,
    "vivid": lambda x: _saturate(x, 1.9),
    "faded": lambda x: _saturate(x, 0.45) * 0.75 + 0.2,
    "invert": lambda x: 1 - x,
    "blur": lambda x: blur(x, 3.0),
    "night": _night,
    "golden": lambda x: x * _colour(x, 1.12, 0.84, 0.52) + _colour(x, 0.1, 0.03, 0),
    "pixel": _pixels,
    "sketch": _sketch,
    "fog": lambda x: x * 0.45 + 0.48,
}
