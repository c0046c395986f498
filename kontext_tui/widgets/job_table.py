"""The list of jobs: however many there are, only those on show are read and drawn.

The widget knows the numbers of all jobs in order, and the rows near what is on show; it asks for others as it is
scrolled (`Wanted`). Not a DataTable: that one holds every row, and takes 20 s to fill with a hundred thousand.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.jobs.board import Row, Sort
from kontext_tui.figures import short_ms, short_time
from kontext_tui.text import safe_text

GLYPHS = {
    "running": "▶", "queued": "·", "scheduled": "◔", "failed": "↻", "held": "‖", "done": "✓", "dead": "✗",
    "cancelled": "–",
}  # fmt: skip
"""States told apart without colours."""


@dataclass(frozen=True)
class Column:
    """A column: its heading, how wide, whether it is set flush right, and what a click on it sorts by."""

    name: str
    width: int
    right: bool = False
    sort: Sort | None = None


NAME = Column("name", 0, sort="name")
COLUMNS = (
    Column("", 2),
    Column("state", 11, sort="state"),
    NAME,
    Column("turn", 4, right=True),
    Column("step", 7, right=True),
    Column("ms", 5, right=True),
    Column("ETA", 5, right=True, sort="queue"),
    Column("pri", 3, right=True, sort="priority"),
    Column("age", 5, right=True, sort="number"),
)
LEAST_NAME = 22
"""Characters of a name below which other columns give way."""
GIVE_WAY = ("age", "pri", "ms", "turn")


class JobTable(ScrollView, can_focus=True):
    """Jobs in order, one under the cursor, any number marked."""

    HELP = """\
Jobs, those at work first, then as they will be taken, then those that ended.

turn 2/3: the second of three is at work; of a job that waits, two are done.    step 12/28: of the turn at work.
ms: of a step, the median.    ETA: when a job will be done, from measured steps.    pri: higher ones go first.

Space marks jobs; what you do next is done to all that are marked, else to the one under the cursor."""

    DEFAULT_CSS = """
    JobTable {
        height: 1fr; background: $background;
        overflow-x: hidden; overflow-y: scroll; scrollbar-size-vertical: 1;
    }
    JobTable > .cursor { background: $primary 25%; }
    JobTable:focus > .cursor { background: $primary 45%; }
    JobTable > .marked { background: $accent 20%; }
    JobTable > .muted { color: $foreground 55%; }
    JobTable > .bar { color: $accent; text-style: bold; }
    JobTable > .running { color: $primary; text-style: bold; }
    JobTable > .queued { color: $foreground; }
    JobTable > .scheduled { color: $secondary; }
    JobTable > .held { color: $warning; }
    JobTable > .failed { color: $warning; }
    JobTable > .done { color: $success; }
    JobTable > .dead { color: $error; text-style: bold; }
    JobTable > .cancelled { color: $foreground 55%; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"cursor", "marked", "muted", "bar", *GLYPHS}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "Down", id="list.down", show=False),
        Binding("k,up", "move(-1)", "Up", id="list.up", show=False),
        Binding("ctrl+d,pagedown", "page(1)", "Page down", id="list.page_down", show=False),
        Binding("ctrl+u,pageup", "page(-1)", "Page up", id="list.page_up", show=False),
        Binding("g,home", "end(0)", "First", id="list.first", show=False),
        Binding("G,end", "end(1)", "Last", id="list.last", show=False),
    ]

    class Moved(Message):
        """The cursor is on another job, or on none."""

    class Wanted(Message):
        """Rows are on show that have not been read."""

    class Opened(Message):
        """A job was clicked twice."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: array[int] = array("q")
        self.rows: Mapping[int, Row] = {}
        self.etas: Mapping[int, float] = {}
        """Seconds until a job is done."""
        self.marked: set[int] = set()
        self.cursor = 0
        self.empty = ""
        """What to say where there is no job."""
        self._known: int | None = None
        self._strips: dict[int, tuple[object, Strip]] = {}

    # ------------------------------------------------------------ what is shown

    @property
    def current(self) -> int | None:
        """The number of the job under the cursor."""
        return self.numbers[self.cursor] if 0 <= self.cursor < len(self.numbers) else None

    def chosen(self) -> list[int]:
        """The marked jobs in order, else the one under the cursor."""
        if self.marked:
            return [number for number in self.numbers if number in self.marked]
        return [self.current] if self.current is not None else []

    def window(self) -> list[int]:
        """The numbers of the jobs on show, with a page before and after for whoever scrolls."""
        height = max(self.size.height, 1)
        first = max(0, int(self.scroll_offset.y) - height)
        return list(self.numbers[first : first + 3 * height])

    def on_show(self) -> list[int]:
        """The numbers of the jobs on show."""
        first = max(0, int(self.scroll_offset.y))
        return list(self.numbers[first : first + max(self.size.height, 1)])

    def show_numbers(self, numbers: array[int], *, keep: int | None = None) -> None:
        """Take a new order. The cursor stays with its job, or with `keep`; where that is gone, at its place."""
        keep = self.current if keep is None else keep
        self.numbers = numbers
        self.cursor = min(self.cursor, max(0, len(numbers) - 1))
        if keep is not None:
            with suppress(ValueError):
                self.cursor = numbers.index(keep)
        if self.marked:
            self.marked &= set(numbers)
        self.virtual_size = Size(self.size.width, len(numbers))
        self._follow()
        self.refresh()
        self._tell()

    def show_rows(self, rows: Mapping[int, Row], etas: Mapping[int, float]) -> None:
        """Take what was read of the rows on show; draws again only those that look otherwise."""
        before, self.rows = self.rows, rows
        etas_before, self.etas = self.etas, etas
        top = int(self.scroll_offset.y)
        for y, number in enumerate(self.numbers[top : top + self.size.height], start=top):
            if rows.get(number) != before.get(number) or _eta(etas.get(number)) != _eta(etas_before.get(number)):
                self.refresh_line(y)

    def go_to(self, index: int) -> None:
        """Move the cursor."""
        index = min(max(index, 0), len(self.numbers) - 1)
        if index < 0 or index == self.cursor:
            return
        self.refresh_line(self.cursor)
        self.cursor = index
        self.refresh_line(index)
        self._follow()
        self._tell()

    def toggle_mark(self, number: int) -> None:
        self.marked ^= {number}
        self.refresh()

    def mark_all(self) -> None:
        """Mark every job in the list, or none where all are marked."""
        everything = set(self.numbers)
        self.marked = set() if self.marked == everything else everything
        self.refresh()

    def clear_marks(self) -> None:
        self.marked = set()
        self.refresh()

    def _follow(self) -> None:
        """Scroll as little as the cursor needs."""
        top, height = int(self.scroll_offset.y), max(self.size.height, 1)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def _tell(self) -> None:
        if self.current != self._known:
            self._known = self.current
            self.post_message(self.Moved())
        self._ask()

    def _ask(self) -> None:
        top = int(self.scroll_offset.y)
        if any(number not in self.rows for number in self.numbers[top : top + self.size.height]):
            self.post_message(self.Wanted())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._ask()

    def on_resize(self, event: events.Resize) -> None:
        self.virtual_size = Size(event.size.width, len(self.numbers))
        self._strips.clear()
        self._follow()
        self._ask()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()

    # ------------------------------------------------------------ keys and mouse

    def action_move(self, by: int) -> None:
        self.go_to(self.cursor + by)

    def action_page(self, pages: int) -> None:
        self.go_to(self.cursor + pages * max(1, self.size.height - 1))

    def action_end(self, end: int) -> None:
        self.go_to((len(self.numbers) - 1) * end)

    def on_click(self, event: events.Click) -> None:
        index = int(self.scroll_offset.y) + event.y
        if 0 <= index < len(self.numbers):
            self.go_to(index)
            if event.ctrl or event.x < COLUMNS[0].width:
                self.toggle_mark(self.numbers[index])
            elif event.chain == 2:
                self.post_message(self.Opened())

    # ------------------------------------------------------------ drawing

    def render_line(self, y: int) -> Strip:
        index = int(self.scroll_offset.y) + y
        width = self.scrollable_content_region.width
        if index >= len(self.numbers):
            if y == 1 and not self.numbers and self.empty:
                style = self.rich_style + _only(self.get_component_rich_style("muted"))
                return Strip([Segment("   " + self.empty, style)]).adjust_cell_length(width, self.rich_style)
            return Strip.blank(width, self.rich_style)
        number = self.numbers[index]
        row = self.rows.get(number)
        here, marked = index == self.cursor, number in self.marked
        looks = (row, _eta(self.etas.get(number)), here, marked, self.has_focus, width, _age(row), self.app.theme)
        cached = self._strips.get(number)
        if cached is not None and cached[0] == looks:
            return cached[1]
        strip = self._draw(number, row, here=here, marked=marked, width=width)
        if len(self._strips) > 1000:
            self._strips.clear()
        self._strips[number] = looks, strip
        return strip

    def _draw(self, number: int, row: Row | None, *, here: bool, marked: bool, width: int) -> Strip:
        ground = "cursor" if here else "marked" if marked else None
        base = self.get_component_rich_style(ground) if ground else self.rich_style
        back = Style(color=base.color, bgcolor=base.bgcolor)
        muted = back if here else back + Style(color=self.get_component_rich_style("muted").color)
        edge = "▌" if here else " "
        segments = [Segment(edge + ("●" if marked else " "), back + _only(self.get_component_rich_style("bar")))]
        if row is None:
            return Strip([*segments, Segment(f" #{number}", muted)]).adjust_cell_length(width, back)
        tone = back + _only(self.get_component_rich_style(row.state))
        kept, name = columns_for(width)
        cells = self._cells(row)
        for index in kept[1:]:
            column, text = COLUMNS[index], cells[index - 1]
            room = column.width or name
            quiet = column is not NAME and column.name != "state"
            style = tone if column.name == "state" or row.state == "running" else muted if quiet else back
            segments.append(Segment(" ", back))
            segments.append(Segment(_fit(text, room, right=column.right), style))
        return Strip(segments).adjust_cell_length(width, back)

    def _cells(self, row: Row) -> tuple[str, ...]:
        state = "ending" if row.cancelling and row.state == "running" else "saving" if row.saving else row.state
        name = safe_text(row.name, 300)
        if row.error and row.state in ("dead", "failed"):
            name = f"{name}  {safe_text(row.error, 300)}"
        live = row.state in ("running", "queued", "failed", "scheduled", "held") and row.steps
        if row.state == "scheduled" and row.run_after:
            eta = time.strftime("%H:%M", time.localtime(row.run_after / 1000))
        else:
            eta = _eta(self.etas.get(row.id))
        return (
            f"{GLYPHS[row.state]} {state}",
            name,
            f"{row.turn if row.state == 'running' else row.turns_done}/{row.turns}",
            (f"{row.step}/{row.steps}" if row.step or row.state == "running" else "") if live else "",
            short_ms(row.ms) if row.ms is not None else "",
            eta,
            str(row.priority) if row.priority else "",
            _age(row),
        )


@lru_cache(maxsize=32)
def columns_for(width: int) -> tuple[tuple[int, ...], int]:
    """Which columns a table so wide has, by their places in COLUMNS, and how wide the name is."""
    kept = list(range(len(COLUMNS)))
    for name in (None, *GIVE_WAY):
        kept = [index for index in kept if name is None or COLUMNS[index].name != name]
        room = width - sum(COLUMNS[index].width for index in kept) - (len(kept) - 1)
        if room >= LEAST_NAME:
            break
    return tuple(kept), max(room, 8)


def head(width: int) -> list[tuple[int, int, Column, str]]:
    """The headings for a table so wide: where each begins and ends, and its text."""
    found, x = [], 0
    kept, name = columns_for(width)
    for index in kept:
        column = COLUMNS[index]
        room = column.width or name
        start = x if index == 0 else x + 1
        found.append((start, start + room, column, _fit(column.name, room, right=column.right)))
        x = start + room
    return found


def _fit(text: str, width: int, *, right: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    return " " * (width - length) + text if right else text + " " * (width - length)


def _only(style: Style) -> Style:
    """The letters of a style, without its ground."""
    return Style(color=style.color, bold=style.bold)


def _eta(seconds: float | None) -> str:
    return short_time(seconds) if seconds is not None else ""


def _age(row: Row | None) -> str:
    """Since it ended, or since it was added."""
    if row is None:
        return ""
    seconds = time.time() - (row.finished_at or row.created_at) / 1000
    return "now" if seconds < 60 else short_time(seconds)[:5] if seconds >= 3600 else f"{seconds // 60:.0f}m"
