"""The form of a batch in the app: from a folder to queued jobs, mistakes told as they are typed, scripts as files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nights
import pytest
from conftest import PHOTOS, ROOT, make_pictures, rows
from PIL import Image
from textual.widgets import TextArea

from core import script as scripts
from core.jobs.database import connect
from kontext_tui import batch
from kontext_tui import settings as config
from kontext_tui.app import KontextApp
from kontext_tui.batch import Form, TurnForm
from kontext_tui.settings import Settings
from kontext_tui.widgets.folder_tree import FolderTree
from kontext_tui.widgets.turn_list import TurnList


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the app is opened: an empty queue, and pictures in folders."""
    connect(tmp_path / "jobs.db").close()
    make_pictures(tmp_path / "photos", 3)
    make_pictures(tmp_path / "photos" / "more", 2)
    make_pictures(tmp_path / "other", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def app_over(folder: Path) -> KontextApp:
    return KontextApp(folder / "jobs.db", Settings(theme="kontext"))


async def until(pilot: Any, condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for never came:\n" + shown(pilot.app)
        await pilot.pause(0.05)


def shown(app: KontextApp) -> str:
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def toasts(app: KontextApp) -> list[str]:
    return [str(note.message) for note in app._notifications]


async def open_batch(pilot: Any) -> Any:
    await pilot.press("f4")
    await until(pilot, lambda: pilot.app.current_mode == "batch" and pilot.app.screen.query(TurnList))
    await pilot.pause()
    return pilot.app.screen


async def write(pilot: Any, field: str, value: str) -> None:
    """As if it were typed; every key of it takes its time."""
    found = pilot.app.screen.query_one(f"#{field}")
    found.focus()
    setattr(found, "text" if isinstance(found, TextArea) else "value", value)
    await pilot.pause()


async def walk(pilot: Any, tree: FolderTree, to: Callable[[str], bool]) -> None:
    for _ in range(40):
        if to(tree.cursor_node.data.name):
            return
        await pilot.press("j")
    raise AssertionError(shown(pilot.app))


async def test_from_a_folder_to_queued_jobs_with_keys_alone(folder):
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        tree = screen.query_one(FolderTree)
        await until(pilot, lambda: "photos  5" in shown(app))  # counted with its subfolders
        await until(pilot, lambda: "other  1" in shown(app))
        await pilot.press("j", "j", "enter")
        assert tree.cursor_node.data == folder / "photos"
        assert screen.form.inputs == ("photos",)
        await write(pilot, "model", "kontext-tiny")
        await write(pilot, "steps", "6")
        screen.query_one("#turn-prompt").focus()
        await pilot.press(*"sunset", "enter", *"night", "enter", *"sketch")
        screen.query_one("#turn-start").focus()
        await pilot.press("1")
        await until(pilot, lambda: "5 pictures, 3 turns each: 90 steps" in shown(app))
        await until(pilot, lambda: "time unknown" in shown(app))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.current_mode == "queue")
        assert "5 queued; no worker is at work: w starts one" in toasts(app)
    database = folder / "jobs.db"
    assert rows(database, "SELECT count(*), min(state), max(model) FROM jobs") == [(5, "queued", "kontext-tiny")]
    assert rows(database, "SELECT turn, from_turn, prompt, steps FROM turns WHERE job_id = 1") == [
        (1, 0, "sunset", 6), (2, 1, "night", 6), (3, 1, "sketch", 6),
    ]  # fmt: skip


async def test_mistakes_are_told_as_they_are_typed_and_nothing_wrong_is_queued(folder):
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        await until(pilot, lambda: "enter on a folder takes its pictures" in shown(app))  # no complaint before a word
        assert not screen.query(".-wrong")
        await write(pilot, "inputs", "nowhere")
        await until(pilot, lambda: "turn 1: prompt must be text of 1 to 4,000 characters, found ''" in shown(app))
        assert screen.query_one("#turn-prompt").has_class("-wrong")
        await write(pilot, "turn-prompt", "a [b]red[/b] thing")
        await write(pilot, "steps", "0")
        await until(pilot, lambda: "steps must be a whole number from 1 to 1000, found 0" in shown(app))
        assert [field.id for field in screen.query(".-wrong")] == ["steps"]
        await write(pilot, "steps", "")
        await until(pilot, lambda: "✗ nowhere does not exist: check the name" in shown(app))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: any(toast.startswith("not queued") for toast in toasts(app)))
        assert app.current_mode == "batch"
        await write(pilot, "inputs", "photos")
        await write(pilot, "model", "kontext-huge")
        await until(pilot, lambda: "there is no model 'kontext-huge'" in shown(app))
        assert screen.query_one("#model").has_class("-wrong")
    assert rows(folder / "jobs.db", "SELECT count(*) FROM jobs") == [(0,)]


async def test_turns_are_added_moved_branched_removed_and_brought_back(folder):
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        screen.query_one("#turn-prompt").focus()
        await pilot.press(*"one", "ctrl+n", *"two", "ctrl+n", *"three")
        prompts = lambda: [turn.prompt for turn in screen.form.turns]  # noqa: E731
        assert prompts() == ["one", "two", "three"]
        await pilot.press("escape", "K")  # three goes up
        assert prompts() == ["one", "three", "two"]
        assert screen.at == 1
        await pilot.press("b", *"!", "escape")  # a branch of three
        assert prompts() == ["one", "three", "three!", "two"]
        assert screen.form.turns[2].start == "1"
        await pilot.press("g", "x")
        assert [(turn.prompt, turn.start) for turn in screen.form.turns] == [
            ("three", ""), ("three!", "0"), ("two", ""),
        ]  # fmt: skip
        await pilot.press("u")
        assert prompts() == ["one", "three", "three!", "two"]
        await pilot.press("G", "enter")
        assert app.focused.id == "turn-prompt"
        assert app.focused.text == "two"
        await pilot.click("#turns", offset=(12, 1))
        await until(pilot, lambda: screen.query_one("#turn-prompt").text == "three")


async def test_a_batch_is_saved_as_a_script_and_loaded_again(folder):
    app = app_over(folder)
    (folder / "scripts").mkdir()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        screen.form = Form(
            inputs=("photos", "other/*.png"), model="kontext-tiny", seed="7", output="out/{stem}.jpg",
            precision="fp8",
            turns=(TurnForm("sunset"), TurnForm("no", start="0", steps="3")),
        )  # fmt: skip
        screen.fill()
        await pilot.pause(0.3)
        await pilot.press("ctrl+s")
        await pilot.press("ctrl+u", *"scripts/mine", "enter")
        file = folder / "scripts" / "mine.yaml"
        await until(pilot, lambda: "saved scripts/mine.yaml" in toasts(app))
        saved = scripts.load(file)
        assert saved.dump() == screen.checked.script.dump()
        assert saved.input == (str(folder / "photos"), str(folder / "other/*.png"))
        kept = screen.form
        await pilot.press("ctrl+l")
        assert screen.form == Form(model="kontext-tiny")
        await pilot.press("ctrl+o", *"scripts/mine.yaml", "enter")
        await until(pilot, lambda: screen.form == kept)
        (folder / "broken.yaml").write_text("input: photos\nturns: [1, {prompt: a, stps: 2}]\n")
        await pilot.press("ctrl+o", "ctrl+u", *"broken.yaml", "enter")
        await until(pilot, lambda: any("unknown key 'stps': did you mean `steps`?" in each for each in toasts(app)))
        assert screen.form == kept


async def test_a_script_written_by_hand_is_not_written_over_unasked(folder):
    text = "# my own\ninput: photos\nmodel: kontext-tiny\nturns:\n  - sunset\n"
    (folder / "x.yaml").write_text(text)
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        await pilot.press("ctrl+o", *"x.yaml", "enter")
        await until(pilot, lambda: screen.form.inputs == ("photos",))
        await pilot.press("ctrl+s", "enter")
        await until(pilot, lambda: "Write over x.yaml?" in shown(app))
        await pilot.press("n")
        await pilot.pause(0.2)
        assert (folder / "x.yaml").read_text() == text
        await pilot.press("ctrl+s", "enter")
        await until(pilot, lambda: "Write over x.yaml?" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: "# my own" not in (folder / "x.yaml").read_text())
        await write(pilot, "turn-prompt", "night")
        await pilot.press("ctrl+s", "enter")  # its own words now: no question
        await until(pilot, lambda: "night" in (folder / "x.yaml").read_text())
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.current_mode == "queue")
    assert rows(folder / "jobs.db", "SELECT script_path FROM batches") == [(str(folder / "x.yaml"),)]


async def test_a_draft_survives_the_app_however_it_ends(folder):
    app = app_over(folder)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await open_batch(pilot)
        await write(pilot, "turn-prompt", "half a though")
        await until(pilot, lambda: "half a though" in json.dumps(config.load_state(folder / "jobs.db")))
        assert app.is_running  # it is on the disk before the app ends
    async with (again := app_over(folder)).run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: again.current_mode == "batch")
        await until(pilot, lambda: again.screen.form == screen.form)
        assert again.screen.query_one("#turn-prompt").text == "half a though"


async def test_folders_are_counted_without_waiting_for_pipes_and_their_names_are_only_text(folder):
    os.mkfifo(folder / "photos" / "pipe.png")
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "a.jpg")
    os.mkfifo(folder / "pipe" / "b")
    for name in nights.HOSTILE:
        if "\0" not in name and len(name) < 200 and "/" not in name:
            make_pictures(folder / "odd" / f"{name}.d", 1)
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        await until(pilot, lambda: "photos  6" in shown(app))  # by its name, a pipe is a picture for the decoder
        await until(pilot, lambda: "pipe  1" in shown(app))
        tree = screen.query_one(FolderTree)
        await walk(pilot, tree, lambda name: name == "odd")
        await pilot.press("l")
        await until(pilot, lambda: "\\x1b[31m" in shown(app))
        assert "\x1b" not in shown(app)
        await walk(pilot, tree, lambda name: "sur" in name)
        await pilot.press("enter")
        assert screen.form.inputs == ("odd/sur?rogate.jpg.d/**",)
        await write(pilot, "model", "kontext-tiny")
        await write(pilot, "turn-prompt", "a")
        await until(pilot, lambda: "1 picture, 1 turn each" in shown(app))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.current_mode == "queue")


async def test_an_endless_folder_keeps_nobody_waiting(folder, monkeypatch):
    import core.inputs

    scandir = os.scandir

    def slow(path):
        if "slow" in os.fspath(path):
            time.sleep(60)  # a drive that does not answer
        return scandir(path)

    (folder / "slow").mkdir()
    monkeypatch.setattr(core.inputs.os, "scandir", slow)
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screen = await open_batch(pilot)
        await write(pilot, "inputs", "slow")
        await write(pilot, "turn-prompt", "a")
        await pilot.pause(1.0)
        began = time.monotonic()
        await write(pilot, "inputs", "photos")
        await write(pilot, "model", "kontext-tiny")
        await until(pilot, lambda: screen.prospect is not None and screen.prospect.pictures == 5)
        assert time.monotonic() - began < 10
        began = time.monotonic()
    assert time.monotonic() - began < 10


async def test_in_a_small_terminal_the_folders_take_turns_with_the_form(folder):
    app = app_over(folder)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_batch(pilot)
        await until(pilot, lambda: "guidance" in shown(app))
        await until(pilot, lambda: "photos  5" not in shown(app))
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "photos  5" in shown(app))
        await pilot.press("j", "j", "enter")
        await until(pilot, lambda: app.focused.id == "turn-prompt")
        assert screen.form.inputs == ("photos",)
        await until(pilot, lambda: "photos  5" not in shown(app))
        await pilot.press("ctrl+t", "escape")
        assert app.focused.id == "inputs"
        await pilot.press("escape", "escape")
        await until(pilot, lambda: app.current_mode == "queue")


async def test_pasted_text_is_only_text(folder):
    from textual import events

    app = app_over(folder)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await open_batch(pilot)
        for name in ("turn-prompt", "inputs", "output"):
            field = screen.query_one(f"#{name}")
            field.focus()
            await pilot.pause()
            field.post_message(events.Paste("a\x1b[31mred\x07"))
        await until(pilot, lambda: "\\x1b[31mred\\x07" in screen.form.turns[0].prompt)
        assert "\x1b" not in json.dumps(batch.to_state(screen.form)).replace("\\\\x1b", "")


async def test_a_real_worker_edits_what_the_form_queued(folder):
    (folder / "cats").mkdir()
    with Image.open(PHOTOS / "cat.jpg") as image:
        image.resize((160, 120)).save(folder / "cats" / "cat.png")
    app = app_over(folder)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_batch(pilot)
        await write(pilot, "inputs", "cats")
        await write(pilot, "model", "kontext-tiny")
        await write(pilot, "steps", "2")
        await write(pilot, "turn-prompt", "Make it look like sunset")
        await until(pilot, lambda: "1 picture, 1 turn each: 2 steps" in shown(app))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.current_mode == "queue")
        command = [sys.executable, "-m", "kontext_tui", "work", "--drain", "--quiet", "--db", str(folder / "jobs.db")]
        worker = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        await until(pilot, lambda: rows(folder / "jobs.db", "SELECT state FROM jobs") == [("done",)], 120)
        assert await worker.wait() == 0
        with Image.open(folder / "edited" / "cat.png") as result:
            assert result.size == (160, 120)
        await pilot.press("f4")
        await until(pilot, lambda: "for one worker" in shown(app))  # now it is known what such turns take
        await until(pilot, lambda: "from 1 turn made here" in shown(app))
    twin = [sys.executable, "-m", "kontext_tui", "list", "--json", "--db", str(folder / "jobs.db")]
    done = subprocess.run(twin, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["state"] == "done"
