"""Every screen at 80x24 and at 140x40, compared with what it was: tests/screens holds them as text."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import nights
import pytest
from PIL import Image
from snapshots import NOW, SIZES, check, stop_clocks
from test_queue import enqueue
from test_worker import Place
from watching import shown, until

from core.jobs import claims, control, review
from core.jobs.database import connect
from core.jobs.results import Pick
from core.jobs.review import Change
from kontext_tui.app import KontextApp
from kontext_tui.settings import Settings
from kontext_tui.telemetry import Gauge, Telemetry

GIB = 2**30
TIMES = {
    "jobs": ("created_at", "started_at", "finished_at", "updated_at"),
    "turns": ("started_at", "finished_at", "reviewed_at"),
    "events": ("at",),
}


@pytest.fixture(autouse=True)
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks stand, and two GPUs are as full as they are."""
    stop_clocks(monkeypatch, tmp_path)
    gauges = [Gauge("GPU 0", 22 * GIB, 24 * GIB, 71.0, 281.0, 98), Gauge("GPU 1", 9 * GIB, 24 * GIB, 44.0, 35.0, 0)]
    monkeypatch.setattr(Telemetry, "sample", lambda self: gauges)


def set_times(database: Path) -> None:
    """Everything that has happened happened an hour ago, a minute apart."""
    with closing(connect(database)) as conn:
        for table, columns in TIMES.items():
            for column in columns:
                conn.execute(
                    f"UPDATE {table} SET {column} = ? + rowid * 60000 WHERE {column} IS NOT NULL",
                    (int((NOW - 3600) * 1000),),
                )
        conn.execute("UPDATE jobs SET run_after = ? WHERE run_after IS NOT NULL", (int((NOW + 1800) * 1000),))


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A queue in every state there is."""
    with closing(connect(tmp_path / "jobs.db")) as conn:
        nights.add(conn, Path("/home/ada/trip"), [f"IMG_{index:04}.jpg" for index in range(30)], nights.TURNS)
        workers = [claims.register_worker(conn, f"cuda:{index}", "0") for index in range(2)]
        for _ in range(3):
            nights.work(conn, workers[0], step_ms=420.0)
        claims.fail_job(conn, claims.claim(conn, workers[0]), "input", "not a picture: the file ends in its header")
        claims.retry_later(conn, claims.claim(conn, workers[0]), "memory", "out of memory", None, 60_000)
        nights.work(conn, workers[0], step_ms=431.0, stop_at=12)
        nights.work(conn, workers[1], step_ms=455.0, stop_at=25)
        control.hold(conn, [20, 21])
        control.cancel(conn, [22])
        control.prioritise(conn, [30], 3)
    set_times(tmp_path / "jobs.db")
    return tmp_path / "jobs.db"


@pytest.fixture
def morning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs that are done; of the first a redo, and decisions."""
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    (tmp_path / "photos").mkdir()
    for index, size in enumerate(((64, 48), (40, 60))):
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "photos" / f"photo-{index}.png")
    turns = ["Make it look like sunset", "Add a balloon at the top right", {"prompt": "Make it night", "from": 1}]
    enqueue(place.conn, place.folder, turns=turns, seed=3)
    assert place.start().wait(60) == 0
    review.redo(place.conn, Pick(1, 1), Change(prompt="Make it look like sunset, with long shadows"))
    assert place.start().wait(60) == 0
    review.decide(place.conn, [Pick(1, 1)], "rejected")
    review.decide(place.conn, [Pick(1, 2)], "accepted")
    place.conn.execute("UPDATE turns SET seconds = 12.5, seed = job_id * 1000 + turn, step_ms = '[431.0, 429.0]'")
    place.conn.close()
    set_times(place.database)
    return place.database


async def look(database: Path, size: tuple[int, int], name: str, *keys: str, waits: str) -> None:
    app = KontextApp(database, Settings(theme="kontext", preview=False))
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: waits in shown(app))
        await until(pilot, lambda: "GPU 0" in shown(app) or app.current_mode != "queue")
        for key in keys:
            await pilot.press(key)
        await check(pilot, name)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("queue", ()),
        ("queue-chosen", ("j", "space", "space", "p")),
        ("queue-filter", ("slash", "2")),
        ("queue-dead", ("right_square_bracket",) * 7),
        ("details", ("enter",)),
        ("help", ("question_mark",)),
        ("palette", ("ctrl+p",)),
    ],
)
async def test_the_queue(night, size, name, keys):
    await look(night, size, name, *keys, waits="12/28")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_an_empty_queue(tmp_path, size):
    connect(tmp_path / "jobs.db").close()
    await look(tmp_path / "jobs.db", size, "empty", waits="The queue is empty")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("review", ()),
        ("review-flip", ("space",)),
        ("review-prompt", ("e",)),
        ("review-branch", ("b",)),
        ("review-all", ("S",)),
        ("review-help", ("question_mark",)),
    ],
)
async def test_the_review(morning, size, name, keys):
    app = KontextApp(morning, Settings(theme="kontext"))
    app.state["screen"] = "review"
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: "changed" in shown(app) and "job 1 of 2" in shown(app))
        for key in keys:
            await pilot.press(key)
        await check(pilot, name)
