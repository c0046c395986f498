"""Which pictures a script edits: files, folders and globs, and never its own results."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ScriptError
from core.inputs import find_inputs
from core.script import parse


@pytest.fixture
def trip(tmp_path: Path) -> Path:
    """A folder of pictures, or so their names say: nothing here is ever opened."""
    folder = tmp_path.resolve() / "trip"
    for name in (
        "photos/img10.jpg",
        "photos/img2.JPG",
        "photos/a/img1.png",
        "photos/a/deep/x.webp",
        "photos/b/y.tiff",
        "photos/notes.txt",
        "photos/.hidden.png",
        "photos/.thumbs/z.png",
        "other/img2.JPG",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(folder: Path, *inputs: str, output: str = "edited", results: tuple[str, ...] = ()) -> list[str]:
    """The names found by a script in `folder`; `results` are the names of files that count as results."""
    script = parse("{}", file="e.yaml", folder=folder, overrides={"turns": ["x"]} | given_as(folder, inputs, output))
    return [found.name for found in find_inputs(script, lambda path: path.name in results)]


def given_as(folder: Path, inputs: tuple[str, ...], output: str) -> dict[str, object]:
    return {"input": [str(folder / name) for name in inputs], "output": str(folder / output)}


def complaints(folder: Path, text: str) -> list[str]:
    script = parse(text, file="e.yaml", folder=folder)
    with pytest.raises(ScriptError) as caught:
        find_inputs(script)
    return str(caught.value).splitlines()


ALL = ["a/deep/x.webp", "a/img1.png", "b/y.tiff", "img2.JPG", "img10.jpg"]


class TestFolders:
    def test_give_their_pictures_and_those_of_their_subfolders_in_natural_order(self, trip: Path) -> None:
        assert names(trip, "photos") == ALL

    def test_give_absolute_paths(self, trip: Path) -> None:
        script = parse("input: photos/b\nturns: [x]\n", file="e.yaml", folder=trip)
        [found] = find_inputs(script)
        assert (found.path, found.name) == (trip / "photos/b/y.tiff", "y.tiff")

    def test_may_be_named_like_a_picture(self, trip: Path) -> None:
        (trip / "photos").rename(trip / "album.png")
        assert names(trip, "album.png") == ALL

    def test_may_be_a_link_when_named_outright(self, trip: Path) -> None:
        (trip / "link").symlink_to("photos")
        assert names(trip, "link") == ALL

    def test_are_not_entered_through_links(self, trip: Path) -> None:
        (trip / "photos/loop").symlink_to("..")
        (trip / "photos/others").symlink_to(trip / "other")
        assert names(trip, "photos") == ALL

    def test_hold_what_is_named_like_a_picture_for_the_decoder_to_refuse(self, trip: Path) -> None:
        folder = trip / "odd"
        (folder / "folder.png").mkdir(parents=True)
        (folder / "folder.png/inside.png").touch()
        os.mkfifo(folder / "pipe.jpg")
        (folder / "gone.png").symlink_to("nowhere")
        (folder / "locked.png").touch(mode=0o000)
        assert names(trip, "odd") == ["folder.png", "gone.png", "locked.png", "pipe.jpg"]

    def test_hold_sockets_without_hanging(self, trip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(trip / "photos/b")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.png")
            assert names(trip, "photos/b") == ["s.png", "y.tiff"]

    def test_keep_undecodable_names(self, trip: Path) -> None:
        (trip / "odd").mkdir()
        os.close(os.open(os.fsencode(trip / "odd") + b"/\xff\xfe.png", os.O_CREAT))
        assert names(trip, "odd") == ["\udcff\udcfe.png"]

    def test_deeper_than_python_recurses_are_searched(self, trip: Path) -> None:
        deep = trip / "deep" / "/".join("d" * 200)
        deep.mkdir(parents=True)
        (deep / "x.png").touch()
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack(0)) + 120)
        try:
            assert names(trip, "deep") == ["d/" * 200 + "x.png"]
        finally:
            sys.setrecursionlimit(limit)


class TestGlobs:
    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("photos/*", ["img2.JPG", "img10.jpg"]),
            ("photos/*.jpg", ["img10.jpg"]),
            ("photos/img?.[jJ]*", ["img2.JPG"]),
            ("photos/*/*.png", ["a/img1.png"]),
            ("photos/**", ALL),
            ("photos/**/*.png", ["a/img1.png"]),
            ("photos/**/deep/**/*", ["a/deep/x.webp"]),
            ("photos/*/deep/x.webp", ["a/deep/x.webp"]),
            ("photos/.*", [".hidden.png"]),
            ("photos/.t*/*", [".thumbs/z.png"]),
            ("*/img2.JPG", ["other/img2.JPG", "photos/img2.JPG"]),
            ("other/../photos/b/*", ["y.tiff"]),
        ],
    )
    def test_match_pictures(self, trip: Path, pattern: str, found: list[str]) -> None:
        assert names(trip, pattern) == found

    def test_pass_by_links_to_folders(self, trip: Path) -> None:
        (trip / "photos/link").symlink_to("a")
        assert names(trip, "photos/*/*.png") == ["a/img1.png"]

    def test_give_way_to_a_file_of_that_very_name(self, trip: Path) -> None:
        (trip / "photos/img[12].png").touch()
        (trip / "photos/img1.png").touch()
        assert names(trip, "photos/img[12].png") == ["img[12].png"]

    def test_give_way_to_folders_of_that_very_name(self, trip: Path) -> None:
        (trip / "photos").rename(trip / "[2026] photos")
        assert names(trip, "[2026] photos/*.jpg") == ["img10.jpg"]

    @settings(deadline=2_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pattern=st.text("*?[]!-^imgjp/\\{}2", min_size=1, max_size=12))
    def test_of_any_form_find_pictures_or_complain(self, trip: Path, pattern: str) -> None:
        try:
            found = names(trip, f"photos/{pattern}")
        except ScriptError:
            return
        assert found
        assert set(found) <= {*ALL, "x.webp", "y.tiff", "img1.png", "deep/x.webp"}


class TestSeveral:
    def test_keep_the_order_they_are_given_in(self, trip: Path) -> None:
        assert names(trip, "photos/b", "photos/a/img1.png") == ["b/y.tiff", "a/img1.png"]

    def test_give_each_file_once(self, trip: Path) -> None:
        (trip / "link").symlink_to("photos")
        assert names(trip, "photos/img10.jpg", "link/*", "photos") == [
            "photos/img10.jpg",
            "link/img2.JPG",
            *(f"photos/{name}" for name in ALL[:3]),
        ]

    def test_never_give_two_files_one_name(self, trip: Path) -> None:
        assert names(trip, "photos/*.JPG", "other") == ["photos/img2.JPG", "other/img2.JPG"]

    def test_files_of_one_folder_are_named_as_they_are(self, trip: Path) -> None:
        assert names(trip, "photos/img2.JPG", "photos/img10.jpg") == ["img2.JPG", "img10.jpg"]


class TestFiles:
    def test_need_no_suffix(self, trip: Path) -> None:
        assert names(trip, "photos/notes.txt") == ["notes.txt"]

    def test_may_be_hidden(self, trip: Path) -> None:
        assert names(trip, "photos/.hidden.png") == [".hidden.png"]

    def test_that_are_links_stay_links(self, trip: Path) -> None:
        (trip / "today.png").symlink_to("photos/a/img1.png")
        assert names(trip, "today.png", "photos/a/img1.png") == ["today.png", "photos/a/img1.png"]


class TestResults:
    def test_below_the_scanned_folder_are_stayed_out_of(self, trip: Path) -> None:
        assert names(trip, "photos", output="photos/a") == ["b/y.tiff", "img2.JPG", "img10.jpg"]

    def test_are_stayed_out_of_by_globs_too(self, trip: Path) -> None:
        assert names(trip, "photos/*/*", output="photos/a") == ["b/y.tiff"]

    def test_are_stayed_out_of_whatever_link_leads_there(self, trip: Path) -> None:
        (trip / "link").symlink_to("photos")
        assert names(trip, "link", output="photos/a") == ["b/y.tiff", "img2.JPG", "img10.jpg"]

    def test_among_the_pictures_are_left_out(self, trip: Path) -> None:
        assert names(trip, "photos", output="photos", results=("img10.jpg", "img1.png")) == [
            "a/deep/x.webp",
            "b/y.tiff",
            "img2.JPG",
        ]

    def test_by_a_template_beside_the_pictures_are_left_out(self, trip: Path) -> None:
        assert names(trip, "photos/*", output="photos/{stem}.png", results=("img10.jpg",)) == ["img2.JPG"]

    def test_in_a_folder_above_are_left_out(self, trip: Path) -> None:
        assert names(trip, "photos/b", "photos/a", output="photos", results=("img1.png",)) == [
            "b/y.tiff",
            "a/deep/x.webp",
        ]

    def test_of_other_edits_are_pictures_like_any(self, trip: Path) -> None:
        assert names(trip, "photos/*", output="elsewhere", results=("img10.jpg",)) == [
            "img2.JPG",
            "img10.jpg",
        ]

    def test_named_outright_are_taken(self, trip: Path) -> None:
        assert names(trip, "photos/img10.jpg", output="photos", results=("img10.jpg",)) == ["img10.jpg"]


class TestComplaints:
    def test_come_all_at_once_where_each_input_stands(self, trip: Path) -> None:
        (trip / "empty").mkdir()
        text = "turns: [x]\ninput:\n- photos/none.jpg\n- nowhere/\n- photos/*.bmp\n- empty\n- photos\n"
        assert complaints(trip, text) == [
            f"e.yaml:3:3: {trip}/photos/none.jpg does not exist: check the name",
            f"e.yaml:4:3: {trip}/nowhere does not exist: check the name",
            f"e.yaml:5:3: {trip}/photos/*.bmp matches no pictures: check the folder and the pattern",
            f"e.yaml:6:3: {trip}/empty holds no pictures: none of its files ends in"
            " .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp",
        ]

    def test_blame_the_command_line_for_its_inputs(self, trip: Path) -> None:
        with pytest.raises(ScriptError, match=r"^--input: .*none\.png does not exist"):
            names(trip, "none.png")

    def test_say_that_only_results_are_left(self, trip: Path) -> None:
        script = parse("input: photos/b\noutput: photos\nturns: [x]\n", file="e.yaml", folder=trip)
        with pytest.raises(ScriptError, match="holds only results of earlier edits"):
            find_inputs(script, lambda path: True)

    def test_say_that_one_name_cannot_serve_many_pictures(self, trip: Path) -> None:
        assert complaints(trip, "input: photos\nturns: [x]\noutput: one.png\n") == [
            "e.yaml:3:9: output names one file for 5 pictures: put {stem} in its name"
        ]

    def test_name_a_folder_that_may_not_be_searched(self, trip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def scandir(folder: Path) -> Any:  # root may search any folder, so the refusal is played
            if folder.name == "a":
                raise PermissionError(errno.EACCES, "Permission denied")
            return search(folder)

        search = os.scandir
        monkeypatch.setattr("core.inputs.os.scandir", scandir)
        assert complaints(trip, "input: photos\nturns: [x]\n") == [
            f"e.yaml:1:8: {trip}/photos/a cannot be searched: Permission denied"
        ]

    @pytest.mark.parametrize("name", ["x" * 5_000, "loop", "photos/img2.JPG/x", "~no-such-user/x"])
    def test_meet_impossible_paths(self, trip: Path, name: str) -> None:
        (trip / "loop").symlink_to("loop")
        [line] = complaints(trip, f"input: {name}\nturns: [x]\n")
        assert line.startswith("e.yaml:1:8: ")
