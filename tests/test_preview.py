"""The picture being denoised: painted by workers while somebody looks, never otherwise, and shown by the app."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures, rows
from PIL import Image, ImageStat
from test_queue import enqueue
from test_worker import Place
from watching import shown, until

from core import paths
from core.jobs import previews
from core.jobs.previews import Easel
from kontext_tui.app import KontextApp
from kontext_tui.settings import Settings
from kontext_tui.widgets.preview import LivePreview


def paint(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (64, 32), colour)


def never() -> Image.Image:
    raise AssertionError("nobody looks")


def later(easel: Easel, seconds: float = 2.0) -> None:
    easel.looked -= seconds


def test_nothing_is_painted_unless_somebody_looked_a_moment_ago(tmp_path):
    database = tmp_path / "jobs.db"
    easel = Easel(database, 7)
    later(easel)
    easel.after_step(1, 1, 1, (640, 320), never)
    assert not paths.previews().exists()
    previews.watch(database)
    easel.after_step(1, 1, 2, (640, 320), never)  # not a second after the last look
    later(easel)
    easel.after_step(1, 1, 3, (640, 320), paint)
    seen = previews.read(database, 7)
    assert seen is not None
    assert (seen.job_id, seen.turn, seen.step, seen.size, seen.image.size) == (1, 1, 3, (640, 320), (64, 32))
    assert seen.image.getpixel((5, 5)) == (255, 0, 0)
    assert previews.read(database, 8) is None
    assert not previews.watched(tmp_path / "other.db")
    marker = next(paths.previews().glob("*-watched"))
    os.utime(marker, (time.time() - 60,) * 2)
    later(easel)
    easel.after_step(1, 1, 4, (640, 320), never)
    easel.clear()
    assert previews.read(database, 7) is None


def test_a_picture_that_cannot_be_painted_or_read_costs_nothing_else(tmp_path):
    def fails() -> Image.Image:
        raise RuntimeError("out of memory")

    database = tmp_path / "jobs.db"
    easel = Easel(database, 1)
    previews.watch(database)
    later(easel)
    easel.after_step(1, 1, 1, (640, 320), fails)
    later(easel)
    easel.after_step(1, 1, 2, (640, 320), paint)
    painted = next(paths.previews().glob("*.rgb"))
    for broken in (b"", b"{", b'{"width": 9}\nshort', painted.read_bytes()[:-1], b"[]\n"):
        painted.write_bytes(broken)
        assert previews.read(database, 1) is None


def test_a_sketch_looks_like_what_the_decoder_makes_of_the_same_latents(tiny, photo):
    from core.edit.runtimes.torch_runtime import TorchRuntime
    from core.edit.studio import LoadedSession

    session = LoadedSession(tiny, TorchRuntime(tiny.transformer))
    sketches = {}

    def on_step(step, ms, latents, outlook):
        sketches[step] = (session.sketch(outlook(), photo.size), session.sketch(latents, photo.size))

    edit = session.edit(
        photo, "Make it night", seed=3, steps=6, guidance=2.5, context_refresh=1, keep_model_size=True,
        on_step=on_step, resume=None,
    )  # fmt: skip
    size = (edit.image.width // 8, edit.image.height // 8)
    target = np.asarray(edit.image.resize(size, Image.Resampling.BOX), dtype=float)

    def distance(image: Image.Image) -> float:
        assert image.size == size
        return float(np.sqrt(np.mean((np.asarray(image, dtype=float) - target) ** 2)))

    assert distance(sketches[6][0]) < 20  # of 255
    assert distance(sketches[2][0]) < distance(sketches[2][1]) - 10, "where it leads, not the noise of now"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    make_pictures(place.folder / "photos", 1)
    enqueue(place.conn, place.folder, turns=[{"prompt": "make it night", "steps": 400}], seed=3)
    return place


async def test_the_app_shows_the_picture_at_work_and_the_worker_stops_painting_when_it_is_closed(place):
    worker = place.start(step_ms=200)
    app = KontextApp(place.database, Settings(theme="kontext"))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "turn 1, after step" in shown(app))
        frame = app.screen.query_one(LivePreview)
        image = frame.shot.image
        assert image.size == (32, 32)
        assert ImageStat.Stat(image).mean != [0, 0, 0]
        step = frame.seen.step
        await until(pilot, lambda: frame.seen.step > step)
        app.touched -= 3600  # nobody has touched a key for an hour
        await until(pilot, lambda: "any key wakes" in shown(app))
        await pilot.press("j")
        await until(pilot, lambda: "turn 1, after step" in shown(app))
        await pilot.resize_terminal(120, 24)
        await until(pilot, lambda: not frame.region)
    marker = next(paths.previews().glob("*-watched"))
    os.utime(marker, (time.time() - previews.FRESH_SECONDS,) * 2)  # and so much later
    painted = previews.read(place.database, 1).step
    place.wait_for(lambda: rows(place.database, "SELECT step FROM turns")[0][0] > painted + 15)
    assert previews.read(place.database, 1).step <= painted + 1, "somebody still paints"
    worker.terminate()
    worker.wait()


async def test_previews_can_be_turned_off(place):
    worker = place.start(step_ms=100)
    app = KontextApp(place.database, Settings(theme="kontext", preview=False))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "▶ running" in shown(app))
        await pilot.pause(1.5)
        assert not app.screen.query_one(LivePreview).region
    assert not previews.watched(place.database)
    worker.terminate()
    worker.wait()
