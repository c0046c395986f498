"""Any pixels Pillow decodes, as 8-bit sRGB and alpha, with a note for every change somebody could see.

A note is a plain sentence. The name of a colour profile inside one comes from the file: foreign text.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageChops

if TYPE_CHECKING:
    from PIL import ImageCms

SAME_LEVELS = 2
"""A profile that moves no colour by more levels of 255 than this is sRGB by another name: nothing to convert."""

ICC_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
PHOTOMETRIC = 262  # TIFF tag; 0 is WhiteIsZero


def to_srgb(image: Image.Image, rawmode: str) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """(RGB colours, L alpha or None, notes) of a decoded picture of any mode.

    `rawmode` is how the file stores its samples, in Pillow's words: "RGB;16B", "L;4". Colours under the alpha
    stay as they are. An alpha that hides nothing is no alpha.
    """
    notes: list[str] = []
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled_grey(image, rawmode, notes)
    else:
        _scale_colour_key(image, rawmode)
        if ";16" in rawmode:  # Pillow has kept the high byte of each sample
            notes.append("16 bits a channel reduced to 8 bits")
    colour, alpha = _split_alpha(image)
    colour = _to_rgb(colour, profile, notes)
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None
    return colour, alpha, notes


def _scaled_grey(image: Image.Image, rawmode: str, notes: list[str]) -> Image.Image:
    """A grey picture of wide samples as L, or as LA when it has a transparent level.

    Pillow's own conversion clips: every level above 255 turns white. Here white is the samples' full range, 4095
    or 65535, and for floats and 32 bits, which have none, the least of 1, 255 and 65535 that holds them all.
    Other levels are stretched, the lowest to black and the highest to white.
    """
    import numpy as np  # 0.15 s to import, and few pictures need it

    samples = np.asarray(image)
    if rawmode.startswith("I;32N") or rawmode.startswith("I;32BN"):  # unsigned in the file, signed in Pillow
        samples = samples.view(np.uint32)
    levels = np.nan_to_num(samples.astype(np.float32), posinf=0, neginf=0)
    whites = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (4095,) if "12" in rawmode else (65535,))
    darkest, lightest = float(levels.min()), float(levels.max())
    white = next((white for white in whites if darkest >= 0 and lightest <= white), None)
    if white is None:
        notes.append(f"grey levels from {darkest:g} to {lightest:g} stretched to 8 bits")
        levels = (levels - darkest) * (255 / ((lightest - darkest) or 1))
    else:
        wide = {"F": "floating-point levels", "I": "integer levels"}.get(image.mode, "16 bits a channel")
        notes.append(f"{wide} reduced to 8 bits")
        levels *= 255 / white
    grey = np.rint(levels).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # Pillow inverts these only up to 8 bits
        grey = 255 - grey
    scaled = Image.fromarray(grey)
    if isinstance(key := image.info.get("transparency"), int):
        scaled.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return scaled


def _scale_colour_key(image: Image.Image, rawmode: str) -> None:
    """Bring the transparent colour of a PNG from the bit depth of the file to the 8 bits of the picture."""
    key = image.info.get("transparency")
    if rawmode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif rawmode.startswith("RGB;16") and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(colours as L, RGB, CMYK or LAB; alpha)."""
    if image.mode in ("CMYK", "LAB"):
        return image, None
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode), None
    image = image.convert(mode + "A")
    return image.convert(mode), image.getchannel("A")


def _to_rgb(colour: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if colour.mode == "LAB":
        from PIL import ImageCms

        notes.append("CIELAB converted to sRGB")
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _apply(_transform_to_srgb(lab, "LAB"), colour)
    converted, name = _by_profile(colour, profile, notes) if profile else (None, "")
    if colour.mode == "CMYK":
        how = f"by its profile, {name}" if converted else "without a profile: colours may differ"
        notes.append(f"CMYK converted to sRGB {how}")
    elif converted:
        notes.append(f"colours converted from {name} to sRGB")
    return converted or (colour if colour.mode == "RGB" else colour.convert("RGB"))


def _by_profile(colour: Image.Image, profile: bytes, notes: list[str]) -> tuple[Image.Image | None, str]:
    """(the picture in sRGB, the profile's name), or no picture where the profile changes or means nothing."""
    from PIL import ImageCms  # loads Little CMS

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        name = _printable(ImageCms.getProfileDescription(source))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and colour.mode == "L":
            colour = colour.convert("RGB")
        if ICC_MODES.get(space) != colour.mode:
            notes.append(f"colour profile ignored: it is for {_printable(space)}, the picture is {colour.mode}")
            return None, name
        transform = _transform_to_srgb(source, colour.mode)
        return (None if _changes_nothing(transform, colour.mode) else _apply(transform, colour)), name
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("broken colour profile ignored: colours taken as sRGB")
        return None, ""


def _transform_to_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours from all over a mode come out as they are."""
    if mode == "CMYK":
        return False
    ramp = Image.linear_gradient("L").resize((16, 16))
    probe = ramp if mode == "L" else Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    moved = ImageChops.difference(_apply(transform, probe), probe.convert("RGB"))
    return max(moved.tobytes()) <= SAME_LEVELS


def _apply(transform: ImageCms.ImageCmsTransform, colour: Image.Image) -> Image.Image:
    from PIL import ImageCms

    return cast(Image.Image, ImageCms.applyTransform(colour, transform))  # None only when told to work in place


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:60].strip() or "a profile without a name"
