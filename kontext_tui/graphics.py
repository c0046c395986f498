"""How pictures reach this terminal: in Kitty's protocol, as Sixels, as half-block cells, or not at all.

`choose` asks the terminal and must run before the app does: from then on Textual reads the answers. Kitty and Sixel
come from the optional package textual-image; half blocks are our own and need nothing but colours.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["kitty", "sixel", "halfcell", "off"]
Setting = Literal["auto", "kitty", "sixel", "halfcell", "off"]
SETTINGS: tuple[str, ...] = get_args(Setting)


@dataclass(frozen=True)
class Graphics:
    """What pictures are drawn with. `notice`: what a person should know about the choice."""

    kind: Kind = "halfcell"
    cell: tuple[int, int] = (10, 20)
    """Width and height of a cell in pixels; only their ratio matters to half blocks."""
    notice: str | None = None

    @property
    def pixels(self) -> tuple[int, int]:
        """Picture elements in a cell: two half blocks, or the cell's own pixels."""
        return (1, 2) if self.kind == "halfcell" else self.cell


def choose(setting: str) -> Graphics:
    """Settle what pictures are drawn with, asking the terminal where that is left to it. Before the app runs."""
    cell = _cell_size()
    if setting in ("halfcell", "off"):
        return Graphics("off" if setting == "off" else "halfcell", cell)
    if importlib.util.find_spec("textual_image") is None:
        notice = f"images = {setting} needs the extra: pip install 'kontext-tui[images]'; half blocks till then"
        return Graphics("halfcell", cell, None if setting == "auto" else notice)
    if not (sys.__stdin__ and sys.__stdin__.isatty() and sys.__stdout__ and sys.__stdout__.isatty()):
        return Graphics("halfcell", cell)  # in a browser, under a test
    try:
        from textual_image import renderable  # 0.1 s, and asks the terminal as it is imported
        from textual_image._terminal import get_cell_size
    except Exception as error:  # a package that does not fit must not keep the program from starting
        return Graphics("halfcell", cell, f"textual-image cannot be used ({error}); half blocks instead")
    found: dict[object, Kind] = {renderable.SixelImage: "sixel", renderable.TGPImage: "kitty"}
    kind = found.get(renderable.Image, "halfcell") if setting == "auto" else setting
    return Graphics(kind, tuple(get_cell_size()))  # type: ignore[arg-type]


def _cell_size() -> tuple[int, int]:
    """A cell's pixels as the terminal's driver knows them, else the usual one to two."""
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(sys.__stdout__.fileno(), termios.TIOCGWINSZ, bytes(8))  # type: ignore[union-attr]
        rows, columns, width, height = struct.unpack("HHHH", answer)
    except (ImportError, OSError, AttributeError, ValueError):
        rows = columns = width = height = 0
    if rows and columns and width and height and 1 <= height * columns / (width * rows) <= 4:
        return width // columns, height // rows
    given = os.environ.get("TEXTUAL_CELL_WIDTH", ""), os.environ.get("TEXTUAL_CELL_HEIGHT", "")
    if all(text.isdigit() and int(text) for text in given):
        return int(given[0]), int(given[1])
    return 10, 20
