"""Pictures for a screen: read in a thread through the guarded door of inputs, shrunk, cut to what is looked at.

Nothing here raises for a picture that is missing, broken or another one by now: it says so in `problem`.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from core.edit import images
from core.errors import InputError

LONG_SIDE = 1600
"""Pixels that are kept of a picture, along its longer side: 5 MB in memory, and twice what a wide terminal shows."""
SMALL_SIDE = 96
LARGE_BYTES, SMALL_BYTES = 40 << 20, 4 << 20
"""What pictures that were looked at lately may take in memory."""
MAX_PIXELS = 100_000_000
"""Larger pictures are left to a viewer: while it is decoded, one of this size takes over 1 GB."""

Key = tuple[object, ...]


@dataclass(frozen=True)
class Shot:
    """A picture to look at, or why there is none. Threads may share it: nobody draws into `image`."""

    path: str
    image: Image.Image | None = None
    """RGB, shrunk to LONG_SIDE."""
    size: tuple[int, int] = (0, 0)
    """Of the picture itself."""
    problem: str | None = None
    """Why there is no picture, or that it is not the one that was asked for."""
    sha256: str | None = None
    """Of the bytes that were decoded."""

    @property
    def bytes(self) -> int:
        return 3 * self.image.width * self.image.height if self.image is not None else 0


@dataclass(frozen=True)
class View:
    """What part of a picture is looked at: `zoom` 1 is all of it; the centre is a share of its width and height."""

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def zoomed(self, factor: float) -> View:
        zoom = min(max(self.zoom * factor, 1.0), 16.0)
        return View() if zoom <= 1.001 else replace(self, zoom=zoom).panned(0, 0)

    def panned(self, right: float, down: float) -> View:
        """Move by shares of what is seen; never over the edge."""
        half = 0.5 / self.zoom
        x, y = self.x + right / self.zoom, self.y + down / self.zoom
        return replace(self, x=min(max(x, half), 1 - half), y=min(max(y, half), 1 - half))

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of a picture of this size, in its pixels."""
        width, height = size[0] / self.zoom, size[1] / self.zoom
        left, top = self.x * size[0] - width / 2, self.y * size[1] - height / 2
        return (max(left, 0.0), max(top, 0.0), min(left + width, size[0]), min(top + height, size[1]))


def fit(size: tuple[int, int], room: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """The columns and rows that a picture of this size fills in a room of cells, undistorted. `cell`: in pixels."""
    width, height = max(size[0], 1) / cell[0], max(size[1], 1) / cell[1]
    scale = min(room[0] / width, room[1] / height)
    return (
        min(max(round(width * scale), 1), max(room[0], 1)),
        min(max(round(height * scale), 1), max(room[1], 1)),
    )


def cut(image: Image.Image, view: View, pixels: tuple[int, int]) -> Image.Image:
    """The part that is looked at, in so many pixels."""
    box = view.box(image.size)
    shrinks = box[2] - box[0] >= pixels[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return image.resize(pixels, method, box=box, reducing_gap=2.0)


class Album:
    """Pictures read lately, by path and the file's time and size: a file that is replaced is read again.

    One thread reads them, one after the other: two large ones at a time would take twice the memory. What is asked
    for and given up before its turn (cancelled) is never read.
    """

    def __init__(self) -> None:
        self._large: OrderedDict[Key, Shot] = OrderedDict()
        self._small: OrderedDict[Key, Shot] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def read(self, path: str, sha256: str | None = None) -> Shot:
        """A picture, shrunk to LONG_SIDE. sha256: what the file should be; another one is shown, and said so."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, path, sha256, self._large)

    async def thumbnail(self, path: str, sha256: str | None = None) -> Shot:
        """A picture, shrunk to SMALL_SIDE."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, path, sha256, self._small)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _get(self, path: str, sha256: str | None, among: OrderedDict[Key, Shot]) -> Shot:
        try:
            found = os.stat(path)  # noqa: PTH116 - a path may be anything, and pathlib is stricter
        except (OSError, ValueError):
            return _read(path, sha256)
        key = (path, sha256, found.st_mtime_ns, found.st_size, found.st_ino)
        if key not in among:
            shot = self._large.get(key) or _read(path, sha256)
            small = _shrunk(shot, SMALL_SIDE)
            _keep(self._small, key, small, SMALL_BYTES)
            if among is self._small:
                return small
            _keep(self._large, key, shot, LARGE_BYTES)
        among.move_to_end(key)
        return among[key]


def _keep(among: OrderedDict[Key, Shot], key: Key, shot: Shot, limit: int) -> None:
    """Add a picture, and let the oldest go until all of them take no more than `limit` bytes; this one stays."""
    among[key] = shot
    among.move_to_end(key)
    total = sum(each.bytes for each in among.values())
    while total > limit and len(among) > 1:
        total -= among.popitem(last=False)[1].bytes


def _read(path: str, sha256: str | None) -> Shot:
    try:
        picture = images.load(Path(path), max_pixels=MAX_PIXELS)
        shot = Shot(path, picture.rgb, picture.size, sha256=picture.sha256)
        if sha256 is not None and picture.sha256 != sha256:
            shot = replace(shot, problem="the file was changed since")
        return _shrunk(shot, LONG_SIDE)
    except InputError as error:
        return Shot(path, problem=str(error).rpartition("; ")[0])  # the advice is for inputs
    except MemoryError:
        return Shot(path, problem="too big for this computer's memory")


def _shrunk(shot: Shot, long_side: int) -> Shot:
    if shot.image is None or max(shot.image.size) <= long_side:
        return shot
    scale = long_side / max(shot.image.size)
    size = (max(round(shot.image.width * scale), 1), max(round(shot.image.height * scale), 1))
    return replace(shot, image=shot.image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))
