"""Small pictures of what is being denoised, for whoever looks: painted only while somebody does.

A viewer keeps a marker file fresh; a worker that finds it fresh puts its latest sketch beside it, once a second at
most. Nothing of this is kept, and none of it touches the queue: it lies in the user's state folder. A worker that
nobody watches asks for the marker's time once a second and paints nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from core import paths

SECONDS = 1.0
"""How often a worker looks whether it is watched, and paints, at most."""
FRESH_SECONDS = 5.0
"""For how long one look keeps workers painting."""
LONG_SIDE = 128
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Preview:
    """What a worker painted last. step: of the turn, so many are done; size: of the picture, whose shape the sketch
    may not have."""

    job_id: int
    turn: int
    step: int
    size: tuple[int, int]
    image: Image.Image


def watch(database: Path) -> None:
    """Say that somebody looks at this queue's pictures now. Raises OSError where that cannot be written."""
    marker = _file(database, "watched")
    marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    marker.touch(mode=0o600)


def watched(database: Path) -> bool:
    """Whether somebody looked within the last seconds."""
    try:
        age = time.time() - _file(database, "watched").stat().st_mtime
    except OSError:
        return False
    return abs(age) < FRESH_SECONDS


def read(database: Path, worker_id: int) -> Preview | None:
    """The latest picture of a worker; None where there is none, or it cannot be read."""
    try:
        head, _, data = _file(database, f"{worker_id}.rgb").read_bytes().partition(b"\n")
        said = json.loads(head)
        image = Image.frombytes("RGB", (said["width"], said["height"]), data)
        return Preview(said["job"], said["turn"], said["step"], tuple(said["size"]), image)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tidy(database: Path) -> None:
    """Remove what workers and viewers of any queue left behind a day ago."""
    with suppress(OSError):
        for path in _file(database, "").parent.iterdir():
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink(missing_ok=True)


@dataclass
class Easel:
    """Where one worker puts its pictures."""

    database: Path
    worker_id: int
    looked: float = field(default_factory=time.monotonic)
    painted: bool = False

    def after_step(
        self, job_id: int, turn: int, step: int, size: tuple[int, int], draw: Callable[[], Image.Image]
    ) -> None:
        """Paint where somebody looks and it is time to. `draw` is asked only then; whatever goes wrong in it, or on
        the disk, costs the picture alone. size: of the picture that is edited."""
        if self.asked():
            with suppress(Exception):
                self.paint(job_id, turn, step, size, draw())

    def asked(self) -> bool:
        """Whether it is time to paint, and somebody looks."""
        now = time.monotonic()
        if now - self.looked < SECONDS:
            return False
        self.looked = now
        return watched(self.database)

    def paint(self, job_id: int, turn: int, step: int, size: tuple[int, int], image: Image.Image) -> None:
        """Put a picture out."""
        with suppress(OSError):
            self._put({"job": job_id, "turn": turn, "step": step, "size": size}, image)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self.painted:
            with suppress(OSError):
                _file(self.database, f"{self.worker_id}.rgb").unlink(missing_ok=True)

    def _put(self, said: dict[str, object], image: Image.Image) -> None:
        image.thumbnail((LONG_SIDE, LONG_SIDE))
        said |= {"width": image.width, "height": image.height}
        path = _file(self.database, f"{self.worker_id}.rgb")
        part = path.with_suffix(f".{os.getpid()}.part")
        self.painted = True
        part.write_bytes(json.dumps(said).encode() + b"\n" + image.convert("RGB").tobytes())
        part.replace(path)


def easel_for(conn: sqlite3.Connection, worker_id: int) -> Easel:
    """The easel of a worker of the queue that `conn` has open."""
    return Easel(Path(conn.execute("PRAGMA database_list").fetchone()[2]), worker_id)


def _file(database: Path, name: str) -> Path:
    queue = hashlib.sha256(os.fsencode(database.resolve())).hexdigest()[:16]
    return paths.previews() / f"{queue}-{name}"
