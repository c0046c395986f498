"""Make the screenshots of the README: `make screenshots`.

The real app over a real queue: kontext-tiny edits the photographs in `examples/photos` in a real worker, and the app
is photographed as SVG while it does, and in the review afterwards. Times and the moment differ from run to run;
pictures, names, prompts and seeds do not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from core.jobs.database import connect
from core.jobs.results import Pick
from kontext_tui.app import KontextApp
from kontext_tui.screenshot import svg
from kontext_tui.settings import Settings
from kontext_tui.widgets.preview import LivePreview

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
SIZE = (140, 40)
SECONDS = 900.0
DONE = 4
LOOKED_AT = ("mountains.webp", "pavilion.jpg", "sunset.jpg")
REVIEWED = "pavilion.jpg"
EVENING = """\
input: photos
output: edited
model: kontext-tiny
seed: 7
steps: 12
turns:
  - Make it look like sunset
  - Add a balloon at the top right
  - prompt: Turn it into a pencil sketch
    from: 0
"""
NIGHT = """\
input: photos
output: night
model: kontext-tiny
seed: 11
turns:
  - Turn day into night
"""
MADE = (
    ("export", "--model", "kontext-tiny", "--precision", "bf16"),
    ("engine", "build", "--model", "kontext-tiny", "--precision", "bf16", "--gpu", "sm89"),
    ("engine", "build", "--model", "kontext-tiny", "--precision", "bf16", "--gpu", "sm120"),
)


def main(folder: Path) -> None:
    folder = folder.absolute()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {name: f"{home}/.{name[4:9].lower()}" for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
        os.environ |= {"HOME": home, "XDG_CONFIG_HOME": f"{home}/.config"}
        place = Path(home) / "trip"
        prepare(place)
        os.chdir(place)
        asyncio.run(at_work(place / "jobs.db", folder))
        asyncio.run(afterwards(place / "jobs.db", folder))


def prepare(place: Path) -> None:
    """A folder as a person would have one, and its queue: some wait, one is held, one cannot be read."""
    (place / "photos").mkdir(parents=True)
    for photo in sorted(PHOTOS.iterdir()):
        if photo.suffix != ".md":
            shutil.copy(photo, place / "photos")
    (place / "photos" / "scan-0041.tif").write_bytes(b"II*\0 the rest of the scan is lost")
    (place / "evening.yaml").write_text(EVENING)
    (place / "night.yaml").write_text(NIGHT)
    command(place, "add", "evening.yaml")
    command(place, "add", "night.yaml")
    command(place, "priority", *numbers(place, "scan-0041.tif"), "--to", "2")
    command(place, "hold", *numbers(place, "sunset.jpg")[-1:])


def command(place: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "kontext_tui", *arguments], cwd=place, check=True, capture_output=True)


def numbers(place: Path, name: str) -> list[str]:
    return [str(row[0]) for row in rows(place / "jobs.db", "SELECT id FROM jobs WHERE name = ? ORDER BY id", name)]


def rows(database: Path, sql: str, *given: object) -> list[Any]:
    with closing(connect(database)) as conn:
        return list(conn.execute(sql, given))


def start(database: Path, mode: str) -> KontextApp:
    app = KontextApp(database, Settings(theme="kontext"))
    app.state["screen"] = mode
    return app


async def until(pilot: Any, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was to be photographed never came")
        await pilot.pause(0.05)


def save(app: KontextApp, folder: Path, name: str) -> None:
    (folder / f"app-{name}.svg").write_text(svg(app, "kontext-tui"), "utf-8")
    print(folder / f"app-{name}.svg")


async def at_work(database: Path, folder: Path) -> None:
    """The queue, in the middle of a turn whose preview is on show."""
    worker = subprocess.Popen([sys.executable, "-m", "kontext_tui", "work", "--drain", "--quiet"])
    try:
        app = start(database, "queue")
        async with app.run_test(size=SIZE) as pilot:

            def at_its_best() -> bool:
                done = rows(database, "SELECT count(*) FROM jobs WHERE state = 'done'")[0][0]
                preview = app.screen.query_one(LivePreview)
                seen, running = preview.seen, app.screen.answer.glance.running if app.screen.answer else ()
                if done < DONE or seen is None or not running or running[0].row.name not in LOOKED_AT:
                    return False
                row, first = running[0].row, next(iter(app.screen.table.numbers), None)
                return row.id == seen.job_id == first == app.screen.table.current and 4 <= seen.step <= row.step <= 10

            while not (app.screen.query(LivePreview) and at_its_best()):
                await pilot.press("g")
                await pilot.pause(0.1)
            save(app, folder, "queue")
        if worker.wait(SECONDS) not in (0, 1):
            raise RuntimeError("the worker failed")
    finally:
        worker.terminate()
        worker.wait()


async def afterwards(database: Path, folder: Path) -> None:
    """The review, a new batch, and the models."""
    place = database.parent
    for name, decision in (("astronaut.jpg", "accept"), ("cat.jpg", "accept"), ("coffee.png", "reject")):
        command(place, decision, f"{numbers(place, name)[0]}.1")
    pick = Pick(int(numbers(place, REVIEWED)[0]), 2)
    command(place, "accept", f"{pick.job_id}.1")
    app = start(database, "review")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: hasattr(app.screen, "panes") and app.screen.totals is not None)
        app.screen.go(pick)
        await until(pilot, lambda: app.screen.shown == pick and app.screen.found is not None)
        await pilot.pause(1.0)
        save(app, folder, "review")
    app = start(database, "batch")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: bool(app.screen.query("#turns")))
        await app.screen.load(place / "evening.yaml")
        await until(pilot, lambda: app.screen.prospect is not None)
        await pilot.pause(1.0)
        save(app, folder, "batch")
    for arguments in MADE:
        command(place, *arguments)
    app = start(database, "models")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.screen.entries) > 7)
        await pilot.press("j", "j", "j")
        await pilot.pause(1.0)
        save(app, folder, "models")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
