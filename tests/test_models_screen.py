"""Models and engines in the app: what there is and why it is not used, and real commands run as child processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import small_checkpoints as small
from test_inventory import engine, stored
from watching import shown, toasts, until

from core import paths
from core.edit import artifacts
from core.edit.runtimes.trt_api import is_installed
from core.jobs.database import connect
from core.jobs.process import is_gone
from kontext_tui import settings as config
from kontext_tui import tasks
from kontext_tui.app import KontextApp
from kontext_tui.settings import Settings
from kontext_tui.tasks import Command, Task

SECONDS = 120.0
"""For a real command on a machine that has other work."""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    connect(tmp_path / "jobs.db").close()
    return tmp_path / "jobs.db"


def app_over(database: Path) -> KontextApp:
    app = KontextApp(database, Settings(theme="kontext"))
    app.state["screen"] = "models"
    return app


async def open_on(pilot, *keys: str) -> None:
    await until(pilot, lambda: "kontext-dev" in shown(pilot.app))
    await pilot.press(*keys)


def kinds() -> list[str]:
    return sorted(artifact.kind for artifact in artifacts.list_all())


def left_over() -> list[Path]:
    return [*paths.artifacts().glob("*/.*.part"), *config.state_file().with_name("tasks").glob("*")]


async def test_a_look_that_overtakes_another_still_puts_the_cursor_on_what_was_made(database):
    app = app_over(database)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_on(pilot)
        screen = app.screen
        last = screen.models.keys[-1]
        assert screen.models.key != last
        screen.look(last)
        screen.look()
        await until(pilot, lambda: screen.models.key == last)


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
async def test_from_nothing_to_an_engine_that_is_looked_into_and_removed_again(database):
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_on(pilot, "j", "b")
        await until(pilot, lambda: "kontext-tui engine build --model kontext-tiny --precision bf16" in shown(app))
        await until(pilot, lambda: "kontext-tui export --model kontext-tiny --precision bf16" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "export kontext-tiny bf16  1 of 2" in shown(app))
        await until(pilot, lambda: "c Cancel" in shown(app))
        await until(pilot, lambda: "build kontext-tiny bf16 for sm120  2 of 2" in shown(app), SECONDS)
        await until(pilot, lambda: "✓ build kontext-tiny bf16 for sm120  done" in shown(app), SECONDS)
        assert kinds() == ["engine", "onnx"]
        await until(pilot, lambda: "? not verified" in shown(app) and "flavour tensorrt_rtx" in shown(app))
        await until(pilot, lambda: "c Cancel" not in shown(app))
        await pilot.press("l")  # the cursor is on what was made
        await until(pilot, lambda: f"attention  {2 * small.BLOCKS} bf16 products" in shown(app), SECONDS)
        await pilot.press("escape", "v")
        await until(pilot, lambda: "✗ verify kontext-tiny bf16  failed" in shown(app), SECONDS)
        await until(pilot, lambda: "a TensorRT engine needs an NVIDIA GPU, and none is in reach" in shown(app))
        await pilot.press("x")
        await until(pilot, lambda: "that cannot be undone" in shown(app))
        await pilot.press("n", "x", "y")
        await until(
            pilot, lambda: any("removed the engine of kontext-tiny in bf16" in toast for toast in toasts(app))
        )
        await until(pilot, lambda: kinds() == ["onnx"])
    assert left_over() == []


async def test_quantizing_outlives_the_app_is_found_again_and_cancelled_with_nothing_half_left(database):
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_on(pilot, "j", "z")
        await until(pilot, lambda: "kontext-tui quantize --model kontext-tiny --precision fp8" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "editing the calibration pairs" in shown(app), SECONDS)
        await pilot.press("e")
        await until(pilot, lambda: any("one thing at a time" in toast for toast in toasts(app)))
        running = app.tasks.task.identity
        await pilot.press("q")
    assert app.return_value == "quantize kontext-tiny fp8 goes on"
    assert not is_gone(running)
    again = app_over(database)
    async with again.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: "▶ quantize kontext-tiny fp8" in shown(again))
        assert again.tasks.task.identity == running
        await pilot.press("c")
        await until(pilot, lambda: "– quantize kontext-tiny fp8  cancelled" in shown(again), SECONDS)
        await until(pilot, lambda: "nothing half is kept" in shown(again))
    assert is_gone(running)
    assert kinds() == left_over() == []
    assert "task" not in config.load_state(database)


async def test_what_fails_is_told_in_its_own_words_on_whichever_screen(database):
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_on(pilot)
        app.tasks.start((Command("build it", ("engine", "build", "--precision", "fp9")),))
        await until(pilot, lambda: app.tasks.running)
        await pilot.press("1")
        await until(pilot, lambda: any("build it: there is no precision" in each for each in toasts(app)), SECONDS)
        await pilot.press("4")
        await until(pilot, lambda: "✗ build it  failed" in shown(app))
        await until(pilot, lambda: "name one of bf16, fp8, fp4, fp4-svd" in shown(app))


async def test_keys_say_what_they_want_where_they_cannot_do_anything(database):
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_on(pilot, "l", "v", "x", "p", "G", "e")
        words = ("l looks into", "v holds an engine", "x removes a checkpoint", "nothing to compare", "hf download")
        await until(pilot, lambda: all(any(word in toast for toast in toasts(app)) for word in words))
        await pilot.press("escape")
        await until(pilot, lambda: app.current_mode == "queue")


async def test_why_something_is_not_used_is_said_and_foreign_text_in_it_is_only_text(database):
    stored("checkpoint", "fp8", model="[red]x[/]\x1b[31m", weights="0" * 64)
    (stored("onnx", "bf16").folder / "model.onnx").write_bytes(b"cut")
    app = app_over(database)
    async with app.run_test(size=(140, 40), notifications=True) as pilot:
        await open_on(pilot, "j", "j")
        await until(pilot, lambda: {"broken", "bytes", "recorded"} <= set(shown(app).split()))
        await until(pilot, lambda: "[red]x[/]\\x1b[31m" in shown(app))
        await pilot.press("x", "y")
        await until(pilot, lambda: kinds() == ["checkpoint"])


async def test_the_mouse_chooses_and_what_others_make_appears(database):
    made = engine("bf16")
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await open_on(pilot)
        await pilot.click("ModelList", offset=(6, 2))
        await until(pilot, lambda: app.screen.entry.key == made.key)
        assert not app.screen.is_modal
        await pilot.click("ModelList", offset=(6, 2))  # what is chosen opens
        await until(pilot, lambda: app.screen.is_modal)
        await pilot.press("escape")
        other = engine("fp8")
        await until(pilot, lambda: other.key in [entry.key for entry in app.screen.entries])
        assert app.screen.entry.key == made.key  # the cursor stays
    assert config.load_state(database)["models"] == made.key


class TestTask:
    """Without an app."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def finish(self, task: Task) -> Task:
        import time

        end = time.monotonic() + SECONDS
        while task.outcome is None and time.monotonic() < end:
            task.poll()
            time.sleep(0.05)
        return task

    def test_one_that_was_killed_from_outside_has_failed(self):
        task = Task((Command("look", ("models",)),))
        task.start()
        os.kill(task.process.pid, signal.SIGKILL)
        assert self.finish(task).outcome == "failed"
        assert task.errors == ("look ended with exit code -9",)

    def test_asked_twice_it_ends_at_once(self):
        task = Task((Command("look", ("models",)), Command("look", ("models",))))
        task.start()
        task.stop()
        task.stop()
        assert self.finish(task).outcome == "cancelled"
        assert task.at == 0

    def test_one_that_ended_while_no_app_was_open_is_told_by_what_it_printed(self):
        task = Task((Command("look", ("models", "--json")),))
        task.start()
        task.process.wait(60)
        found = tasks.from_state(tasks.to_state(task))
        assert self.finish(found).outcome == "done"
        wrong = Task((Command("look", ("models", "remove", "zz")),))
        wrong.start()
        wrong.process.wait(60)
        found = tasks.from_state(tasks.to_state(wrong))
        assert self.finish(found).outcome == "failed"
        assert found.errors == ("there is nothing with the key 'zz': `kontext-tui models` shows the keys",)

    @pytest.mark.parametrize("state", [None, 3, {}, {"commands": []}, {"commands": [{}], "at": 0}])
    def test_a_state_that_is_no_task_is_forgotten(self, state):
        assert tasks.from_state(state) is None
