"""Make the calibration pairs that ship with the project: pictures of 256 x 256 and the edits asked of them.

    python -m quant.make_pairs BANK.zip quant/data/pairs

BANK holds backgrounds and cut-out objects (`meta.json` names them and says which were held out; none of those is
used). Objects are pasted onto backgrounds, so that "remove the lemon" has a lemon to remove. The same seed makes the
same pictures.
"""

from __future__ import annotations

import io
import json
import random
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = 256
COUNT = 72
SEED = 20
PLACES = {
    "at the top left": (0.22, 0.24), "at the top right": (0.78, 0.24), "on the left": (0.22, 0.5),
    "on the right": (0.78, 0.5), "at the bottom left": (0.22, 0.76), "at the bottom right": (0.78, 0.76),
    "in the center": (0.5, 0.5),
}  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
SCENES = ("a beach", "a sunset", "a starry night sky", "a blue sky", "a grassy field", "a desert", "the sea")
WHOLE = (
    "Make it black and white", "Make it sepia", "Make it warmer", "Use cooler colors", "Brighten the image",
    "Make it darker", "Increase the contrast", "Make the colors more vivid", "Make the colors faded",
    "Invert the colors", "Blur the image", "Turn day into night", "Make it golden hour", "Pixelate the image",
    "Turn it into a pencil sketch", "Add fog", "Give it a blue tint", "Leave it as it is", "Make it look like sunset",
    "Make it look like an old photo", "Tint it pink",
)  # fmt: skip
KINDS = ("add", "remove", "replace", "recolour", "whole", "whole", "background", "add", "remove")


@dataclass(frozen=True)
class Bank:
    """Nouns with their cut-outs (RGBA), and backgrounds (RGB)."""

    objects: list[tuple[str, Image.Image]]
    backgrounds: list[Image.Image]


def read_bank(path: Path, rng: random.Random) -> Bank:
    with zipfile.ZipFile(path) as bank:
        meta: dict[str, Any] = json.loads(bank.read("meta.json"))

        def picture(name: str, mode: str) -> Image.Image:
            return Image.open(io.BytesIO(bank.read(name))).convert(mode)

        files = [b["file"] for b in meta["bgs"] if b["split"] == "train" and b["kind"] in ("photo", "scene")]
        chosen = rng.sample(range(len(meta["objects"])), 64)
        objects = [(meta["objects"][i]["noun"], picture(f"obj/{i:03d}_f.webp", "RGBA")) for i in chosen]
        return Bank(objects, [picture(name, "RGB") for name in files])


def make(bank: Bank, rng: random.Random, kind: str) -> tuple[Image.Image, str]:
    """One picture and an instruction that makes sense for it."""
    background = rng.choice(bank.backgrounds)
    side = round(min(background.size) * rng.uniform(0.6, 1.0))
    x, y = rng.randint(0, background.width - side), rng.randint(0, background.height - side)
    picture = background.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    (noun, cutout), (other, _) = rng.sample(bank.objects, 2)
    if kind != "add" and (kind != "whole" or rng.random() < 0.3):
        _paste(picture, cutout, rng)
    if kind == "add":
        return picture, f"Add {_article(noun)} {rng.choice(list(PLACES))}"
    if kind == "remove":
        return picture, rng.choice(("Remove the {}", "Erase the {}", "Get rid of the {}")).format(noun)
    if kind == "replace":
        return picture, f"Replace the {noun} with {_article(other)}"
    if kind == "recolour":
        return picture, rng.choice(("Make the {} {}", "Paint the {} {}")).format(noun, rng.choice(COLOURS))
    if kind == "background":
        return picture, f"Change the background to {rng.choice(SCENES)}"
    return picture, rng.choice(WHOLE)


def _paste(picture: Image.Image, cutout: Image.Image, rng: random.Random) -> None:
    size = round(SIZE * rng.uniform(0.3, 0.5))
    small = cutout.resize((size, size), Image.Resampling.LANCZOS)
    cx, cy = rng.choice(list(PLACES.values()))
    left, top = (max(0, min(SIZE - size, round(c * SIZE - size / 2))) for c in (cx, cy))
    picture.paste(small, (left, top), small)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def main(bank_file: Path, folder: Path) -> None:
    rng = random.Random(SEED)
    bank = read_bank(bank_file, rng)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(COUNT):
        picture, prompt = make(bank, rng, KINDS[index % len(KINDS)])
        name = f"{index:03d}.jpg"
        picture.save(folder / name, quality=82)
        lines.append(json.dumps({"image": name, "prompt": prompt}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
