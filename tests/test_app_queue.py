"""The queue screen on a real database: many jobs, keys that act, a list that follows what workers do."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import nights
import pytest
from conftest import ROOT, make_pictures, rows
from textual import events
from watching import shown, toasts, until

from core.jobs import board, claims, control
from core.jobs.database import connect
from kontext_tui.app import KontextApp
from kontext_tui.settings import Settings
from kontext_tui.widgets.job_table import JobTable


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    connect(path).close()
    return path


@contextmanager
def queue_of(database: Path) -> Iterator[Any]:
    with closing(connect(database)) as conn:
        yield conn


def names(count: int) -> list[str]:
    return [f"IMG_{index:05}.jpg" for index in range(count)]


def app_over(database: Path) -> KontextApp:
    return KontextApp(database, Settings(theme="kontext"))


async def test_ten_thousand_jobs_are_walked_and_few_rows_are_read(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(10_000))
    app = app_over(database)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(
            pilot, lambda: app.screen.query(JobTable) and len(app.screen.query_one(JobTable).numbers) == 10_000
        )
        table = app.screen.query_one(JobTable)
        await until(pilot, lambda: "IMG_00000.jpg" in shown(app))
        await pilot.press("G")
        await until(pilot, lambda: "IMG_09999.jpg" in shown(app))
        assert table.current == 10_000
        await pilot.press("k", "k", "ctrl+u")
        await until(pilot, lambda: table.current == 10_000 - 2 - (table.size.height - 1))
        assert len(table.rows) <= 3 * table.size.height
        await pilot.press("g")
        await until(pilot, lambda: "IMG_00000.jpg" in shown(app))


async def test_keys_change_jobs_and_say_so(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(6))
    app = app_over(database)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: "IMG_00005.jpg" in shown(app))
        table = app.screen.query_one(JobTable)
        await pilot.press("c")
        await until(pilot, lambda: rows(database, "SELECT state FROM jobs WHERE id = 1") == [("cancelled",)])
        await until(pilot, lambda: "job 1 cancelled; r queues again" in toasts(app))
        await until(pilot, lambda: table.current == 1 and table.cursor == 5)  # it went to the end, the cursor with it
        await pilot.press("r")
        await until(pilot, lambda: rows(database, "SELECT state FROM jobs WHERE id = 1") == [("queued",)])
        await pilot.press("g", "space", "space", "h")  # jobs 1 and 2 are marked
        await until(pilot, lambda: rows(database, "SELECT id FROM jobs WHERE state = 'held'") == [(1,), (2,)])
        await until(pilot, lambda: not table.marked)
        await until(pilot, lambda: "2 jobs held; h releases" in toasts(app))
        await pilot.press("right_square_bracket", "right_square_bracket")
        await until(pilot, lambda: app.screen.view.state == "held" and list(table.numbers) == [1, 2])
        await pilot.press("asterisk", "h")
        await until(pilot, lambda: rows(database, "SELECT count(*) FROM jobs WHERE state = 'held'") == [(0,)])
        await pilot.press("escape")
        await until(pilot, lambda: len(table.numbers) == 6)
        await pilot.press("G", "plus")
        await until(pilot, lambda: rows(database, "SELECT id FROM jobs WHERE priority = 1") == [(6,)])
        await until(pilot, lambda: table.numbers[0] == 6 and table.current == 6)
        await pilot.press("r")  # nothing to retry: said, not done
        await until(pilot, lambda: "job 6 queued: left as it is" in toasts(app))


async def test_the_queue_is_paused_and_resumed_and_it_shows(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(2))
    app = app_over(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "IMG_00001.jpg" in shown(app))
        await pilot.press("p")
        await until(pilot, lambda: "paused: by hand" in shown(app))
        assert rows(database, "SELECT value FROM settings WHERE key = 'paused'") == [("by hand",)]
        await pilot.press("p")
        await until(pilot, lambda: "paused: by hand" not in shown(app))
        with queue_of(database) as conn:
            control.pause(conn, "the disk [red]is[/] full\x1b[5m")  # another process
        await until(pilot, lambda: "paused: the disk [red]is[/] full" in shown(app))


async def test_the_filter_narrows_and_escape_gives_back_what_was_there(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, [*names(50), "cat 100%.jpg", "dog_1.jpg"])
    app = app_over(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "IMG_00001.jpg" in shown(app))
        table = app.screen.query_one(JobTable)
        await pilot.press("slash", *"100%")
        await until(pilot, lambda: list(table.numbers) == [51])
        await pilot.press("enter")
        await until(pilot, lambda: app.focused is table)
        await pilot.press("escape")
        await until(pilot, lambda: len(table.numbers) == 52)
        await pilot.press("slash", *"q1")
        await until(pilot, lambda: "No such jobs. esc shows them all." in shown(app))
        assert app.is_running  # q was a letter
        await pilot.press("escape")
        await until(pilot, lambda: len(table.numbers) == 52)
        await pilot.press("slash", *"#52", "enter")
        await until(pilot, lambda: list(table.numbers) == [52])


async def test_what_is_typed_at_once_after_the_slash_is_text_and_no_command(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, [*names(5), "wcrq.jpg"])
    app = app_over(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "IMG_00001.jpg" in shown(app))
        table = app.screen.query_one(JobTable)
        for key, character in (("slash", "/"), *((letter, letter) for letter in "wcrq")):
            app.post_message(events.Key(key, character))  # in one go, as a pasted text or a slow line brings them
        await until(pilot, lambda: list(table.numbers) == [6])
        assert app.worker is None
        assert rows(database, "SELECT count(*) FROM jobs WHERE state = 'queued'") == [(6,)]


async def test_sorting_goes_through_the_columns_and_a_click_on_a_heading_chooses_one(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, ["b.jpg", "C.jpg", "a.jpg"])
    app = app_over(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "b.jpg" in shown(app))
        table = app.screen.query_one(JobTable)
        assert list(table.numbers) == [1, 2, 3]
        await pilot.press("s")
        await until(pilot, lambda: list(table.numbers) == [3, 2, 1])  # the newest first
        await pilot.press("s")
        await until(pilot, lambda: list(table.numbers) == [3, 1, 2])  # by name, whatever the case
        await pilot.press("S")
        await until(pilot, lambda: list(table.numbers) == [2, 1, 3])
        await pilot.click("TableHead", offset=(18, 0))  # the heading "name", sorted by already: the other way round
        await until(pilot, lambda: list(table.numbers) == [3, 1, 2])


async def test_a_frozen_list_stands_still_while_the_queue_goes_on(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(3))
        app = app_over(database)
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: "IMG_00002.jpg" in shown(app))
            table = app.screen.query_one(JobTable)
            await pilot.press("f")
            nights.work(conn, claims.register_worker(conn, "cpu", "0"))
            await until(pilot, lambda: "✓ done 1" in shown(app))  # the counts are live
            await pilot.pause(1.0)
            assert list(table.numbers) == [1, 2, 3]
            await pilot.press("f")
            await until(pilot, lambda: list(table.numbers) == [2, 3, 1])


async def test_what_runs_is_shown_with_its_steps_and_the_time_left(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(40), nights.TURNS)
        worker = claims.register_worker(conn, "cuda:0", "0")
        for _ in range(3):
            nights.work(conn, worker, step_ms=400.0)
        nights.work(conn, worker, step_ms=500.0, stop_at=14)
        app = app_over(database)
        async with app.run_test(size=(120, 40)) as pilot:
            for part in ("14/28", "▶ cuda:0 IMG_00003.jpg", "turn 1/3 Make it a sunset", "500 ms p50 400 p95 500"):
                await until(pilot, lambda part=part: part in shown(app))
            text = shown(app)
            # 36 jobs of 76 steps and 62 steps of the one at work, 0.4 s each
            assert f"{(36 * 76 + 62) * 0.4 / 60:.0f}m"[:2] in text
            assert "for 37 jobs" in text
            claim = rows(database, "SELECT id FROM jobs WHERE state = 'running'")
            assert claim == [(4,)]


async def test_a_job_in_full_beside_the_list_and_over_it(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, ["cat.jpg"], nights.TURNS)
        nights.work(conn, claims.register_worker(conn, "cpu", "0"))
    app = app_over(database)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "turn_done 3" in shown(app))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "turn_done 3" not in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "Remove all the people in this image" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: not app.screen.is_modal)


async def test_where_the_app_was_left_it_opens_again(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(30))
    app = app_over(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "IMG_00001.jpg" in shown(app))
        await pilot.press("slash", *"0001", "enter")
        table = app.screen.query_one(JobTable)
        await until(pilot, lambda: len(table.numbers) == 11)
        await pilot.press("j", "j", "j")
        await until(pilot, lambda: table.cursor == 3)
        was = table.current
    again = app_over(database)
    async with again.run_test(size=(100, 30)) as pilot:
        await until(
            pilot, lambda: again.screen.query(JobTable) and len(again.screen.query_one(JobTable).numbers) == 11
        )
        await until(pilot, lambda: again.screen.query_one(JobTable).current == was)
        await pilot.press("escape")
        await until(pilot, lambda: len(again.screen.query_one(JobTable).numbers) == 30)


async def test_hostile_names_and_prompts_are_only_text(database):
    from core.jobs.queue import NewTurn

    prompt = "[@click=app.quit]x[/] \x1b[31m \u202e $error [bold]"
    with queue_of(database) as conn:
        nights.add(conn, database.parent, list(nights.HOSTILE), (NewTurn(1, 0, prompt, 7, 28, 2.5),))
        worker = claims.register_worker(conn, "cpu", "0")
        claim = claims.claim(conn, worker)
        claims.fail_job(conn, claim, "input", "cannot [red]read\x1b[31m")
        nights.work(conn, worker, stop_at=3)
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: "[bold red]markup[/].jpg" in shown(app))
        for _ in nights.HOSTILE:
            await pilot.press("j")
            await pilot.pause(0.15)
            text = shown(app)
            assert "\x1b" not in text
            assert not {"\x9b", "\x07", "\u202e", "\udcff", "\x00"} & set(text)
        await until(pilot, lambda: "[@click=app.quit]x[/] \\x1b[31m" in shown(app))
        await until(pilot, lambda: "cannot [red]read\\x1b[31m" in shown(app))
        await pilot.press("asterisk", "c")
        await until(pilot, lambda: any("jobs cancelled" in note for note in toasts(app)))


async def test_a_folder_is_edited_by_a_worker_that_the_app_starts_and_that_outlives_it(tmp_path, monkeypatch):
    make_pictures(tmp_path / "photos", 9)
    (tmp_path / "edits.yaml").write_text(
        "input: photos\noutput: edited\nmodel: kontext-tiny\nseed: 3\nsteps: 5\nturns: [make it night, add fog]\n"
    )
    database = tmp_path / "jobs.db"
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("KONTEXT_TUI_STUDIO", "fast_worker:FastStudio")
    monkeypatch.setenv("KONTEXT_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("KONTEXT_TEST_STEP_MS", "60")
    subprocess.run(
        [sys.executable, "-m", "kontext_tui", "add", "edits.yaml"], cwd=tmp_path, check=True, env=dict(os.environ)
    )
    app = app_over(database)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: "no worker is at work: w starts one" in shown(app))
        await pilot.press("w")
        await until(pilot, lambda: "▶ running" in shown(app))
        await until(pilot, lambda: "p50 60" in shown(app))
        await until(pilot, lambda: re.search("✓ done [2-8]", shown(app)))
        started = app.worker
        await pilot.press("q")
        await pilot.pause()
    assert str(app.return_value).startswith("workers go on: 1 (")
    assert started is not None
    assert started.process.poll() is None
    again = app_over(database)
    async with again.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: "✓ done 9" in shown(again), 60)
        await pilot.press("w")
        await until(pilot, lambda: "1 worker asked to end after the step; w starts one again" in toasts(again))
        await asyncio.get_running_loop().run_in_executor(None, started.process.wait, 20)
        await until(pilot, lambda: "no worker is at work" in shown(again))
    assert rows(database, "SELECT count(*) FROM turns WHERE state = 'done'") == [(18,)]


def test_every_order_holds_every_job_once(database):
    with queue_of(database) as conn:
        nights.add(conn, database.parent, names(30))
        worker = claims.register_worker(conn, "cpu", "0")
        for _ in range(3):
            nights.work(conn, worker)
        claims.fail_job(conn, claims.claim(conn, worker), "input", "no")
        claims.retry_later(conn, claims.claim(conn, worker), "memory", "no", None, 60_000)
        nights.work(conn, worker, stop_at=2)
        control.hold(conn, [10, 11])
        control.cancel(conn, [12])
        control.prioritise(conn, [20], 3)
        everything = set(range(1, 31))
        for sort in board.SORTS:
            for reverse in (False, True):
                for text in ("", "IMG"):
                    found = board.numbers(conn, board.View(sort=sort, reverse=reverse, text=text))
                    assert sorted(found) == sorted(everything), (sort, reverse, text)
        order = list(board.numbers(conn, board.View()))
        assert order[:3] == [6, 20, 7]  # at work, the one moved ahead, the next
        assert order[-4:] == [3, 2, 1, 12]
        seen = board.rows(conn, [20, 7, 30, 999])
        assert set(seen) == {20, 7, 30}
        assert board.ahead(conn, seen.values()) == {20: 0, 7: 1, 30: 20}
        waiting = 28 * (30 - 3 - 1 - 2 - 1)  # not the done, dead, held, cancelled
        assert board.steps_left(conn) == waiting - 2
