"""Pictures as Sixels, in Kitty's protocol, and in half blocks: what the terminal answers decides."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_pictures
from PIL import Image
from terminal import Terminal, app_command
from test_queue import enqueue
from test_worker import Place

from core.jobs.records import get_turns
from kontext_tui import graphics
from kontext_tui.graphics import Graphics

DEVICE = rb"\x1b\[c"
SIXEL = {DEVICE: b"\x1b[?62;4;22c"}
KITTY = {
    DEVICE: b"\x1b[?62;22c",
    rb"\x1b_Gi=(\d+),s=1,v=1,a=q[^\x1b]*\x1b\\": b"\x1b_Gi=\\1;OK\x1b\\\\",
}
NEITHER = {DEVICE: b"\x1b[?62;22c"}
ASK = "from kontext_tui.graphics import choose; import sys; print(choose(sys.argv[1]))"

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("textual_image") is None, reason="textual-image is not installed"
)


def terminal(folder: Path, command: list[str], answers: dict[bytes, bytes], **env: str) -> Terminal:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "COLORTERM": "truecolor", **env}
    return Terminal(command, size=(100, 30), folder=folder, env=given, pixels=(1000, 600), answers=answers)


@needs_library
@pytest.mark.parametrize(
    ("answers", "setting", "kind"),
    [
        (SIXEL, "auto", "sixel"),
        (KITTY, "auto", "kitty"),
        (NEITHER, "auto", "halfcell"),
        ({}, "auto", "halfcell"),
        (KITTY, "halfcell", "halfcell"),
        (SIXEL, "off", "off"),
        ({}, "kitty", "kitty"),
    ],
)
def test_what_the_terminal_answers_decides_unless_the_configuration_does(tmp_path, answers, setting, kind):
    asked = terminal(tmp_path, [sys.executable, "-c", ASK, setting], answers)
    try:
        assert asked.wait() == 0
        assert f"kind='{kind}'" in asked.text
        assert "cell=(10, 20)" in asked.text
    finally:
        asked.close()


def test_without_the_library_pictures_are_half_blocks_and_who_asked_for_more_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert graphics.choose("auto") == Graphics("halfcell", graphics.choose("halfcell").cell)
    notice = graphics.choose("kitty").notice
    assert notice is not None
    assert "kontext-tui[images]" in notice


@pytest.fixture
def done(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    make_pictures(place.folder / "photos", 2)
    enqueue(place.conn, place.folder, turns=["make it night"], seed=3)
    assert place.start().wait(60) == 0
    broken = Path(get_turns(place.conn, 2)[0].output_path)
    broken.write_bytes(broken.read_bytes()[:60])
    return place


@needs_library
@pytest.mark.parametrize(("answers", "drawn"), [(SIXEL, b"\x1bP"), (KITTY, b"\x1b_G")], ids=["sixel", "kitty"])
def test_the_review_draws_pictures_and_a_broken_file_is_said(done, answers, drawn):
    seen = terminal(done.folder, app_command(), answers)
    try:
        seen.wait_for("2 Review")
        before = len(seen.output)
        seen.send("2")
        seen.wait_for("1.1 picture-0.png")
        seen.wait_for(lambda: drawn in seen.output[before:])
        pictures = seen.output[before:].count(drawn)
        seen.send(" ")
        seen.wait_for("A · before")
        seen.wait_for(lambda: seen.output[before:].count(drawn) > pictures)
        seen.send("j")
        seen.wait_for("broken")
        seen.send("k")
        seen.wait_for("1.1 picture-0.png")
        seen.send("1")
        seen.wait_for("all 2")
        seen.send("q")
        assert seen.wait() == 0
        assert seen.cooked()
    finally:
        seen.close()


@needs_library
def test_a_picture_of_any_shape_is_cut_to_its_cells_for_every_kind():
    from kontext_tui.pictures import View, cut, fit

    for kind in ("halfcell", "sixel", "kitty"):
        drawn = Graphics(kind, (9, 19))
        for size in ((1, 4000), (4000, 1), (3, 3), (640, 480)):
            columns, rows = fit(size, (40, 20), drawn.cell)
            across, down = drawn.pixels
            assert cut(Image.new("RGB", size), View(), (columns * across, rows * down)).size == (
                columns * across,
                rows * down,
            )
            assert 1 <= columns <= 40
            assert 1 <= rows <= 20
