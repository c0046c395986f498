"""Every screen at 80x24 and at 140x40, compared with what it was: tests/screens holds them as text."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nights
import pytest
from conftest import make_pictures
from PIL import Image
from snapshots import NOW, SIZES, check, stop_clocks
from test_queue import enqueue
from test_worker import Place
from watching import shown, until

from core.edit import artifacts, inventory
from core.edit.models import MODELS, locate
from core.edit.runtimes import verdicts
from core.edit.runtimes.trt_api import Gpu
from core.edit.runtimes.verdicts import Verdict
from core.jobs import claims, control, review
from core.jobs.database import connect
from core.jobs.results import Pick
from core.jobs.review import Change
from kontext_tui.app import KontextApp
from kontext_tui.batch import Form, TurnForm, to_state
from kontext_tui.settings import Settings
from kontext_tui.tasks import Command, Task
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


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kontext-tiny with something made of it, in every standing there is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "kontext-tiny").symlink_to(locate(MODELS["kontext-tiny"]))
    monkeypatch.setitem(MODELS, "kontext-tiny", replace(MODELS["kontext-tiny"], folder=tmp_path / "kontext-tiny"))
    key = artifacts.model_hash(tmp_path / "kontext-tiny" / "transformer")
    monkeypatch.setattr(inventory, "_installed", lambda flavour: "1.7.1.116")
    rtx = {"flavour": "tensorrt_rtx", "version": "1.7.1.116", "profile": "504-512-520+48"}
    put("onnx", "bf16", 22, model=key)
    put("checkpoint", "fp8", 11, model=key, recipe="2a7f", calibration="91bc-8")
    broken = put("onnx", "fp8", 11, model=key)
    (broken.folder / "model.onnx").write_bytes(b"cut")
    proven = put("engine", "fp8", 16, model=key, sm="sm120", **rtx)
    put("engine", "fp8", 17, model=key, sm="sm89", **rtx)
    put("checkpoint", "fp4", 7, model="0" * 64)
    card = Gpu("NVIDIA GeForce RTX 5090", "sm120", "580.95")
    verdicts.keep(proven, card, Verdict(verdicts.engine_hash(proven), card.name, card.driver, "fp8", 0.0123, 0.05))
    figures = {"psnr": 38.2, "psnr_worst": 31.0, "ssim": 0.9912, "flip": 0.0213, "step_ms": 96.0, "bytes": 11 << 20}
    bf16 = {"runtime": "torch", "step_ms": 88.0, "bytes": 22 << 20}
    outcome = {"precisions": {"bf16": bf16, "fp8": {**figures, "runtime": "torch"}}, "edits": 12, "steps": 8}
    inventory.keep_comparison(key, {**outcome, "created": "2026-06-20T21:04:00+00:00"})


def put(kind: str, precision: str, megabytes: int, **parts: str) -> artifacts.Artifact:
    """An artifact that was made three hours ago by the same versions everywhere."""
    name = {"checkpoint": "model.safetensors", "onnx": "model.onnx", "engine": "model.engine"}[kind]

    def build(folder: Path) -> dict[str, str]:
        with (folder / name).open("wb") as file:
            file.truncate(megabytes << 20)
        return {"model": "kontext-tiny"}

    made = artifacts.make(kind, {"precision": precision, **parts}, build)
    path = made.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    created = datetime.fromtimestamp(NOW - 3 * 3600 - megabytes, UTC).isoformat()
    path.write_text(json.dumps(manifest | {"created": created, "seconds": 151.2, "versions": {"kontext-tui": "1.0"}}))
    return made


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("models", ()),
        ("models-engine", ("j",) * 6),
        ("models-details", ("enter",)),
        ("models-build", ("j", "b")),
        ("models-remove", ("j", "j", "x")),
        ("models-help", ("question_mark",)),
    ],
)
async def test_models_and_engines(store, tmp_path, size, name, keys):
    connect(tmp_path / "jobs.db").close()
    app = KontextApp(tmp_path / "jobs.db", Settings(theme="kontext"))
    app.state["screen"] = "models"
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: "kontext-dev" in shown(app))
        if name == "models":
            steps = tuple(Command(f"{what} kontext-tiny fp8", ()) for what in ("quantize", "export"))
            app.tasks.task = Task(steps, began=NOW - 34, what="choosing weights and scales", done=30, total=72)
            app.screen.show_task()
        for key in keys:
            await pilot.press(key)
        await check(pilot, name)


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


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "keys", "waits"),
    [
        ("batch", (), "1 turn each"),
        ("batch-folders", ("ctrl+t",), "Take this"),
        ("batch-branch", ("ctrl+n", *"Make it night", "escape", "b", *"!"), "3 turns each"),
        ("batch-help", ("f1",), "esc closes"),
    ],
)
async def test_a_new_batch(tmp_path, monkeypatch, size, name, keys, waits):
    home = tmp_path / "trip"
    make_pictures(home / "photos", 3)
    make_pictures(home / "photos" / "more", 2)
    connect(home / "jobs.db").close()
    monkeypatch.chdir(home)
    app = KontextApp(home / "jobs.db", Settings(theme="kontext"))
    app.state["screen"] = "batch"
    form = Form(inputs=("photos/",), model="kontext-tiny", turns=(TurnForm("Make it look like sunset"),))
    app.state["batch"] = {"form": to_state(form)}
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: "1 turn each" in shown(app))  # all of the plan, which may show behind a dialog
        for key in keys:
            await pilot.press(key)
        await until(pilot, lambda: waits in shown(app))
        await check(pilot, name)
