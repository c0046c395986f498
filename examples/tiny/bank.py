"""The bank: cut-out objects in two drawing styles, people, photographs and scenes, and what of it is held out.

`bank.zip` holds RGBA drawings of 160 px (127 nouns and 17 kinds of people), square backgrounds, and `meta.json` with
their names. ATTRIBUTION.md says where each comes from.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

BANK = Path(__file__).with_name("bank.zip")
OBJECT, BACKGROUND = 160, 512  # pixels, both square

COLOURS = {
    "red": (0.9, 0.1, 0.12), "orange": (1.0, 0.5, 0.05), "yellow": (1.0, 0.85, 0.1), "green": (0.15, 0.7, 0.2),
    "blue": (0.12, 0.3, 0.95), "purple": (0.55, 0.15, 0.8), "pink": (1.0, 0.45, 0.7), "brown": (0.5, 0.3, 0.15),
    "black": (0.06, 0.06, 0.06), "white": (0.97, 0.97, 0.97), "gray": (0.5, 0.5, 0.5),
}  # fmt: skip
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SCENES = (
    "a beach", "a sunset", "a starry night sky", "a blue sky", "a grassy field", "a desert", "a snowy landscape",
    "the sea",
)  # fmt: skip

# What a photograph itself shows: there, a prompt about the pasted one would be a riddle.
SHOWN = {
    "chelsea": {"cat"}, "astronaut": {"people", "rocket"}, "camera": {"people", "camera"}, "rocket": {"rocket"},
    "flower": {"sunflower", "rose", "tulip"}, "Wine": {"drum", "chair"}, "coffee": {"cup of coffee"},
    "friends": {"dog"}, "sunset": {"sun"},
    "view-city": {"car", "house"}, "view-courtyard": {"dog", "house", "palm tree"},
    "view-forest": {"tree"}, "view-interior": {"tv", "chair"}, "view-night": {"tree", "star"},
    "view-studio": {"light bulb"}, "view-sunrise": {"sun", "tree"}, "view-sunset": {"people", "sun", "house"},
    "view-city2": {"house", "star"}, "view-dawn2": {"moon"}, "view-forest2": {"tree", "pine tree"},
    "view-night2": {"tree", "star"}, "view-studio2": {"light bulb", "umbrella"},
}  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A thing that can be drawn. `sprites`: of each style ("f", "n"), the numbers of its drawings in the bank."""

    name: str
    person: bool
    sprites: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Backdrop:
    """A background. `kind`: photo, scene or pattern; `scene`: the index in SCENES, or -1."""

    kind: str
    held_out: bool
    scene: int
    shows: frozenset[str]


@dataclass(frozen=True)
class Index:
    """All names of the bank and no pixels: what is needed to plan pairs."""

    nouns: tuple[Noun, ...]
    backdrops: tuple[Backdrop, ...]
    sprite_files: tuple[str, ...]
    backdrop_files: tuple[str, ...]


@dataclass(frozen=True)
class Pixels:
    """The bank on a device: sprites [N, 2, 4, 160, 160] (sharp and halved, premultiplied), backdrops uint8."""

    sprites: torch.Tensor
    backdrops: torch.Tensor


def held_out_drawing(noun: int, style: str) -> bool:
    """The second style of every third noun is never drawn in training."""
    return style == "n" and noun % 3 == 0


def held_out_colour(noun: int, colour: int) -> bool:
    """An eighth of all pairs of noun and colour is never asked for in training."""
    return (noun * 7 + colour * 3) % 8 == 0


def read_index(path: Path = BANK) -> Index:
    """The bank's names. Objects come first, so that their numbers are those of the first release."""
    with zipfile.ZipFile(path) as bank:
        meta: dict[str, Any] = json.loads(bank.read("meta.json"))
    files: list[str] = []
    nouns = []
    for number, entry in enumerate(meta["objects"]):
        nouns.append(Noun(entry["noun"], False, {"f": (len(files),), "n": (len(files) + 1,)}))
        files += [f"obj/{number:03d}_f.webp", f"obj/{number:03d}_n.webp"]
    for entry in meta["people"]:
        sprites = {}
        for style in "fn":
            sprites[style] = tuple(range(len(files), len(files) + len(entry[style])))
            files += entry[style]
        nouns.append(Noun(entry["noun"], True, sprites))
    backdrops = []
    for entry in meta["bgs"]:
        source = Path(entry["file"]).stem.split("_")[1] if entry["kind"] == "photo" else ""
        scene = SCENES.index(entry["scene"]) if entry["kind"] == "scene" else -1
        kind = "pattern" if entry["kind"] == "proc" else entry["kind"]
        backdrops.append(Backdrop(kind, entry["split"] == "test", scene, frozenset(SHOWN.get(source, ()))))
    return Index(tuple(nouns), tuple(backdrops), tuple(files), tuple(entry["file"] for entry in meta["bgs"]))


def read_pixels(index: Index, device: str | torch.device, path: Path = BANK) -> Pixels:
    """Decode every picture of the bank onto the device: 0.5 GB there."""
    import torch
    import torch.nn.functional as F

    with zipfile.ZipFile(path) as bank:

        def picture(name: str, mode: str) -> torch.Tensor:
            image = Image.open(io.BytesIO(bank.read(name))).convert(mode)
            if mode == "RGB":
                image = image.resize((BACKGROUND, BACKGROUND), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        sprites = torch.stack([picture(name, "RGBA") for name in index.sprite_files])
        backdrops = torch.stack([picture(name, "RGB") for name in index.backdrop_files])
    levels = []
    for part in sprites.split(64):
        sharp = part.to(device).float() / 255
        sharp[:, :3] *= sharp[:, 3:]
        halved = F.interpolate(F.avg_pool2d(sharp, 2), size=OBJECT, mode="bilinear")
        levels.append(torch.stack([sharp, halved], 1).half())
    return Pixels(torch.cat(levels), backdrops.to(device))
