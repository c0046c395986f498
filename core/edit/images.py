"""Reading pictures: any path in, an upright 8-bit sRGB picture out, or one InputError of one line.

A folder of photographs holds everything: truncated downloads, pipes, files that lie about their size, phone
pictures lying on their side. Nothing here hangs, and whatever the bytes are, only InputError comes out.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageFile, ImageOps

from core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses. The largest cameras (151 MP) fit; of phones, all but their 200 MP modes. A picture of
this size is loaded in 3 GB of memory."""

MAX_BYTES = 512 * 1024**2
"""Of a file: the whole of it is held in memory while it is decoded."""

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
}
"""The decoders allowed to see a file, of the seventy formats Pillow knows, and the suffixes they go by."""

FOREIGN = {
    (0, b"GIF8"): "a GIF picture",
    (4, b"ftypavif"): "an AVIF picture",
    (4, b"ftyphei"): "a HEIC picture",
    (4, b"ftypmif1"): "a HEIC picture",
    (4, b"ftypcrx"): "a raw photograph",
    (0, b"FUJIFILM"): "a raw photograph",
    (0, b"\xff\x0a"): "a JPEG XL picture",
    (4, b"JXL "): "a JPEG XL picture",
    (4, b"jP  "): "a JPEG 2000 picture",
    (0, b"8BPS"): "a Photoshop file",
    (0, b"%PDF"): "a PDF file",
    (0, b"<svg"): "an SVG drawing",
}
"""(offset, magic number) of what else turns up among photographs, to refuse it by name."""

SMALL_SIDE = 32  # pixels
LONG_ASPECT = 4.0  # long side over short side


@dataclass(frozen=True)
class Picture:
    """A picture ready to be edited."""

    rgb: Image.Image
    """Upright, sRGB, 8 bits a channel; transparency flattened on white."""
    alpha: Image.Image | None
    """L, of the same size, when some of the picture is transparent: `unflatten` gives it back to a result."""
    notes: tuple[str, ...]
    """What had to be changed on the way in, in plain sentences."""
    format: str
    """A key of FORMATS: what the content is, whatever the suffix says."""
    sha256: str
    """Of the very bytes that were decoded, in hexadecimal."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return self.rgb.size


def load(path: Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Picture:
    """Read and decode a picture, or raise InputError: "NAME: what is wrong; what to do"."""
    name = shown(path.name or str(path))
    data = _read(path, name, max_bytes)
    try:
        return _decode(data, path, name, max_pixels)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels ({error}); save a smaller copy") from error
    except MemoryError as error:
        raise InputError(f"{name}: too big for this computer's memory; save a smaller copy") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, EOFError and nearly anything else
        why = shown(str(error))[:120] or type(error).__name__
        raise InputError(
            f"{name}: broken, truncated or of a kind not read here ({why}); copy or export it again"
        ) from error


def sha256(path: Path) -> str | None:
    """Of a regular file's content, in hexadecimal; None when there is none to be read. Never waits."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            if _size(file) > MAX_BYTES:
                return None
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. Anything else, a named pipe above all, is an OSError at once.

    The path is checked before opening, because opening a device can do things, and what was opened is checked
    again, because a path can change hands in between. O_NONBLOCK keeps that second case from waiting.
    """
    _require_regular(path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _require_regular(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def flatten(colour: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """The RGB picture on a white ground."""
    if alpha is None:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)


def unflatten(edited: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """The RGBA picture that looks like `edited` on white, to one level of 255: the inverse of `flatten`.

    Where `edited` is darker than any colour can look under its alpha, it is black, the nearest there is. Where
    alpha is 0 nothing shows, and the edited colour is kept for whoever takes the alpha off. An alpha of another
    size is resampled.
    """
    if alpha is None:
        return edited
    import numpy as np  # 0.15 s to import

    if alpha.size != edited.size:
        alpha = alpha.resize(edited.size, Image.Resampling.LANCZOS)
    stored = _colours_under_alpha()
    result = edited.copy()
    for top in range(0, edited.height, 256):  # in bands: indexing a whole picture takes 24 bytes a pixel
        box = (0, top, edited.width, min(top + 256, edited.height))
        colours = stored[np.asarray(alpha.crop(box))[..., None], np.asarray(edited.crop(box))]
        result.paste(Image.fromarray(colours), box)
    result.putalpha(alpha)
    return result


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep what decoders say about broken files off the terminal: a screen may be drawn there."""
    _silence_libraries()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def shown(text: str) -> str:
    """Text of unknown origin as one line that any terminal and any database takes: the rest as escapes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class NotRegular(OSError):
    """A path to something that is not a regular file."""


def _require_regular(mode: int) -> None:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a device",
        stat.S_IFCHR: "a device",
    }
    if not stat.S_ISREG(mode):
        raise NotRegular(f"{kinds.get(stat.S_IFMT(mode), 'no file')}, not a picture; take it out of the input")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read(path: Path, name: str, max_bytes: int) -> bytes:
    """The content of a regular file, all at once: it may change or vanish later."""
    try:
        with open_regular(path) as file:
            size = _size(file)
            data = file.read(size) if size <= max_bytes else b""
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{name}: {_refusal(path, error)}") from error
    if size > max_bytes:
        limit = f"{size / 1e6:,.0f} MB, and the limit is {max_bytes / 1e6:,.0f} MB"
        raise InputError(f"{name}: a file of {limit}; save a smaller copy")
    if not data:
        raise InputError(f"{name}: empty, 0 bytes; copy or export it again")
    return data


def _refusal(path: Path, error: OSError | ValueError) -> str:
    """What keeps a path from being read, and what to do about it."""
    match getattr(error, "errno", None):
        case errno.ENOENT if path.is_symlink():
            return f"a symbolic link to {shown(str(path.readlink()))}, which is missing; mend or remove the link"
        case errno.ENOENT | errno.ENOTDIR:
            return "no such file; check the name"
        case errno.ELOOP:
            return "a symbolic link that leads back to itself; remove it"
        case errno.EACCES | errno.EPERM:
            return "no permission to read it; change its owner or mode"
        case errno.ENAMETOOLONG:
            return "a name too long for this disk; rename it"
    if isinstance(error, NotRegular):
        return str(error)
    return f"cannot be read ({shown(str(error))}); copy it again"


def _decode(data: bytes, path: Path, name: str, max_pixels: int) -> Picture:
    from core.edit.colour import to_srgb

    with quiet_decoders():
        image = _open(data, name)
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(
                f"{name}: {width} x {height} pixels, {width * height / 1e6:,.1f} MP, "
                f"and the limit is {max_pixels / 1e6:,.1f} MP; save a smaller copy"
            )
        rawmode = _rawmode(image)
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
            notes = []
        except Exception:  # of the EXIF parser, on a picture that is whole
            notes = ["broken EXIF data: the picture may lie on its side"]
        colour, alpha, colour_notes = to_srgb(image, rawmode)
    if alpha is not None:
        notes.append("transparency flattened on white; the result gets it back")
    rgb = flatten(colour, alpha)
    rgb.info = {}  # the file's profile and EXIF are spent; Pillow would save them with the picture
    return Picture(
        rgb, alpha, (*_notes(image, path), *colour_notes, *notes), _format(image), hashlib.sha256(data).hexdigest()
    )


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """The picture's header, read by the one decoder its first bytes call for.

    Image.open would do, but it warns and refuses by limits of its own, which are global to the process.
    """
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    for kind in FORMATS:
        factory, accept = Image.OPEN[kind]
        if accept is not None and accept(data[:16]) is True:
            return factory(BytesIO(data), "")
    for (offset, magic), what in FOREIGN.items():
        if data.startswith(magic, offset):
            raise InputError(f"{name}: {what}; convert it to PNG, JPEG, WebP, TIFF or BMP first")
    raise InputError(f"{name}: not a picture, whatever its name says; take it out of the input")


def _format(image: ImageFile.ImageFile) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with more of them behind it


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the file stores its samples, in Pillow's words; "" when the decoder does not say."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _notes(image: ImageFile.ImageFile, path: Path) -> list[str]:
    notes = []
    kind = _format(image)
    if path.suffix and path.suffix.lower() not in FORMATS[kind]:
        notes.append(f"a {kind} picture, though its name ends in {shown(path.suffix)}")
    if kind == "TIFF" and getattr(image, "is_animated", False):  # counting pages would follow links in the file
        notes.append("first of several pages")
    elif kind != "JPEG" and (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"first of {frames} frames")
    width, height = image.size
    if min(width, height) < SMALL_SIDE:
        notes.append(f"only {width} x {height} pixels: expect little of the result")
    if max(width, height) > LONG_ASPECT * min(width, height):
        notes.append(f"{width} x {height} pixels is long and narrow: the model sees it much distorted")
    return notes


@cache
def _colours_under_alpha() -> NDArray[np.uint8]:
    """[alpha, level on white] -> the level to store: white - (white - level) / alpha."""
    import numpy as np

    level, alpha = np.arange(256), np.arange(256)[:, None]
    stored = np.rint(255 - 255 * (255 - level) / np.maximum(alpha, 1)).clip(0, 255)
    stored[0] = level
    return stored.astype(np.uint8)


@cache
def _silence_libraries() -> None:
    """Take the log lines of Pillow and the messages of libtiff, which prints them itself, off the terminal."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mapped = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    for library in {line.split(maxsplit=5)[-1] for line in mapped if "libtiff" in line}:
        set_handler = ctypes.CDLL(library).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)
