"""Make the pictures of the README and of kontext-tiny's model card: `make pictures`.

Every edit runs through the same code as `kontext-tui run`, with the seeds written here, so the pictures can be made
again by anyone, and are made again whenever the embedded model changes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from core.edit import images
from core.edit.studio import LoadedSession, LocalStudio

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
SEED = 7
GAP, CAPTION = 8, 22  # pixels


@dataclass(frozen=True)
class Chain:
    """A photograph and the turns it goes through, one after the other."""

    photo: str
    prompts: tuple[str, ...]


STRIP = (
    Chain("pavilion.jpg", ("Add a balloon at the top right", "Make it golden hour")),
    Chain("coffee.png", ("Make it cooler", "Turn it into a pencil sketch")),
    Chain("sunset.jpg", ("Add fog", "Turn day into night")),
)

# Photographs the model never saw in training; the failures are shown too.
CARD = (
    Chain("dogs.jpg", ("Make it black and white",)),
    Chain("dogs.jpg", ("Turn it into a pencil sketch",)),
    Chain("dogs.jpg", ("Add a soccer ball at the bottom right",)),
    Chain("dogs.jpg", ("Remove the dogs",)),
    Chain("coffee.png", ("Make it cooler",)),
    Chain("coffee.png", ("Add a strawberry on the left",)),
    Chain("coffee.png", ("Add a strawberry on the left", "Make the strawberry blue")),
    Chain("coffee.png", ("Make the cup blue",)),
    Chain("pavilion.jpg", ("Turn day into night",)),
    Chain("pavilion.jpg", ("Make it look like an old photo",)),
    Chain("pavilion.jpg", ("Add a balloon at the top right",)),
    Chain("pavilion.jpg", ("Add a balloon at the top right", "Remove the balloon")),
    Chain("sunset.jpg", ("Invert the colors",)),
    Chain("sunset.jpg", ("Add fog",)),
    Chain("sunset.jpg", ("Add a rocket at the top right", "Replace the rocket with a moon")),
    Chain("sunset.jpg", ("Make it a watercolour painting",)),
    Chain("pavilion.jpg", ("Add a police officer at the bottom left", "Remove all the people in this image")),
    Chain("sunset.jpg", ("Add two balloons at the top and add fog",)),
    Chain("pavilion.jpg", ("Show me a green apple on the right",)),
    Chain("sunset.jpg", ("Add a rocket at the top right", "I'd like the rocket to be blue")),
)


def main(strip: Path, card: Path) -> None:
    os.chdir(ROOT)
    editor = LocalStudio("cpu").open("kontext-tiny", "auto", "auto")
    _sheet([_edit(editor, chain) for chain in STRIP], STRIP, columns=1, height=220).save(strip, quality=90)
    _sheet([_edit(editor, chain)[-2:] for chain in CARD], CARD, columns=2, height=160).save(card, quality=88)


def _edit(editor: LoadedSession, chain: Chain) -> list[Image.Image]:
    """The photograph and the result of each turn."""
    spec = editor.model.spec
    results = [images.load(PHOTOS / chain.photo).rgb]
    for turn, prompt in enumerate(chain.prompts):
        edit = editor.edit(
            results[-1], prompt, seed=SEED + turn, steps=spec.steps, guidance=spec.guidance,
            keep_model_size=False, context_refresh=1, on_step=None, resume=None,
        )  # fmt: skip
        results.append(edit.image)
    return results


def _sheet(rows: list[list[Image.Image]], chains: tuple[Chain, ...], *, columns: int, height: int) -> Image.Image:
    """Rows of pictures of one height, each picture captioned by the prompt that made it."""
    scaled = [[image.resize((round(image.width * height / image.height), height)) for image in row] for row in rows]
    width = max(sum(image.width + GAP for image in row) for row in scaled)
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, lines * (height + CAPTION + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (row, chain) in enumerate(zip(scaled, chains, strict=True)):
        x, y = index % columns * width + GAP, index // columns * (height + CAPTION + GAP) + GAP
        for image, caption in zip(row, ["", *chain.prompts][-len(row) :], strict=True):
            sheet.paste(image, (x, y))
            font = _fitting(caption, width // len(row) - GAP)
            draw.text((x, y + height + 2), caption, fill="black", font=font)
            x += image.width + GAP
    return sheet


def _fitting(caption: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font, to 14 pixels, in which the caption is no wider than that."""
    for size in range(14, 9, -1):
        font = ImageFont.load_default(size=size)
        if font.getlength(caption) <= width:
            break
    return font


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
