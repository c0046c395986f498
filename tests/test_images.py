"""Reading pictures: every kind of pixel comes out as upright 8-bit sRGB, every kind of rubbish as one line."""

from __future__ import annotations

import os
import signal
import socket
import struct
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Give up root, for whom permissions mean nothing, inside a folder that anyone may write to."""
    if os.geteuid():
        yield
        return
    folder.chmod(0o777)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


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

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [
            *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
            *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")),
            *(("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
            *(("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
            *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        ],
    )
    def test_a_colour_is_the_same_in_every_mode(self, tmp_path: Path, kind: str, mode: str) -> None:
        image = Image.new("RGB", (40, 40), (255, 255, 255) if mode in ("1", "L", "LA") else RED)
        assert difference(load(save(tmp_path / "x", image.convert(mode), kind)).rgb, image) <= 2

    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path: Path) -> None:
        levels = np.tile(np.arange(256, dtype=np.uint16) * 257, (32, 1))
        picture = load(save(tmp_path / "x.png", Image.fromarray(levels)))
        assert np.array_equal(np.asarray(picture.rgb)[0, :, 0], np.arange(256))
        assert "16 bits a channel reduced to 8 bits" in picture.notes

    def test_16_bit_colour_keeps_its_high_bytes(self, tmp_path: Path) -> None:
        samples = np.asarray(scene()).astype(np.uint16) * 257
        picture = load(png(tmp_path / "x.png", samples, 16, 2))
        assert picture.rgb.tobytes() == scene().tobytes()
        assert picture.notes == ("16 bits a channel reduced to 8 bits",)

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_16_bit_grey_whose_zero_is_white_is_turned_round(self, tmp_path: Path, compression: str | None) -> None:
        levels = np.tile(np.arange(256, dtype=np.uint16) * 257, (32, 1))
        tifffile.imwrite(tmp_path / "x.tif", levels, photometric="miniswhite", compression=compression)
        assert np.array_equal(np.asarray(load(tmp_path / "x.tif").rgb)[0, :, 0], np.arange(256)[::-1])

    @pytest.mark.parametrize(
        ("dtype", "white"),
        [
            ("float32", 1),
            ("float32", 255),
            ("float32", 65535),
            ("int32", 255),
            ("int32", 65535),
            ("uint32", 2**32 - 1),
        ],
    )
    def test_wide_grey_is_scaled_to_the_white_it_seems_to_have(self, tmp_path: Path, dtype: str, white: int) -> None:
        levels = (np.tile(np.linspace(0, 1, 256), (64, 1)) * white).astype(dtype)
        tifffile.imwrite(tmp_path / "x.tif", levels)
        picture = load(tmp_path / "x.tif")
        assert np.abs(np.asarray(picture.rgb)[0, :, 0].astype(int) - np.arange(256)).max() <= 1
        assert len(picture.notes) == 1

    def test_floats_that_are_not_numbers_are_black(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "x.tif", np.full((40, 40), np.nan, np.float32))
        assert load(tmp_path / "x.tif").rgb.getpixel((0, 0)) == (0, 0, 0)

    def test_lab_is_converted(self, tmp_path: Path) -> None:
        lab = Image.new("LAB", (40, 40), (138, 209, 198))  # sRGB red in CIELAB (D50), a and b 128 higher
        picture = load(save(tmp_path / "x.tif", lab))
        assert difference(picture.rgb, Image.new("RGB", (40, 40), RED)) <= 8
        assert picture.notes == ("CIELAB converted to sRGB",)

    def test_cmyk_is_converted_and_said(self, tmp_path: Path) -> None:
        picture = load(save(tmp_path / "x.jpg", Image.new("CMYK", (40, 40), (0, 255, 255, 0))))
        assert difference(picture.rgb, Image.new("RGB", (40, 40), RED)) <= 2
        assert picture.notes == ("CMYK converted to sRGB without a profile: colours may differ",)

    def test_the_result_of_loading_carries_nothing_of_the_file_along(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.png", scene(), icc_profile=display_p3(), dpi=(300, 300))
        assert (type(load(path).rgb), load(path).rgb.info) == (Image.Image, {})


class TestColourProfiles:
    def test_display_p3_becomes_srgb(self, tmp_path: Path) -> None:
        picture = load(
            save(tmp_path / "x.png", Image.new("RGB", (40, 40), (200, 100, 100)), icc_profile=display_p3())
        )
        red, green, blue = picture.rgb.getpixel((0, 0))
        assert red > 205
        assert green < 98
        assert blue < 100
        assert picture.notes == ("colours converted from Display P3 to sRGB",)

    def test_srgb_is_left_to_the_last_bit(self, tmp_path: Path) -> None:
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        picture = load(save(tmp_path / "x.png", scene(), icc_profile=srgb))
        assert (picture.rgb.tobytes(), picture.notes) == (scene().tobytes(), ())

    def test_a_colour_profile_on_a_grey_picture_is_used(self, tmp_path: Path) -> None:
        grey = Image.new("L", (40, 40), 128)
        assert load(save(tmp_path / "x.png", grey, icc_profile=display_p3())).rgb.getpixel((0, 0)) == (128, 128, 128)

    @pytest.mark.parametrize("profile", [b"nonsense" * 40, display_p3()[:200], b"\0"])
    def test_a_broken_profile_is_ignored_and_said(self, tmp_path: Path, profile: bytes) -> None:
        picture = load(save(tmp_path / "x.png", scene(), icc_profile=profile))
        assert picture.rgb.tobytes() == scene().tobytes()
        assert picture.notes == ("broken colour profile ignored: colours taken as sRGB",)

    def test_a_profile_for_other_colours_is_ignored_and_said(self, tmp_path: Path) -> None:
        cmyk = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
        picture = load(save(tmp_path / "x.tif", cmyk, icc_profile=display_p3()))
        assert difference(picture.rgb, Image.new("RGB", (40, 40), RED)) <= 2
        assert "colour profile ignored: it is for RGB, the picture is CMYK" in picture.notes


class TestTransparency:
    def test_it_is_flattened_on_white_and_kept(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
        image.paste((0, 0, 255, 255), (0, 0, 20, 40))
        picture = load(save(tmp_path / "x.png", image))
        assert [picture.rgb.getpixel((x, 0)) for x in (0, 39)] == [BLUE, (255, 255, 255)]
        assert picture.alpha is not None
        assert picture.alpha.tobytes() == image.getchannel("A").tobytes()
        assert picture.notes == ("transparency flattened on white; the result gets it back",)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_alpha_that_hides_nothing_is_none(self, tmp_path: Path, kind: str) -> None:
        picture = load(save(tmp_path / "x", scene().convert("RGBA"), kind))
        assert (picture.alpha, picture.notes) == (None, ())

    def test_a_transparent_palette_entry(self, tmp_path: Path) -> None:
        image = Image.new("P", (40, 40), 1)
        image.putpalette([*RED, *GREEN])
        image.paste(0, (0, 0, 20, 40))
        picture = load(save(tmp_path / "x.png", image, transparency=0))
        assert [picture.rgb.getpixel((x, 0)) for x in (0, 39)] == [(255, 255, 255), GREEN]

    def test_a_palette_with_alpha(self, tmp_path: Path) -> None:
        image = Image.new("P", (40, 40), 1)
        image.putpalette([*RED, *GREEN])
        picture = load(save(tmp_path / "x.png", image, transparency=bytes([255, 51])))
        assert picture.rgb.getpixel((0, 0)) == (204, 255, 204)

    @pytest.mark.parametrize(("depth", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
    def test_a_transparent_colour_at_every_depth(self, tmp_path: Path, depth: int, colour_type: int) -> None:
        top = 2**depth - 1
        samples = np.zeros((40, 40, 3 if colour_type == 2 else 1), np.uint16)
        samples[:, 20:] = top
        key = struct.pack(">H", top) * samples.shape[2]
        picture = load(png(tmp_path / "x.png", samples, depth, colour_type, (b"tRNS", key)))
        assert picture.alpha is not None
        assert [picture.alpha.getpixel((x, 0)) for x in (0, 39)] == [255, 0]
        assert [picture.rgb.getpixel((x, 0)) for x in (0, 39)] == [(0, 0, 0), (255, 255, 255)]

    def test_premultiplied_colours_are_divided(self, tmp_path: Path) -> None:
        pixels = np.full((40, 40, 4), (100, 0, 0, 100), np.uint8)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
        assert load(tmp_path / "x.tif").rgb.getpixel((0, 0)) == (255, 155, 155)

    @given(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3))
    @settings(max_examples=300, deadline=None)
    def test_unflattening_undoes_flattening(self, alpha: int, colour: tuple[int, int, int]) -> None:
        """Wherever some colour under that alpha looks like the edited one on white; else black is the nearest."""
        edited, mask = Image.new("RGB", (2, 2), colour), Image.new("L", (2, 2), alpha)
        seen = flatten(unflatten(edited, mask).convert("RGB"), mask).getpixel((0, 0))
        darkest = 255 - alpha
        assert all(abs(max(want, darkest) - got) <= 1 for want, got in zip(colour, seen, strict=True))

    def test_unflattening_keeps_the_alpha_exactly(self) -> None:
        mask = Image.radial_gradient("L").resize((64, 48))
        assert unflatten(scene(), mask).getchannel("A").tobytes() == mask.tobytes()

    def test_a_chain_of_turns_sees_the_picture_the_turn_before_made(self, tmp_path: Path) -> None:
        mask = Image.radial_gradient("L").resize((64, 48)).point(lambda level: max(level, 40))
        edited = scene().point(lambda level: 215 + level // 8)  # light enough for every alpha
        first = load(save(tmp_path / "1.png", unflatten(edited, mask)))
        second = load(save(tmp_path / "2.png", unflatten(first.rgb, first.alpha)))
        assert difference(first.rgb, edited) <= 1
        assert difference(second.rgb, edited) <= 2

    def test_alpha_follows_a_result_of_another_size(self) -> None:
        mask = Image.new("L", (64, 48), 128)
        assert unflatten(scene((32, 24)), mask).getchannel("A").getextrema() == (128, 128)


class TestOrientation:
    WAYS = (
        None,
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,  # stored that way round, to be turned back by 270
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    )

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pictures_are_turned_upright(self, tmp_path: Path, kind: str, orientation: int) -> None:
        way = self.WAYS[orientation]
        stored = scene() if way is None else scene().transpose(way)
        exif = Image.Exif()
        exif[274] = orientation
        assert load(save(tmp_path / "x", stored, kind, exif=exif)).rgb.tobytes() == scene().tobytes()

    def test_alpha_turns_with_the_picture(self, tmp_path: Path) -> None:
        stored = scene().transpose(Image.Transpose.ROTATE_90)
        stored.putalpha(Image.linear_gradient("L").resize(stored.size))
        exif = Image.Exif()
        exif[274] = 6
        picture = load(save(tmp_path / "x.webp", stored, exif=exif, lossless=True))
        assert picture.alpha is not None
        assert picture.alpha.size == picture.rgb.size == scene().size
        assert picture.alpha.getpixel((0, 24)) > picture.alpha.getpixel((63, 24))

    @pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0"])
    def test_broken_exif_does_not_cost_the_picture(self, tmp_path: Path, exif: bytes) -> None:
        assert difference(load(save(tmp_path / "x.jpg", scene(), exif=exif, quality=95)).rgb, scene()) < 24


class TestNotes:
    def test_a_suffix_that_does_not_fit(self, tmp_path: Path) -> None:
        assert load(save(tmp_path / "x.png", scene(), "JPEG")).notes == (
            "a JPEG picture, though its name ends in .png",
        )

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_the_first_frame_of_an_animation(self, tmp_path: Path, kind: str) -> None:
        frames = [scene().rotate(30 * turn) for turn in range(12)]
        path = save(tmp_path / f"x.{kind.lower()}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
        picture = load(path)
        assert picture.notes == ("first of 12 frames",)
        assert difference(picture.rgb, frames[0]) == 0

    def test_the_first_page_of_a_tiff(self, tmp_path: Path) -> None:
        picture = load(save(tmp_path / "x.tif", scene(), save_all=True, append_images=[Image.new("RGB", (9, 9))]))
        assert picture.notes == ("first of several pages",)
        assert picture.rgb.tobytes() == scene().tobytes()

    def test_tiny_and_narrow_pictures_are_taken_with_a_word(self, tmp_path: Path) -> None:
        assert load(save(tmp_path / "1.png", Image.new("RGB", (1, 1)))).notes == (
            "only 1 x 1 pixels: expect little of the result",
        )
        long = load(save(tmp_path / "2.png", Image.new("RGB", (5000, 40))))
        assert long.size == (5000, 40)
        assert long.notes == ("5000 x 40 pixels is long and narrow: the model sees it much distorted",)


class TestRefusals:
    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(tmp_path / "x.png")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").touch()
        assert "empty" in refusal(tmp_path / "x.png")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
    def test_truncated(self, tmp_path: Path, kind: str, share: float) -> None:
        noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (48, 64, 3), np.uint8))
        path = save(tmp_path / "x", noise, kind)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        refusal(path)

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            (b"hello, world\n", "not a picture"),
            (b"GIF89a", "a GIF picture"),
            (b"\0\0\0\x18ftypheic", "a HEIC picture"),
            (b"\0\0\0\x1cftypavif", "an AVIF picture"),
            (b"%PDF-1.7", "a PDF file"),
        ],
    )
    def test_what_is_no_picture_is_named(self, tmp_path: Path, start: bytes, said: str) -> None:
        (tmp_path / "x.png").write_bytes(start + bytes(64))
        assert said in refusal(tmp_path / "x.png")

    def test_decoders_off_the_list_never_see_a_file(self, tmp_path: Path) -> None:
        refusal(save(tmp_path / "x.png", scene(), "PPM"))

    def test_a_header_that_lies_about_the_size(self, tmp_path: Path) -> None:
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
        message = refusal(tmp_path / "x.png")
        assert "60000 x 60000 pixels, 3,600.0 MP, and the limit is 179.0 MP" in message

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_too_many_pixels_in_any_format(self, tmp_path: Path, kind: str) -> None:
        assert "64 x 48 pixels" in refusal(save(tmp_path / "x", scene(), kind), max_pixels=64 * 48 - 1)
        assert load(tmp_path / "x", max_pixels=64 * 48).size == (64, 48)

    def test_a_huge_webp_that_the_decoder_itself_refuses(self, tmp_path: Path) -> None:
        canvas = struct.pack("<I", 16382)[:3] * 2
        chunk = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
        (tmp_path / "x.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)
        assert "too many pixels" in refusal(tmp_path / "x.webp")

    def test_a_file_larger_than_the_limit_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "x.png").open("wb") as file:
            file.truncate(20 * 10**9)  # sparse
        assert "20,000 MB, and the limit is 537 MB" in refusal(tmp_path / "x.png")

    def test_a_named_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.png")
        assert "a named pipe" in refusal(tmp_path / "x.png")

    def test_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("x.png")
            assert "a socket" in refusal(tmp_path / "x.png")

    def test_a_device(self) -> None:
        assert "a device" in refusal(Path("/dev/zero"))

    def test_a_folder_with_the_name_of_a_picture(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").mkdir()
        assert "a folder" in refusal(tmp_path / "x.png")

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").symlink_to("gone.png")
        assert "a symbolic link to gone.png" in refusal(tmp_path / "x.png")

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").symlink_to("x.png")
        assert "leads back to itself" in refusal(tmp_path / "x.png")

    def test_no_permission(self) -> None:
        with tempfile.TemporaryDirectory() as folder, unprivileged(Path(folder)):
            path = save(Path(folder) / "x.png", scene())
            path.chmod(0)
            assert "no permission" in refusal(path)

    def test_impossible_names(self, tmp_path: Path) -> None:
        refusal(tmp_path / ("x" * 300))
        with pytest.raises(InputError):
            load(tmp_path / "x\0y.png")

    def test_a_hostile_name_is_one_printable_line(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            load(tmp_path / os.fsdecode(b"caf\xe9\n\x1b[2J.png"))
        assert str(caught.value) == r"caf\udce9\n\x1b[2J.png: no such file; check the name"

    def test_broken_files_print_nothing(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        data = bytearray(save(tmp_path / "x.tif", scene(), compression="tiff_lzw").read_bytes())
        for at in range(8, len(data) - 300, 40):
            broken = data.copy()
            broken[at] ^= 0xFF
            (tmp_path / "y.tif").write_bytes(broken)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load_or_refuse(tmp_path / "y.tif")
        assert capfd.readouterr() == ("", "")

    def test_a_large_picture_below_the_limit_gives_no_warning(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.png", Image.new("1", (10_000, 9_000)))  # Pillow warns from 89 MP on
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load(path).size == (10_000, 9_000)


def load_or_refuse(path: Path) -> Picture | None:
    try:
        return load(path, max_pixels=1_000_000)
    except InputError:
        return None


SAMPLES = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"icc_profile": display_p3()}),
    "webp": ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
}


@pytest.mark.parametrize("sample", SAMPLES)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_bytes_at_all_raise_anything_but_an_input_error(sample: str, data: st.DataObject) -> None:
    kind, options = SAMPLES[sample]
    file = BytesIO()
    scene((24, 18)).save(file, kind, **options)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        # headers are where decoders go wrong, so half of the flips hit the first 200 bytes
        reach = len(content) if data.draw(st.booleans()) else min(200, len(content))
        content[data.draw(st.integers(0, reach - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{sample}")
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        picture = load_or_refuse(path)
    assert picture is None or picture.rgb.mode == "RGB"


class TestHash:
    def test_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abc")
        assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_of_what_cannot_be_read_is_none(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(images.MAX_BYTES + 1)
        for path in (tmp_path / "pipe", tmp_path / "loop", tmp_path / "huge", tmp_path, tmp_path / "none"):
            assert sha256(path) is None

    def test_a_pipe_swapped_in_after_the_check_does_not_hang(self, tmp_path: Path) -> None:
        path, done = tmp_path / "x", threading.Event()
        path.write_bytes(b"abc")

        def swap() -> None:
            while not done.is_set():
                os.mkfifo(tmp_path / "pipe")
                (tmp_path / "pipe").replace(path)
                (tmp_path / "file").write_bytes(b"abc")
                (tmp_path / "file").replace(path)

        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            seen, end = set(), time.monotonic() + 30
            while len(seen) < 2 and time.monotonic() < end:  # with every processor busy, many see the same
                seen |= {sha256(path) for _ in range(500)}
        finally:
            done.set()
            swapping.join()
        assert len(seen) == 2  # the hash, or None where it was a pipe
