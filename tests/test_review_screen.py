"""The review screen, driven by keys on a real queue whose results a worker made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import make_pictures, rows
from PIL import Image
from test_queue import enqueue
from test_worker import Place
from textual import events
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Button, Input, Static, TextArea

from core.jobs import results, review
from core.jobs.exports import RECORD
from core.jobs.records import get_job, get_turns
from core.jobs.results import Pick
from core.jobs.review import Change
from kontext_tui.app import KontextApp
from kontext_tui.graphics import Graphics
from kontext_tui.screens.prompts import ConfirmDialog, LineDialog, PromptDialog
from kontext_tui.screens.review import ReviewScreen
from kontext_tui.settings import Settings
from kontext_tui.widgets.compare import ComparePanes
from kontext_tui.widgets.picture import HalfBlocks, PictureFrame
from kontext_tui.widgets.turn_strip import Tile

TURNS = ["make it night", "add fog", {"prompt": "make it warmer", "from": 1}]


class Driver:
    """Keys in, and what is on the screen out."""

    def __init__(self, app: KontextApp, pilot: Pilot[str]) -> None:
        self.app, self.pilot, self.screen = app, pilot, cast(ReviewScreen, app.screen)

    async def until(self, condition: Callable[[], object], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"what was waited for never came; on screen:\n{self.text()}"
            await asyncio.sleep(0.02)

    async def at(self, pick: Pick | None) -> None:
        await self.until(lambda: self.screen.shown == pick)

    async def press(self, *keys: str) -> None:
        """Not `pilot.press`: that waits for every widget, and half a minute for one that is taken away meanwhile."""
        for key in keys:
            character = key if len(key) == 1 else {"space": " ", "slash": "/", "plus": "+", "minus": "-"}.get(key)
            self.app.post_message(events.Key(_character_to_key(key) if len(key) == 1 else key, character))
        await asyncio.sleep(0.1)

    async def drawn(self, frame: str = "after") -> list[str]:
        """The rows of a picture, once it is there."""
        canvas = self.screen.query_one(f"#{frame}").query_one(HalfBlocks)
        await self.until(lambda: canvas.strips)
        await asyncio.sleep(0.1)
        return [repr([(segment.text, segment.style) for segment in strip]) for strip in canvas.strips]

    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text for strip in strips)

    async def says(self, *parts: str) -> None:
        for part in parts:
            await self.until(lambda part=part: part in self.text())

    async def dialog(self, kind: type[Screen[Any]]) -> Screen[Any]:
        await self.until(lambda: isinstance(self.app.screen, kind) and self.app.screen.query(Button))
        await asyncio.sleep(0.05)
        return self.app.screen

    def tiles(self) -> list[Tile]:
        return [tile for tile in self.screen.query(Tile) if tile.display]

    def problem(self) -> str:
        """What stands in place of the picture."""
        return str(self.screen.query_one("#after .problem", Static).content)

    def toasts(self) -> str:
        return "\n".join(str(each.message) for each in self.app._notifications)


@pytest.fixture
def done(tmp_path):
    """Two jobs of three turns, the third a branch from the first, edited by a real worker."""
    place = Place(tmp_path)
    make_pictures(place.folder / "photos", 2)
    enqueue(place.conn, place.folder, turns=TURNS, seed=3)
    assert place.start().wait(60) == 0
    return place


def drive(
    place: Place,
    script: Callable[[Driver], Awaitable[None]],
    *,
    size: tuple[int, int] = (80, 24),
    graphics: Graphics | None = None,
) -> None:
    async def main() -> None:
        app = KontextApp(place.database, Settings(theme="kontext"), graphics)
        app.state["screen"] = "review"
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            await script(Driver(app, pilot))

    asyncio.run(asyncio.wait_for(main(), 90))


def decisions(place: Place) -> dict[str, str]:
    found = rows(place.database, "SELECT job_id || '.' || turn, review FROM turns WHERE review IS NOT NULL")
    return dict(found)


# ---------------------------------------------------------------- looking


def test_before_and_after_stand_side_by_side_with_their_facts(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        assert await d.drawn("before") != await d.drawn("after")
        await d.until(lambda: "changed" in d.text() and "undecided  0" in d.text())
        turn, text = get_turns(done.conn, 1)[0], d.text()
        for part in ("1.1 picture-0.png", "job 1 of 2", "6 undecided", "make it night", str(turn.seed), "2 steps"):
            assert part in text, part
        assert "before: the input" in text
        await d.press("l")
        await d.at(Pick(1, 2))
        await d.says("before: turn 1")

    drive(done, script)


def test_a_picture_is_drawn_as_it_is_in_half_blocks(tmp_path):
    place = Place(tmp_path)
    (tmp_path / "photos").mkdir()
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (0, 32, 64, 64))
    image.save(tmp_path / "photos" / "halves.png")
    enqueue(place.conn, tmp_path, seed=1)
    assert place.start().wait(60) == 0

    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.drawn("before")
        strips = d.screen.query_one("#before").query_one(HalfBlocks).strips
        columns, rows_ = d.screen.query_one("#before", PictureFrame).drawn
        assert len(strips) == rows_
        assert columns == pytest.approx(2 * rows_, abs=1), "a square picture on cells twice as high as wide"
        colours = [(seg.style.color.triplet, seg.style.bgcolor.triplet) for seg in (strips[0]._segments[0],)]
        assert colours == [((255, 0, 0), (255, 0, 0))]
        assert strips[-1]._segments[0].style.bgcolor.triplet == (0, 0, 255)

    drive(place, script)


def test_flip_shows_before_and_after_in_the_same_place(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        before, after = await d.drawn("before"), await d.drawn("after")
        await d.press("space")
        await d.until(lambda: d.screen.panes.has_class("-single"))
        wide = await d.drawn("after")
        await d.says("A · before: the input")
        await d.press("space")
        await asyncio.sleep(0.2)
        await d.says("B · • after: turn 1")
        assert await d.drawn("after") != wide
        await d.press("escape")
        await asyncio.sleep(0.2)
        assert (await d.drawn("before"), await d.drawn("after")) == (before, after)

    drive(done, script)


def test_the_difference_zoom_and_pan(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        after = await d.drawn()
        await d.press("d")
        await d.says("changes are orange")
        changes = d.screen.query_one("#after", PictureFrame).shot.image
        assert changes.getpixel((20, 10))[0] > changes.getpixel((20, 10))[2], "orange"
        await d.press("d", "plus", "plus")
        await d.says("2.2×")
        assert await d.drawn() != after
        view = d.screen.panes.view
        await d.press("right", "up")
        assert (d.screen.panes.view.x, d.screen.panes.view.y) == (
            pytest.approx(view.x + 0.2 / 2.25),
            view.y - 0.2 / 2.25,
        )
        assert d.screen.pick == Pick(1, 1), "arrows move a zoomed picture"
        for _ in range(20):
            await d.press("left", "down")
        box = d.screen.panes.view.box((100, 100))
        assert (box[0], box[3]) == (0, 100), "never over the edge"
        await d.press("escape")
        assert d.screen.panes.view.zoom == 1
        await d.press("right")
        await d.at(Pick(1, 2))

    drive(done, script)


def test_walking_by_turn_job_and_decision(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        for key, pick in (
            ("h", (1, 0)), ("l", (1, 1)), ("l", (1, 2)), ("l", (1, 3)), ("l", (2, 1)), ("k", (1, 1)), ("j", (2, 1)),
            ("g", (1, 1)), ("G", (2, 1)),
        ):  # fmt: skip
            await d.press(key)
            await d.at(Pick(*pick))
        await d.press("j")
        await d.until(lambda: "last job" in d.toasts())
        review.decide(done.conn, [Pick(2, n) for n in (1, 2, 3)] + [Pick(1, 1)], "accepted")
        await d.press("n")
        await d.at(Pick(1, 2))
        await d.press("h", "h", "l", "l", "l")  # keys that come faster than pictures are not lost
        await d.at(Pick(1, 3))
        await d.pilot.click(d.screen.query(Tile)[2])
        await d.at(Pick(1, 2))

    drive(done, script)


def test_the_input_stands_alone_and_a_branch_may_start_there(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("h")
        await d.at(Pick(1, 0))
        assert d.screen.panes.has_class("-single")
        await d.press("a", "r", "e")
        assert decisions(done) == {}
        assert len(get_turns(done.conn, 1)) == 3
        await d.press("b")
        await d.dialog(PromptDialog)
        await d.press(*"add snow", "enter")
        await d.until(lambda: len(get_turns(done.conn, 1)) == 4)
        turn = get_turns(done.conn, 1)[3]
        assert (turn.from_turn, turn.prompt, turn.redo_of) == (0, "add snow", None)

    drive(done, script)


# ---------------------------------------------------------------- deciding


def test_a_morning_of_decisions_is_stored_and_undone_step_by_step(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("a")
        await d.at(Pick(1, 2))
        await d.says("1.1 accepted, u undoes")
        await d.press("x")
        await d.at(Pick(1, 3))
        assert decisions(done) == {"1.1": "accepted", "1.2": "rejected"}
        await d.press("u")
        await d.at(Pick(1, 2))
        assert decisions(done) == {"1.1": "accepted"}
        await d.press("u")
        await d.at(Pick(1, 1))
        assert decisions(done) == {}
        assert d.screen.check_action("undo", ()) is None
        await d.press("u", "a")
        await d.at(Pick(1, 2))
        await d.press("h")
        await d.at(Pick(1, 1))
        await d.press("c")
        await d.until(lambda: decisions(done) == {})

    drive(done, script)
    review.decide(done.conn, [Pick(2, 2)], "accepted")

    async def again(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.says("5 undecided")
        await d.press("G", "l")
        await d.at(Pick(2, 2))
        await d.says("✔ accepted")

    drive(done, again)


def test_a_key_that_repeats_decides_about_nothing_unseen(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        for _ in range(4):
            d.app.post_message(events.Key("a", "a"))  # faster than any picture is read
        await d.at(Pick(1, 2))
        await asyncio.sleep(0.3)
        assert decisions(done) == {"1.1": "accepted"}

    drive(done, script)


def test_a_job_and_all_that_is_shown_are_decided_at_once(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("x")
        await d.at(Pick(1, 2))
        await d.press("A")
        await d.at(Pick(2, 1))
        assert decisions(done) == {"1.1": "rejected", "1.2": "accepted", "1.3": "accepted"}
        await d.press("u")
        await d.at(Pick(1, 2))
        assert decisions(done) == {"1.1": "rejected"}
        await d.press("slash")
        await d.dialog(LineDialog)
        await d.press(*"ture-1", "enter")
        await d.at(Pick(2, 1))
        await d.says("/ture-1")
        await d.press("S")
        await d.dialog(ConfirmDialog)
        await d.says("Accept 3 undecided results")
        await d.press("n")
        assert decisions(done) == {"1.1": "rejected"}
        await d.press("S")
        await d.dialog(ConfirmDialog)
        await d.press("y")
        await d.until(lambda: len(decisions(done)) == 4)
        await d.until(lambda: "everything here is decided" in d.toasts())
        await d.press("escape", "escape")
        await d.says("job 1 of 2")
        await d.press("f", "f", "f")
        await d.until(lambda: "rejected only" in d.text() and "job 1 of 1" in d.text())
        await d.press("x", "f", "f")
        await d.says("undecided only")
        await d.press("A")
        await d.until(lambda: len(decisions(done)) == 6)

    drive(done, script)


def test_a_decision_about_a_picture_made_again_meanwhile_is_refused(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        done.conn.execute("UPDATE turns SET output_sha256 = 'other' WHERE job_id = 1 AND turn = 1")
        await d.press("a")
        await d.until(lambda: "look once more" in d.toasts())
        assert decisions(done) == {}
        await d.says("the file was changed since")
        await d.press("a")
        await d.until(lambda: "cannot be accepted" in d.toasts())
        assert decisions(done) == {}

    drive(done, script)


# ---------------------------------------------------------------- redo and branch


def test_a_redo_waits_beside_the_old_picture_and_comes_in_when_it_is_made(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("r")
        await d.until(lambda: len(d.tiles()) == 5)
        await d.says("… 4")
        await d.says("↻ 1")
        await d.press("l", "l", "l")
        await d.at(Pick(1, 4))
        await d.says("waits for a worker")
        await d.press("a", "x")
        assert decisions(done) == {}, "there is nothing to decide about yet"
        worker = done.start()
        await asyncio.to_thread(worker.wait, 60)
        await d.until(lambda: "1.4 is done: the redo of turn 1" in d.toasts())
        await d.until(lambda: d.screen.query_one("#after", PictureFrame).shot.image is not None)
        assert await d.drawn("before") != await d.drawn("after")
        await d.press("i")
        await d.says("the old result: turn 1")
        await d.press("escape")
        await d.says("before: the input")
        await d.press("a")
        await d.until(lambda: decisions(done) == {"1.4": "accepted"})

    drive(done, script)
    assert (get_job(done.conn, 1).state, get_turns(done.conn, 1)[0].state) == ("done", "done")


def test_a_redo_with_another_prompt_its_later_turns_and_undo(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("e")
        await d.dialog(PromptDialog)
        assert d.app.screen.query_one(TextArea).text == "make it night"
        await d.press("enter")
        await d.says("the same prompt and seed")
        await d.press(*" now")
        tick = d.app.screen.query_one("#later")
        assert "X" not in str(tick.render())  # without colours, too
        await d.pilot.click("#later")
        await d.until(lambda: "X" in str(tick.render()))
        await d.pilot.click("#queue")
        await d.until(lambda: len(get_turns(done.conn, 1)) == 6)
        old, new = get_turns(done.conn, 1)[0], get_turns(done.conn, 1)[3]
        assert (new.prompt, new.seed, new.redo_of) == ("make it night now", old.seed, 1)
        assert [(t.redo_of, t.from_turn) for t in get_turns(done.conn, 1)[4:]] == [(2, 4), (3, 4)]
        await d.says("1.4, 1.5, 1.6 queued")
        await d.press("u")
        await d.until(lambda: len(get_turns(done.conn, 1)) == 3)
        assert get_job(done.conn, 1).state == "done"
        await d.press("e")
        await d.dialog(PromptDialog)
        d.app.screen.query_one(Input).value = ""
        await d.press("enter")
        await d.until(lambda: len(get_turns(done.conn, 1)) == 4)
        again = get_turns(done.conn, 1)[3]
        assert (again.prompt, again.seed == old.seed) == (old.prompt, False)

    drive(done, script)


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
def test_dialogs_fit_and_escape_leaves_them(done, size):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        for key, kind in (("e", PromptDialog), ("b", PromptDialog), ("slash", LineDialog), ("S", ConfirmDialog)):
            await d.press(key)
            await d.dialog(kind)
            for button in d.app.screen.query(Button):
                assert d.app.screen.region.contains_region(button.region)
                assert str(button.label) in d.text()
            await d.press("escape")
            await d.until(lambda: d.app.screen is d.screen)
        assert len(get_turns(done.conn, 1)) == 3

    drive(done, script, size=size)


def test_undoing_a_redo_that_a_worker_has_made_says_so(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("r")
        await d.until(lambda: d.screen.undo_steps)
        assert await asyncio.to_thread(done.start().wait, 60) == 0
        await d.press("u")
        await d.until(lambda: "has begun" in d.toasts())
        assert len(get_turns(done.conn, 1)) == 4

    drive(done, script)


# ---------------------------------------------------------------- files


def test_accepted_results_are_exported(done):
    target = done.folder / "chosen"

    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("E")
        await d.until(lambda: "nothing has been accepted" in d.toasts())
        await d.press("A")
        await d.at(Pick(2, 1))
        await d.press("E")
        await d.dialog(LineDialog)
        d.app.screen.query_one(Input).value = str(target)
        await d.press("enter")
        await d.until(lambda: f"2 copied to {target}" in d.toasts())

    drive(done, script)
    lines = [json.loads(line) for line in (target / RECORD).read_text().splitlines()]
    assert [(line["job"], line["turn"]) for line in lines] == [(1, 2), (1, 3)]


@pytest.mark.parametrize("kind", ["halfcell", "off"])
def test_broken_missing_huge_and_strange_pictures_are_said_and_nothing_falls(done, kind):
    outputs = [Path(turn.output_path) for turn in get_turns(done.conn, 1)]
    outputs[0].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    outputs[1].unlink()
    Image.new("L", (20_000, 6_000)).save(outputs[2])
    other = Path(get_turns(done.conn, 2)[0].output_path)
    Image.new("RGB", (24, 16), "red").save(other)

    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.until(lambda: "broken" in d.problem())
        await d.press("a")
        await d.until(lambda: "cannot be accepted" in d.toasts())
        await d.press("space", "space", "d", "plus", "minus", "escape")
        await d.press("l")
        await d.until(lambda: "no such file" in d.problem())
        await d.press("l")
        await d.until(lambda: "MP" in d.problem())
        await d.press("l")
        await d.at(Pick(2, 1))
        if kind == "halfcell":
            await d.says("the file was changed since")
        await d.press("x")
        await d.until(lambda: decisions(done) == {"2.1": "rejected"})

    drive(done, script, graphics=Graphics(kind))


def test_foreign_text_reaches_the_screen_as_text_alone(done):
    nasty = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/] \u202egnp.exe"
    done.conn.execute("UPDATE jobs SET name = ? WHERE id = 1", (nasty,))
    review.branch(done.conn, Pick(1, 1), Change(prompt=nasty))
    assert done.start().wait(60) == 0

    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        await d.press("l", "l", "l")
        await d.at(Pick(1, 4))
        text = d.text()
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert text.count("title\\x07 [bold]mark") == 2
        await d.press("e")
        await d.dialog(PromptDialog)
        assert "\x1b" not in d.text()
        d.app.screen.query_one(Input).value = "5"
        await d.press("enter")
        await d.until(lambda: len(get_turns(done.conn, 1)) == 5)
        assert get_turns(done.conn, 1)[4].prompt == nasty.strip(), "shown with escapes, kept as it was"

    drive(done, script)


def test_an_empty_queue_says_so_and_fills(tmp_path):
    place = Place(tmp_path)

    async def script(d: Driver) -> None:
        await d.says("No finished turn yet")
        await d.press(*"axrebnduAESoi", "space", "plus", "j", "l")
        if isinstance(d.app.screen, LineDialog | ConfirmDialog | PromptDialog):
            raise AssertionError("a dialog about nothing")
        make_pictures(tmp_path / "photos", 1)
        enqueue(place.conn, tmp_path, seed=1)
        assert await asyncio.to_thread(place.start().wait, 60) == 0
        await d.at(Pick(1, 1))
        place.conn.execute("DELETE FROM jobs")  # forgotten by another process
        await d.says("No finished turn yet")

    drive(place, script)


def test_small_pictures_come_where_there_is_room(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        strips = d.screen.query(HalfBlocks)
        await d.until(lambda: sum(bool(each.strips) for each in strips) == 2 + 4)
        await d.pilot.resize_terminal(80, 24)
        await asyncio.sleep(0.2)
        assert not d.screen.query_one(Tile).query_one(HalfBlocks).display
        assert d.screen.query_one(ComparePanes).size.height >= 12
        assert d.screen.query_one("#words", Static).region.bottom <= 24

    drive(done, script, size=(140, 45))


def test_what_others_decide_is_seen(done):
    async def script(d: Driver) -> None:
        await d.at(Pick(1, 1))
        review.decide(done.conn, [Pick(1, 1)], "rejected")
        await d.until(lambda: "✘ rejected" in d.text() and "5 undecided" in d.text())
        assert results.tally(done.conn).rejected == 1

    drive(done, script)
