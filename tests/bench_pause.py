"""What keeps a GPU waiting between two denoise loops: `make bench-pause`, or `python tests/bench_pause.py WxH ...`.

The real worker, queue, pictures and files around a model that leaves the processor alone, as a GPU does: 28 steps of
160 ms. What a VAE takes comes on top. Also how long the notes of a step hold the loop.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from conftest import PHOTOS
from fast_worker import FastEdit, FastProgress, FastSession, FastStudio
from PIL import Image, ImageChops
from test_queue import enqueue

from core.edit.geometry import KONTEXT_BUCKETS, to_working, working_size
from core.jobs.database import connect
from core.jobs.events import Event
from core.jobs.worker import Worker, drain

STEPS, STEP_MS = 28, 160.0
LATENTS = os.urandom(4096 * 64 * 2)
"""As many bytes as a megapixel's, in BF16."""
TURNS = ["make it night", "add fog"]


@dataclass
class Session(FastSession):
    """Steps that take their time and no processor's. held: ms that each step's callback took."""

    sizes: tuple[tuple[int, int], ...] = KONTEXT_BUCKETS
    step_ms: float = STEP_MS
    held: list[float] | None = None

    def edit(self, image, prompt, *, steps, on_step, **asked: Any) -> FastEdit:
        size = working_size(*image.size, KONTEXT_BUCKETS)
        image = to_working(image, size)
        for step in range(steps):
            start = time.perf_counter()
            time.sleep(self.step_ms / 1000)
            stepped = time.perf_counter()
            on_step(step + 1, (stepped - start) * 1000, None, lambda: None)
            if self.held is not None:
                self.held.append((time.perf_counter() - stepped) * 1000)
        return FastEdit(ImageChops.add(image, Image.new("RGB", size, (3, 3, 3))), 0.0)

    def snapshot(self, step, latents):
        return FastProgress(step, "bfloat16", (1, 4096, 64), LATENTS)


@dataclass
class Studio(FastStudio):
    session: Session | None = None

    def open(self, *asked: Any, **options: Any) -> FastSession:
        assert self.session is not None
        return self.session


def work(folder: Path, session: Session, pictures: list[tuple[str, Image.Image]], **asked: Any) -> list[Event]:
    """What the worker told of a night over these pictures."""
    (folder / "photos").mkdir()
    for name, image in pictures:
        image.save(folder / "photos" / name, quality=92)
    conn, told = connect(folder / "jobs.db"), []  # type: Any, list[Event]
    enqueue(conn, folder, turns=TURNS, **asked)
    drain(Worker(conn, Studio("test", folder / "log", session=session), told.append, checkpoint_seconds=0.001))
    return told


def photographs(width: int, height: int, count: int) -> list[tuple[str, Image.Image]]:
    """Enlarged, with a sensor's noise, so that they compress as photographs do."""
    with Image.open(PHOTOS / "pavilion.jpg") as image:
        levels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), np.int16)
    noise = np.random.default_rng(0).normal(0, 2, levels.shape)
    image = Image.fromarray((levels + noise).round().clip(0, 255).astype(np.uint8))
    return [(f"{number}.jpg", ImageChops.offset(image, 8 * number, 0)) for number in range(count)]


def in_folder(run: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="kontext-tui-bench-", dir="/var/tmp") as name:  # a disk, not memory
        return run(Path(name))


def main(sizes: list[str]) -> None:
    for text in sizes:
        width, height = map(int, text.split("x"))
        pictures = photographs(width, height, 4)
        told = in_folder(lambda folder, pictures=pictures: work(folder, Session(Path(folder / "log")), pictures,
                                                                steps=STEPS))  # fmt: skip
        pauses: dict[bool, list[float]] = {True: [], False: []}
        for event in told:
            if event.what == "turn_done" and event.data["pause_ms"] is not None:
                pauses[event.turn == 1].append(event.data["pause_ms"])
        job, turn = (median(pauses[first]) for first in (True, False))
        share = STEPS * STEP_MS / (STEPS * STEP_MS + (job + turn) / 2)
        print(
            f"{text}: {job:.0f} ms to the next job, {turn:.0f} ms to the next turn; {share:.1%} in steps, without VAE"
        )
    session = Session(Path(os.devnull), step_ms=40.0, held=[])
    in_folder(lambda folder: work(folder, session, photographs(64, 64, 1), steps=100))
    held = sorted(session.held or [])
    print(f"notes and saved state, after every step: {median(held):.2f} ms, p90 {held[len(held) * 9 // 10]:.2f} ms")


if __name__ == "__main__":
    main(sys.argv[1:] or ["1024x1024", "4000x3000"])
