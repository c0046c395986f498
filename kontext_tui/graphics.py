"""How pictures reach this terminal: in Kitty's protocol, as Sixels, as half-block cells, or not at all.

`choose` asks the terminal and must run before the app does: from then on Textual reads the answers. Kitty and Sixel
come from the optional package textual-image; half blocks are our own and need nothing but colours.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import re
import select
import struct
import sys
import termios
import time
import tty
from dataclasses import dataclass
from typing import Literal, cast, get_args

Kind = Literal["kitty", "sixel", "halfcell", "off"]
Setting = Literal["auto", "kitty", "sixel", "halfcell", "off"]
SETTINGS: tuple[str, ...] = get_args(Setting)

QUESTIONS = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b[c"
ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
CELL = re.compile(r"\x1b\[6;(\d{1,4});(\d{1,4})t")
ANSWER_SECONDS = 0.5
"""How long an answer is waited for: two round trips to the other side of the world."""


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
    if setting == "auto" and os.environ.get("TERM") in ("linux", "dumb"):
        return Graphics("halfcell", cell)  # would print the question
    said = _ask(sys.__stdin__.fileno(), sys.__stdout__.fileno())
    kind = cast("Kind", setting if setting != "auto" else _kind(said))
    if kind == "halfcell":
        return Graphics(kind, cell)
    try:
        return Graphics(kind, _load(said))
    except Exception as error:  # a package that does not fit must not keep the program from starting
        return Graphics("halfcell", cell, f"textual-image cannot be used ({error}); half blocks instead")


def _ask(source: int, target: int) -> str:
    """What the terminal answers to: do you speak Kitty's protocol, how large is a cell, what are you?

    All terminals answer the last question, and in order: one round trip, however far away the terminal is.
    """
    before = termios.tcgetattr(source)
    said, end = "", time.monotonic() + ANSWER_SECONDS
    try:
        tty.setcbreak(source, termios.TCSANOW)
        os.write(target, QUESTIONS)
        while not ATTRIBUTES.search(said) and (left := end - time.monotonic()) > 0:
            if select.select([source], [], [], left)[0]:
                said += os.read(source, 1024).decode("ascii", "replace")
    except OSError:
        pass  # a terminal that has gone: the app will say so
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
    return said


def _kind(said: str) -> Kind:
    """Sixels first: some that say they speak Kitty's protocol lack the part that an app needs."""
    attributes = ATTRIBUTES.search(said)
    if attributes and "4" in attributes[1].split(";"):
        return "sixel"
    return "kitty" if "\x1b_Gi=31;OK" in said else "halfcell"


def _load(said: str) -> tuple[int, int]:
    """Import the library without letting it ask the terminal again; returns the size of a cell in pixels."""
    terminal = importlib.import_module("textual_image._terminal")
    told = CELL.search(said)
    cell = (int(told[2]), int(told[1])) if told and int(told[1]) and int(told[2]) else _cell_size()
    terminal.get_cell_size._result = terminal.CellSize(*cell)
    out, sys.__stdout__ = sys.__stdout__, None  # type: ignore[misc]
    try:
        importlib.import_module("textual_image.renderable")
    finally:
        sys.__stdout__ = out  # type: ignore[misc]
    importlib.import_module("textual_image.widget")
    return cell


def _cell_size() -> tuple[int, int]:
    """A cell's pixels as the terminal's driver knows them, else the usual one to two."""
    try:
        answer = fcntl.ioctl(sys.__stdout__.fileno(), termios.TIOCGWINSZ, bytes(8))  # type: ignore[union-attr]
        rows, columns, width, height = struct.unpack("HHHH", answer)
    except (OSError, AttributeError, ValueError):
        rows = columns = width = height = 0
    if rows and columns and width and height and 1 <= height * columns / (width * rows) <= 4:
        return width // columns, height // rows
    given = os.environ.get("TEXTUAL_CELL_WIDTH", ""), os.environ.get("TEXTUAL_CELL_HEIGHT", "")
    if all(text.isdigit() and int(text) for text in given):
        return int(given[0]), int(given[1])
    return 10, 20
