"""Contact sheets: pictures side by side, with what was asked for below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, CAPTION = 4, 16  # pixels


def contact_sheet(
    rows: Sequence[tuple[Sequence[Tensor], str]], *, columns: int = 4, height: int = 128
) -> Image.Image:
    """Each entry's pictures ([3, H, W] in 0..1) in a strip, with its caption; `columns` strips side by side."""
    strips = [_strip(pictures, caption, height) for pictures, caption in rows]
    width = max(strip.width for strip in strips)
    lines = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP), lines * (height + CAPTION)), "white")
    for number, strip in enumerate(strips):
        sheet.paste(strip, (number % columns * (width + GAP), number // columns * (height + CAPTION)))
    return sheet


def _strip(pictures: Sequence[Tensor], caption: str, height: int) -> Image.Image:
    images = [to_image(picture) for picture in pictures]
    widths = [round(image.width * height / image.height) for image in images]
    strip = Image.new("RGB", (sum(widths) + GAP * len(images), height + CAPTION), "white")
    x = 0
    for image, width in zip(images, widths, strict=True):
        strip.paste(image.resize((width, height), Image.Resampling.LANCZOS), (x, 0))
        x += width + GAP
    font = ImageFont.load_default(size=11)
    while caption and font.getlength(caption) > strip.width:
        caption = caption[:-1]
    ImageDraw.Draw(strip).text((1, height), caption, fill="black", font=font)
    return strip


def to_image(picture: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 as an RGB picture."""
    array = picture.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((array * 255).round().astype(np.uint8))
