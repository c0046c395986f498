"""Results on disk: what they are called, what they say about themselves, and that they are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from core.edit import images, metadata, outputs
from core.edit.outputs import (
    check_folder,
    encode,
    final_path,
    free_name,
    free_paths,
    is_disk_full,
    is_result,
    matches,
    publish,
    read_metadata,
    turn_paths,
    write_part,
)
from core.errors import OutputError

ROOT = Path(__file__).parents[1]
KINDS = (".png", ".jpg", ".webp")
RECORD: dict[str, Any] = {
    "software": "kontext-tui 0.1.0",
    "ai_generated": True,
    "model": "kontext-tiny",
    "precision": "bf16",
    "runtime": "torch",
    "input": {"name": "caf\udce9.png", "sha256": "0" * 64},
    "prompt": 'Füge "einen" Hut <hinzu> & 帽子\n\x1b[2J',
    "seed": 2**62,
    "steps": 20,
    "guidance": 2.5,
    "turns": [{"turn": 1, "prompt": "Add a hat", "seed": 7, "steps": 20, "guidance": 2.5}],
}


def noise(size: tuple[int, int] = (64, 48), channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (size[1], size[0], channels), np.uint8))


def put(path: Path, data: bytes) -> Path:
    publish(write_part(data, path, "token"), path)
    return path


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder to work in without being root, for whom permissions mean nothing."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


class TestEncoding:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_png_keeps_every_pixel(self, tmp_path: Path, mode: str) -> None:
        image = noise(channels=len(mode))
        with Image.open(put(tmp_path / "x.png", encode(image, ".png", RECORD))) as saved:
            assert (saved.mode, saved.tobytes()) == (mode, image.tobytes())

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".JPG"])
    def test_the_suffix_chooses_the_format(self, tmp_path: Path, suffix: str) -> None:
        with Image.open(put(tmp_path / f"x{suffix}", encode(noise(), suffix, RECORD))) as saved:
            assert saved.format == {".webp": "WEBP"}.get(suffix, "JPEG")

    def test_jpeg_keeps_the_full_colour_resolution(self, tmp_path: Path) -> None:
        stripes = Image.fromarray(np.tile(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), (32, 16, 1)))
        with Image.open(put(tmp_path / "x.jpg", encode(stripes, ".jpg", RECORD))) as saved:
            assert max(ImageChops.difference(saved, stripes).tobytes()) < 40

    def test_jpeg_puts_transparency_on_white(self, tmp_path: Path) -> None:
        with Image.open(put(tmp_path / "x.jpg", encode(Image.new("RGBA", (16, 16)), ".jpg", RECORD))) as saved:
            assert saved.getpixel((8, 8)) == (255, 255, 255)

    def test_webp_keeps_transparency(self, tmp_path: Path) -> None:
        image = noise(channels=4)
        with Image.open(put(tmp_path / "x.webp", encode(image, ".webp", RECORD))) as saved:
            assert saved.getchannel("A").tobytes() == image.getchannel("A").tobytes()

    def test_large_noise_fits_into_a_jpeg(self) -> None:
        assert len(encode(noise((2000, 1500)), ".jpg", RECORD)) > 2_000_000

    @pytest.mark.parametrize("suffix", KINDS)
    def test_the_same_picture_and_record_give_the_same_bytes(self, suffix: str) -> None:
        """In another process, later, and with the record's entries in another order."""
        here = sha256(encode(noise(), suffix, RECORD)).hexdigest()
        script = (
            "import sys, json; sys.path.insert(0, sys.argv[1]); from hashlib import sha256; from tests.test_outputs"
            " import *; print(sha256(encode(noise(), sys.argv[2], dict(reversed(RECORD.items())))).hexdigest())"
        )
        time.sleep(1.1 if suffix == ".jpg" else 0)  # past the second that a time stamp would show
        done = subprocess.run(
            [sys.executable, "-c", script, str(ROOT), suffix], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.strip() == here

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_the_colours_are_said_to_be_srgb(self, tmp_path: Path, suffix: str) -> None:
        with Image.open(put(tmp_path / f"x{suffix}", encode(noise(), suffix, RECORD))) as saved:
            profile = ImageCms.ImageCmsProfile(BytesIO(saved.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)

    def test_a_png_says_srgb_in_its_own_chunk(self) -> None:
        assert b"\0\0\0\x01sRGB\0" in encode(noise(), ".png", RECORD)

    @pytest.mark.parametrize("suffix", KINDS)
    def test_nothing_of_the_origin_is_written(self, suffix: str) -> None:
        image = noise()
        image.info = {"icc_profile": b"a profile", "exif": b"Exif\0\0 a place", "comment": b"a comment", "xmp": b"x"}
        assert encode(image, suffix, RECORD) == encode(noise(), suffix, RECORD)

    def test_a_format_we_do_not_write(self) -> None:
        with pytest.raises(OutputError, match=r"\.tif: results are written as \.png"):
            encode(noise(), ".tif", RECORD)

    @pytest.mark.parametrize(("suffix", "width"), [(".webp", 16_384), (".jpg", 65_501)])
    def test_a_picture_too_large_for_its_format(self, suffix: str, width: int) -> None:
        with pytest.raises(OutputError, match=f"{width} x 1 pixels is too large"):
            encode(Image.new("RGB", (width, 1)), suffix, RECORD)
        encode(Image.new("RGB", (width - 1, 1)), suffix, RECORD)


class TestMetadata:
    @pytest.mark.parametrize("suffix", KINDS)
    def test_the_record_comes_back_as_it_was(self, tmp_path: Path, suffix: str) -> None:
        assert read_metadata(put(tmp_path / f"x{suffix}", encode(noise(), suffix, RECORD))) == RECORD

    @pytest.mark.parametrize("suffix", KINDS)
    def test_the_disclosure_is_in_the_iptcs_words(self, suffix: str) -> None:
        assert b"/digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in encode(noise(), suffix, RECORD)

    def test_a_png_has_the_settings_by_name(self, tmp_path: Path) -> None:
        with Image.open(put(tmp_path / "x.png", encode(noise(), ".png", RECORD))) as saved:
            names = {*metadata.PLAIN_KEYS, "Software"} & {*RECORD, "Software"}
            text = {key: str(saved.info[key]) for key in names}
        assert text["prompt"] == RECORD["prompt"]
        assert (text["seed"], text["guidance"], text["Software"]) == (str(2**62), "2.5", "kontext-tui 0.1.0")

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_exif_has_the_prompt_and_the_software(self, tmp_path: Path, suffix: str) -> None:
        record = {**RECORD, "prompt": "Add a hat"}
        with Image.open(put(tmp_path / f"x{suffix}", encode(noise(), suffix, record))) as saved:
            exif = saved.getexif()
        assert (exif[270], exif[305]) == ("Add a hat", "kontext-tui 0.1.0")

    @pytest.mark.parametrize("suffix", KINDS)
    def test_a_record_survives_being_loaded_as_an_input(self, tmp_path: Path, suffix: str) -> None:
        assert images.load(put(tmp_path / f"x{suffix}", encode(noise(), suffix, RECORD))).notes == ()

    def test_a_record_too_long_for_jpeg_is_cut(self, tmp_path: Path) -> None:
        for turns, kept in ((40, True), (400, False)):
            record = {**RECORD, "turns": [{"prompt": "ü" * 1000}] * turns}
            path = put(tmp_path / f"{turns}.jpg", encode(noise(), ".jpg", record))
            read = read_metadata(path)
            assert read is not None
            assert (read["seed"], read["shortened"], "turns" in read) == (RECORD["seed"], True, kept)
            assert read_metadata(put(tmp_path / f"{turns}.webp", encode(noise(), ".webp", record))) == record
            assert read_metadata(put(tmp_path / f"{turns}.png", encode(noise(), ".png", record))) == record

    def test_other_files_have_none(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.png").write_text("kontext-tui")
        for kind in ("PNG", "JPEG", "WEBP", "BMP"):
            noise().save(tmp_path / f"plain.{kind}", kind)
        for path in (*tmp_path.iterdir(), tmp_path / "missing.png", tmp_path):
            assert (read_metadata(path), is_result(path)) == (None, False)

    @pytest.mark.parametrize("suffix", KINDS)
    def test_any_record_makes_a_file_a_result(self, tmp_path: Path, suffix: str) -> None:
        assert is_result(put(tmp_path / f"x{suffix}", encode(noise(), suffix, {})))

    def test_a_name_or_comment_of_ours_in_another_picture_is_not_a_record(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[305] = "kontext-tui"
        noise().save(tmp_path / "x.jpg", exif=exif)
        assert not is_result(tmp_path / "x.jpg")

    def test_the_pixels_are_not_read(self, tmp_path: Path) -> None:
        data = encode(noise(), ".png", RECORD)
        (tmp_path / "x.png").write_bytes(data[: data.index(b"IDAT") + 4])
        assert is_result(tmp_path / "x.png")

    @pytest.mark.parametrize("suffix", KINDS)
    @given(data=st.data())
    @settings(max_examples=80, deadline=None)
    def test_no_bytes_at_all_break_the_reader(self, suffix: str, data: st.DataObject) -> None:
        content = bytearray(encode(noise((4, 4)), suffix, {"prompt": "x"}))
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with tempfile.NamedTemporaryFile() as file:
            file.write(content[: data.draw(st.integers(0, len(content)))])
            file.flush()
            assert isinstance(read_metadata(Path(file.name)), dict | None)


class TestWriting:
    def test_a_part_is_hidden_beside_the_final_file(self, tmp_path: Path) -> None:
        part = write_part(b"abc", tmp_path / "x.png", "t1")
        assert part == tmp_path / ".x.png.t1.part"
        publish(part, tmp_path / "x.png")
        assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
        assert (tmp_path / "x.png").read_bytes() == b"abc"

    def test_the_umask_decides_who_may_read(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            put(tmp_path / "x.png", b"abc")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "x.png").stat().st_mode) == 0o640

    @pytest.mark.parametrize("there", ["file", "folder", "dangling link", "pipe"])
    def test_nothing_is_ever_replaced(self, tmp_path: Path, there: str) -> None:
        final = tmp_path / "x.png"
        {
            "file": lambda: final.write_bytes(b"old"),
            "folder": final.mkdir,
            "dangling link": lambda: final.symlink_to("elsewhere"),
            "pipe": lambda: os.mkfifo(final),
        }[there]()
        before = final.lstat()
        part = write_part(b"new", final, "t1")
        with pytest.raises(FileExistsError):
            publish(part, final)
        assert final.lstat().st_ino == before.st_ino
        assert not (tmp_path / "elsewhere").exists()
        assert part.read_bytes() == b"new", "kept, to be published under another name"

    @pytest.mark.parametrize(
        "way",
        [outputs._link, outputs._rename_exclusively, outputs._rename_onto_placeholder],
        ids=lambda way: way.__name__,
    )
    def test_every_way_of_renaming_keeps_what_is_there(self, tmp_path: Path, way: Any) -> None:
        part, final = write_part(b"new", tmp_path / "x", "t1"), tmp_path / "x"
        way(part, final)
        assert (final.read_bytes(), part.exists()) == (b"new", False)
        part = write_part(b"newer", final, "t1")
        with pytest.raises(FileExistsError):
            way(part, final)
        assert (final.read_bytes(), part.read_bytes()) == (b"new", b"newer")

    def test_a_link_planted_at_the_parts_name_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / ".x.png.t1.part").symlink_to(tmp_path / "victim")
        with pytest.raises(OutputError):
            write_part(b"abc", tmp_path / "x.png", "t1")
        assert not (tmp_path / "victim").exists()

    def test_two_workers_never_share_a_part(self, tmp_path: Path) -> None:
        one, two = (write_part(token.encode(), tmp_path / "x.png", token) for token in ("a", "b"))
        publish(two, tmp_path / "x.png")
        with pytest.raises(FileExistsError):
            publish(one, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes() == b"b"

    def test_a_missing_folder_is_one_clear_line(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="the folder is gone; make it again"):
            write_part(b"abc", tmp_path / "gone" / "x.png", "t1")

    def test_a_full_disk_is_told_apart_and_leaves_nothing(self, tmp_path: Path) -> None:
        """RLIMIT_FSIZE makes the kernel refuse the bytes half-way, as a full disk does."""
        script = """
import resource, sys
from pathlib import Path
from core.edit.outputs import is_disk_full, write_part
from core.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write_part(bytes(100_000), Path(sys.argv[1], "x.png"), "t1")
except OutputError as error:
    print(is_disk_full(error), error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout == f"True {tmp_path}: no space left on the disk; free some\n"
        assert list(tmp_path.iterdir()) == []

    def test_other_failures_are_not_a_full_disk(self) -> None:
        assert not is_disk_full(OutputError("x"))
        assert not is_disk_full(PermissionError(errno.EACCES, "x"))
        assert is_disk_full(OSError(errno.ENOSPC, "x"))

    def test_a_finished_file_is_known_by_its_hash(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.png", b"abc")
        digest = sha256(b"abc").hexdigest()
        assert matches(path, digest, 3)
        assert not matches(path, digest, 4)
        assert not matches(path, sha256(b"abd").hexdigest(), 3)
        assert not matches(path, None, None)
        assert not matches(tmp_path / "none.png", digest, 3)

    def test_killed_at_any_moment_it_leaves_whole_files_only(self, tmp_path: Path) -> None:
        data = encode(noise((600, 400)), ".png", RECORD)
        kills = random.Random(11)
        for attempt in range(20):
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    for number in range(10_000):
                        put(tmp_path / f"{attempt}-{number}.png", data)
                os._exit(1)
            time.sleep(kills.uniform(0.01, 0.06))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        finals = [path for path in tmp_path.iterdir() if not path.name.endswith(".part")]
        assert len(finals) > 20
        assert all(path.read_bytes() == data for path in finals)
        assert all(path.name.startswith(".") for path in tmp_path.glob(".*.part"))


def output_paths(folder: Path, pattern: str, name: str, n_turns: int, taken: Any = lambda path: False) -> list[Path]:
    return free_paths(final_path(folder, pattern, name), n_turns, taken)


class TestNames:
    def test_turns_lie_beside_the_final_result(self, tmp_path: Path) -> None:
        assert output_paths(tmp_path, "{stem}.png", "cat.jpg", 3) == [
            tmp_path / "cat.turn-1.png",
            tmp_path / "cat.turn-2.png",
            tmp_path / "cat.png",
        ]

    def test_one_turn_is_one_file(self, tmp_path: Path) -> None:
        assert output_paths(tmp_path, "{stem}.png", "cat.jpg", 1) == [tmp_path / "cat.png"]

    def test_only_the_last_turn_has_the_chosen_format(self, tmp_path: Path) -> None:
        """The next turn reads the others again, so they lose nothing."""
        names = [path.name for path in output_paths(tmp_path, "{stem}-art.webp", "cat.png", 2)]
        assert names == ["cat-art.turn-1.png", "cat-art.webp"]

    def test_subfolders_are_mirrored(self, tmp_path: Path) -> None:
        assert output_paths(tmp_path, "{stem}.png", "2024/may/cat.jpg", 1) == [tmp_path / "2024/may/cat.png"]

    def test_a_pattern_may_have_folders_of_its_own(self, tmp_path: Path) -> None:
        paths = output_paths(tmp_path, "{stem}/edit.png", "may/cat.jpg", 2)
        assert paths == [tmp_path / "may/cat/edit.turn-1.png", tmp_path / "may/cat/edit.png"]

    @pytest.mark.parametrize("stem", ["Füße 帽子", "a.b.c", "{0} %s", "-rf", " ", "a\nb", os.fsdecode(b"caf\xe9")])
    def test_odd_stems_stay_as_they_are(self, tmp_path: Path, stem: str) -> None:
        (path,) = output_paths(tmp_path, "{stem}.png", f"{stem}.jpg", 1)
        assert path.name == f"{stem}.png"
        put(path, b"abc")
        assert path.read_bytes() == b"abc"

    def test_a_taken_name_numbers_the_whole_set(self, tmp_path: Path) -> None:
        for taken in ("cat.turn-1.png", "cat-2.png"):
            (tmp_path / taken).touch()
        assert output_paths(tmp_path, "{stem}.jpg", "cat.png", 2, Path.exists) == [
            tmp_path / "cat-2.turn-1.png",
            tmp_path / "cat-2.jpg",
        ]

    def test_free_names_count_up(self, tmp_path: Path) -> None:
        path = tmp_path / "cat.png"
        taken: set[Path] = set()
        for expected in ("cat.png", "cat-2.png", "cat-3.png"):
            free = free_name(path, taken.__contains__)
            assert free.name == expected
            taken.add(free)

    @pytest.mark.parametrize("length", [150, 200, 251, 400])
    def test_long_names_are_shortened_to_what_a_disk_takes(self, tmp_path: Path, length: int) -> None:
        names = [f"{'é' * (length // 2)}{end}.jpg" for end in "ab"]
        sets = [output_paths(tmp_path, "{stem}-watercolour.png", name, 12) for name in names]
        assert not {*sets[0]} & {*sets[1]}, "different names stay different"
        for path in (*sets[0], *turn_paths(free_name(sets[1][-1], {sets[1][-1]}.__contains__), 12)):
            put(path, b"abc")

    def test_short_names_are_not_touched(self, tmp_path: Path) -> None:
        assert output_paths(tmp_path, "{stem}.png", f"{'x' * 180}.jpg", 1)[0].name == f"{'x' * 180}.png"

    @pytest.mark.parametrize("name", ["../cat.png", "a/../../cat.png", "/etc/cat.png"])
    def test_a_name_cannot_lead_out_of_the_folder(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match="leads out of the output folder"):
            output_paths(tmp_path / "out", "{stem}.png", name, 1)

    def test_a_link_cannot_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "may").symlink_to(tmp_path)
        with pytest.raises(OutputError, match="leads out of the output folder"):
            output_paths(tmp_path / "out", "{stem}.png", "may/cat.png", 1)

    def test_the_folder_itself_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "out").symlink_to("real")
        assert output_paths(tmp_path / "out", "{stem}.png", "cat.jpg", 1) == [tmp_path / "out/cat.png"]


class TestFolder:
    def test_it_is_made_with_its_parents_and_left_empty(self, tmp_path: Path) -> None:
        check_folder(tmp_path / "a" / "b")
        check_folder(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []

    @pytest.mark.parametrize("name", ["file", "file/below"])
    def test_a_file_in_the_way(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="a file is in the way"):
            check_folder(tmp_path / name)

    def test_a_link_that_leads_back_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(OutputError):
            check_folder(tmp_path / "loop")

    def test_no_permission(self) -> None:
        with unprivileged() as folder:
            (folder / "closed").mkdir(mode=0o555)
            for closed in (folder / "closed", folder / "closed" / "below"):
                with pytest.raises(OutputError, match="no permission to write"):
                    check_folder(closed)

    def test_a_disk_that_takes_no_files(self) -> None:
        with pytest.raises(OutputError):
            check_folder(Path("/proc/kontext"))

    def test_a_name_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="too long"):
            check_folder(tmp_path / ("x" * 300))


def test_the_record_is_json_for_anyone(tmp_path: Path) -> None:
    with Image.open(put(tmp_path / "x.png", encode(noise(), ".png", RECORD))) as saved:
        assert json.loads(str(saved.info["kontext-tui"])) == RECORD
