"""Add people to a bank of objects: `python -m examples.tiny.add_people BANK.zip FLUENT_ASSETS NOTO.ttf NEW.zip`.

FLUENT_ASSETS is `package/assets` of npm's @lobehub/fluent-emoji-3d 1.1.0, NOTO.ttf is Debian's
fonts-noto-color-emoji. This was run once; `bank.zip` beside this file is its result. Pillow needs libraqm for the
second style (its wheels have it): skin tones and professions are ligatures.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

SIZE, MARGIN = 160, 4  # pixels, as the objects of the bank
MAN, WOMAN = "\u200d\u2642\ufe0f", "\u200d\u2640\ufe0f"
PEOPLE = {
    "man": ("👨", "🧍" + MAN, "🚶" + MAN, "🏃" + MAN),
    "woman": ("👩", "🧍" + WOMAN, "🚶" + WOMAN, "🏃" + WOMAN),
    "boy": ("👦",),
    "girl": ("👧",),
    "baby": ("👶",),
    "old man": ("👴",),
    "old woman": ("👵",),
    "dancer": ("💃", "🕺"),
    "police officer": ("👮" + MAN, "👮" + WOMAN),
    "builder": ("👷" + MAN, "👷" + WOMAN),
    "astronaut": ("👨\u200d🚀", "👩\u200d🚀"),
    "cook": ("👨\u200d🍳", "👩\u200d🍳"),
    "farmer": ("👨\u200d🌾", "👩\u200d🌾"),
    "firefighter": ("👨\u200d🚒", "👩\u200d🚒"),
    "doctor": ("👨\u200d\u2695\ufe0f", "👩\u200d\u2695\ufe0f"),
    "princess": ("👸",),
    "prince": ("🤴",),
}
"""Noun -> emoji; the first is the one drawn when a prompt asks for the noun."""
TONES = {"f": ("", "🏻", "🏽", "🏿"), "n": ("", "🏼", "🏾")}
"""Skin tones (a modifier after the first letter) of each style; "" is yellow."""


def fit(image: Image.Image) -> Image.Image:
    """The drawing, cut to what is opaque and centred in a square of SIZE."""
    box = image.getchannel("A").point(lambda level: 255 * (level > 8)).getbbox()
    image = image.crop(box)
    scale = (SIZE - 2 * MARGIN) / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return square


def fluent(assets: Path, text: str) -> Image.Image | None:
    """The Fluent drawing of an emoji; its files are named by code points, with or without the variation selector."""
    name = "-".join(f"{ord(letter):x}" for letter in text)
    for candidate in (name, name.replace("-fe0f", "")):
        file = assets / f"{candidate}.webp"
        if file.is_file():
            return Image.open(file).convert("RGBA")
    return None


def noto(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    """Noto's drawing of an emoji, None where the font has no single picture for it."""
    if font.getlength(text) > 140:  # two pictures side by side: not a ligature of the font
        return None
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((10, 10), text, font=font, embedded_color=True)
    return image if image.getchannel("A").getextrema()[1] else None


def main(bank: Path, assets: Path, ttf: Path, result: Path) -> None:
    if not features.check("raqm"):
        raise SystemExit("this Pillow has no libraqm, which draws skin tones")
    font = ImageFont.truetype(str(ttf), 109, layout_engine=ImageFont.Layout.RAQM)
    with zipfile.ZipFile(bank) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new:
        meta = json.loads(old.read("meta.json"))
        for name in old.namelist():
            if name != "meta.json":
                new.writestr(zipfile.ZipInfo(name), old.read(name))
        meta["people"] = []
        for index, (noun, emoji) in enumerate(PEOPLE.items()):
            files: dict[str, list[str]] = {"f": [], "n": []}
            for style, tones in TONES.items():
                for text in [one[0] + tone + one[1:] for tone in tones for one in emoji]:
                    image = fluent(assets, text) if style == "f" else noto(font, text)
                    if image is None:
                        print(f"no {style} for {noun} {text}", file=sys.stderr)
                        continue
                    buffer = io.BytesIO()
                    fit(image).save(buffer, "WEBP", quality=86)
                    name = f"people/{index:02d}_{style}{len(files[style])}.webp"
                    new.writestr(zipfile.ZipInfo(name), buffer.getvalue())
                    files[style].append(name)
            meta["people"].append({"noun": noun, "emoji": list(emoji), **files})
        new.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta, ensure_ascii=False))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
