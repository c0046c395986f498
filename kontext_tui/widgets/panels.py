"""The parts around the list: tabs of states, headings, what runs now, one job in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from core.jobs.board import Sort
from kontext_tui.widgets.job_table import GLYPHS, head


class Lines(Static):
    """Lines that change often: laid out anew only where their number changes, drawn only where they do."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._lines: list[Content] = []

    def show(self, lines: Sequence[Content]) -> None:
        if list(lines) == self._lines:
            return
        layout = len(lines) != len(self._lines)
        self._lines = list(lines)
        self.update(Content("\n").join(self._lines), layout=layout)


class StateTabs(Static):
    """The states with their counts; a click shows that state alone."""

    class Chosen(Message):
        def __init__(self, state: str | None) -> None:
            super().__init__()
            self.state = state

    def __init__(self) -> None:
        super().__init__(markup=False)
        self._shown: object = None

    def show(self, tabs: Sequence[tuple[str | None, str, int]], active: str | None) -> None:
        looks = (tuple(tabs), active, self.size.width)
        if looks == self._shown:
            return
        self._shown = looks
        # Short words where the line is: a state that does not fit could not be seen to have jobs.
        long = sum(len(f" {GLYPHS.get(label, '')} {label} {count:,} ") for _, label, count in tabs) <= self.size.width
        parts = []
        for state, label, count in tabs:
            word = label if long or state in (None, active) else ""
            text = " ".join(filter(None, (GLYPHS.get(label, ""), word, f"{count:,}")))
            part = Content.styled(f" {text} ", "bold reverse" if state == active else "$foreground 80%")
            parts.append(part.stylize(Style.from_meta({"@click": f"screen.tab('{state or ''}')"})))
        self.update(Content("").join(parts), layout=False)


class TableHead(Static):
    """The headings of the list; a click sorts by one."""

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.sort: tuple[Sort, bool] = ("queue", False)

    def render(self) -> Content:
        sort, reverse = self.sort
        parts, x = [], 0
        for start, end, column, text in head(self.size.width - 1):
            parts.append(Content(" " * (start - x)))
            chosen = column.sort == sort and column.name
            mark = ("▲" if reverse else "▼") if chosen and len(text.strip()) < len(text) else ""
            shown = (mark + text[1:] if column.right else f"{column.name}{mark}".ljust(len(text))) if mark else text
            part = Content.styled(shown, "bold $accent" if chosen else "bold $foreground 60%")
            if column.sort:
                part = part.stylize(Style.from_meta({"@click": f"screen.sort('{column.sort}')"}))
            parts.append(part)
            x = end
        return Content("").join(parts)

    def on_resize(self, event: events.Resize) -> None:
        self.refresh()


class Pane(VerticalScroll, can_focus=True):
    """A pane of lines that may be longer than it is high."""

    HELP = "Everything about one job: its turns with their figures, and its story."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "scroll_down", "Down", show=False),
        Binding("k,up", "scroll_up", "Up", show=False),
        Binding("g,home", "scroll_home", "First", show=False),
        Binding("G,end", "scroll_end", "Last", show=False),
    ]

    def __init__(self, id: str | None = None, help: str | None = None) -> None:
        super().__init__(id=id)
        self.HELP = help or self.HELP
        self.text = Static(markup=False)
        self._shown: Content | None = None

    def compose(self):  # type: ignore[no-untyped-def]
        yield self.text

    def show(self, content: Content) -> None:
        if content != self._shown:
            self._shown = content
            self.text.update(content)
