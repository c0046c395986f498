"""The queue at work: its jobs, what runs now, and one job in full."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input

from core.errors import KontextError
from core.jobs.board import SORTS, Row, Sort, View
from core.jobs.records import STATES
from core.jobs.writes import now_ms
from kontext_tui import queue_view
from kontext_tui.feed import Changed
from kontext_tui.pace import Pace
from kontext_tui.queue_view import Answer, Ask
from kontext_tui.screens.queue_actions import QueueActions
from kontext_tui.telemetry import Gauge, Telemetry
from kontext_tui.widgets.hints import Hints
from kontext_tui.widgets.job_table import JobTable
from kontext_tui.widgets.panels import Lines, Pane, StateTabs, TableHead
from kontext_tui.widgets.preview import LivePreview
from kontext_tui.widgets.topbar import TopBar

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

SHARE = 300
"""A read that took so long is not repeated for that many times as long: 0.3 % of a core, however many jobs."""
GAUGE_SECONDS = 1.0
ETA_SECONDS = 5.0
"""How often the times of those that wait are told anew: each of them changes with every step."""
HISTORY = 120
BRIEF_FROM = 3
"""Workers from which on each is told in two lines."""


class QueueScreen(QueueActions, Screen[None]):
    """Jobs, what runs now, and what became of them."""

    HELP = "The bar above the list shows one state alone; / filters by name, reason or number; esc goes back."
    DEFAULT_CSS = """
    QueueScreen StateTabs { height: 1; padding: 0 1; }
    QueueScreen TableHead { height: 1; }
    QueueScreen #now-narrow { height: auto; max-height: 4; padding: 0 1; border-top: solid $foreground 20%; }
    QueueScreen #side { width: 2fr; max-width: 64; border-left: solid $foreground 20%; }
    QueueScreen #list { width: 3fr; }
    QueueScreen #now { height: auto; max-height: 60%; padding: 0 1; }
    QueueScreen #detail { height: 1fr; padding: 0 1; border-top: solid $foreground 20%; scrollbar-size-vertical: 1; }
    QueueScreen #detail:focus { border-top: solid $accent; }
    QueueScreen #filter { display: none; border: none; height: 1; padding: 0 1; background: $panel; }
    QueueScreen.-filtering #filter { display: block; }
    QueueScreen.-narrow #side, QueueScreen.-low LivePreview { display: none; }
    QueueScreen.-wide #now-narrow { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="queue.filter", tooltip="Jobs whose name, reason or number fits"),
        Binding("space", "mark", "Mark", id="queue.mark", show=False, tooltip="Mark the job for what comes next"),
        Binding("asterisk", "mark_all", "Mark all", id="queue.mark_all", show=False),
        Binding("enter", "details", "Details", id="queue.details", show=False, tooltip="Everything about the job"),
        Binding("v", "review", "Results", id="queue.review", tooltip="Look at the job's results in Review"),
        Binding("c", "cancel", "Cancel", id="queue.cancel", tooltip="Cancel jobs; r queues them again"),
        Binding("r", "retry", "Retry", id="queue.retry", tooltip="Queue dead, failed or cancelled jobs again"),
        Binding("h", "hold", "Hold", id="queue.hold", tooltip="Hold waiting jobs, release held ones"),
        Binding("plus,equals_sign", "priority(1)", "Sooner", id="queue.sooner", show=False,
                tooltip="Priority up: taken before others"),
        Binding("minus", "priority(-1)", "Later", id="queue.later", show=False, tooltip="Priority down"),
        Binding("p", "pause", "Pause", id="queue.pause", tooltip="Pause or resume the queue; what runs goes on"),
        Binding("w", "workers", "Worker", id="queue.workers", tooltip="Start a worker, or ask those at work to end"),
        Binding("o", "open", "Open", id="queue.open", show=False, tooltip="Open the result in the desktop's viewer"),
        Binding("e", "edit", "Edit script", id="queue.edit", show=False, tooltip="Edit the job's script in $EDITOR"),
        Binding("s", "sort('')", "Sort", id="queue.sort", show=False, tooltip="Sort by the next column"),
        Binding("S", "reverse", "Reverse", id="queue.reverse", show=False, tooltip="Sort the other way round"),
        Binding("right_square_bracket", "next_tab(1)", "Next state", id="queue.next_state", show=False),
        Binding("left_square_bracket", "next_tab(-1)", "Previous state", id="queue.previous_state", show=False),
        Binding("f", "freeze", "Freeze list", id="queue.freeze", show=False, tooltip="Let the list stand still"),
        Binding("escape", "back", "Back", id="queue.back", show=False),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.view = View()
        self.frozen = False
        self.pace = Pace()
        self.answer: Answer | None = None
        self.rows: dict[int, Row] = {}
        self.left: int | None = None
        self.gauges: list[Gauge] = []
        self.history: dict[str, deque[float]] = {}
        self._telemetry = Telemetry()
        self._ahead: dict[int, int] = {}
        self._waits: dict[int, float] = {}
        self._ordered_for = self._left_for = -1
        """Events up to which the order and the steps left were read."""
        self._read_window: list[int] = []
        self._order_after = self._left_after = self._ranks_after = self._now_shown = 0.0
        self._fresh = False
        self._dirty = self._loading = False
        self._late: Timer | None = None
        self._restore: int | None = None

    @property
    def home(self) -> KontextApp:
        return cast("KontextApp", self.app)

    @property
    def table(self) -> JobTable:
        return self.query_one(JobTable)

    def compose(self) -> ComposeResult:
        yield TopBar()
        yield StateTabs()
        with Horizontal():
            with Vertical(id="list"):
                yield TableHead()
                yield JobTable()
                yield Lines(id="now-narrow")
            with Vertical(id="side"):
                yield Lines(id="now")
                yield LivePreview(self.home.graphics, on=self.home.settings.preview)
                yield Pane(id="detail")
        yield Input(placeholder="part of a name or a reason, or a number", id="filter", select_on_focus=False)
        yield Hints()

    def on_mount(self) -> None:
        self._recall()
        self._show_sort()
        self.table.focus()
        self.set_interval(GAUGE_SECONDS, self._measure)
        self.reload(order=True)

    # ------------------------------------------------------------ reading

    def on_changed(self, message: Changed) -> None:
        self.reload()

    def on_screen_resume(self) -> None:
        self.reload()

    @on(JobTable.Wanted)
    def _wanted(self) -> None:
        self.reload()

    def reload(self, *, order: bool = False) -> None:
        """Read what is on show, and again if it is asked for meanwhile. order: which jobs there are, too, and now."""
        self._fresh = self._fresh or order
        self._dirty = True
        if not self._loading:
            self._loading = True
            self.run_worker(self._load, group="load")

    async def _load(self) -> None:
        try:
            while self._dirty and self.is_attached:
                self._dirty = False
                await self._load_once()
        finally:
            self._loading = False

    async def _load_once(self) -> None:
        table, clock = self.table, time.monotonic()
        seen = self.answer.glance if self.answer is not None else None
        stale = seen is None or seen.event != self._ordered_for
        order = self._fresh or (stale and not self.frozen and clock >= self._order_after)
        # A page before and after what is on show is read as the list moves; what is on show, every time.
        moved = order or table.window() != self._read_window
        window = table.window() if moved else table.on_show()
        missing = any(number not in self.rows for number in window)
        ranks = order or moved or clock >= self._ranks_after
        left = self.left is None or (seen is not None and seen.event != self._left_for and clock >= self._left_after)
        self._fresh = False
        ask = Ask(
            after=self.pace.event,
            view=self.view if order else None,
            window=window if not self.frozen or missing else None,
            ranks=ranks,
            left=left,
        )
        height = max(table.size.height, 1)
        first = max(0, int(table.scroll_offset.y) - height)
        answer = await self.home.read(queue_view.read, ask, first, 3 * height)
        self.answer, clock = answer, time.monotonic()
        self.pace.hear(answer.glance)
        if answer.rows is not None:
            self.rows = answer.rows if moved else {**self.rows, **answer.rows}
        if answer.steps_left is not None:
            self.left, self._left_for = answer.steps_left, answer.glance.event
            self._left_after = clock + 3 * SHARE * answer.left_seconds
        if answer.ahead is not None:
            self._ahead = {**self._ahead, **answer.ahead} if not moved else answer.ahead
            self._ranks_after = clock + ETA_SECONDS
            self._waits = queue_view.etas(self.rows, self._ahead, answer.glance, self.pace, self.left or 0)
        if answer.numbers is not None:
            self._ordered_for = answer.glance.event
            self._order_after = clock + SHARE * answer.order_seconds
        self._show(answer)
        if answer.numbers is not None:
            self._read_window = list(answer.numbers[first : first + 3 * height])
        elif moved:
            self._read_window = window
        if answer.glance.event != self._ordered_for and not self.frozen:
            self._look_again(self._order_after - clock)

    def _look_again(self, seconds: float) -> None:
        """Something changed that was too dear to read at once."""
        if self._late is not None:
            self._late.stop()
        self._late = self.set_timer(max(seconds, 0.2) + 0.05, self.reload)

    # ------------------------------------------------------------ showing

    def _show(self, answer: Answer) -> None:
        seen, table = answer.glance, self.table
        waits = self._waits | queue_view.etas(self.rows, {}, seen, self.pace, 0)
        table.empty = self._nothing()
        if answer.numbers is not None:
            table.rows, table.etas = self.rows, waits
            table.show_numbers(answer.numbers, keep=self._restore)
            self._restore = None
        else:
            table.show_rows(self.rows, waits)
        self.query_one(StateTabs).show(queue_view.tabs(seen.counts, self.view.state), self.view.state)
        self._show_note()
        self._show_now()
        if table.current is None or seen.running or answer.numbers is not None:
            self._show_detail()

    def _show_note(self) -> None:
        notes = []
        if self.answer is not None and self.answer.glance.paused:
            notes.append(f"paused: {self.answer.glance.paused}")
        if self.frozen:
            notes.append("list frozen")
        if self.view.text:
            notes.append(f"/{self.view.text}")
        if self.table.marked:
            notes.append(f"{len(self.table.marked):,} marked")
        self.query_one(TopBar).note = ", ".join(notes)

    def _show_now(self) -> None:
        if self.answer is None:
            return
        self._now_shown = time.monotonic()
        seen = self.answer.glance
        chosen = [job for job in seen.running if job.row.id == self.table.current]
        self.query_one(LivePreview).follow(next(iter(chosen or seen.running), None))
        panel = self.query_one("#now" if self.has_class("-wide") else "#now-narrow", Lines)
        width = max(20, panel.content_region.width or self.size.width - 2)
        narrow = panel.id == "now-narrow"
        lines: list[Content] = []
        brief = narrow or len(seen.running) >= BRIEF_FROM
        for job in seen.running[: 1 if narrow else None]:
            lines += queue_view.at_work(job, self.pace, width, brief=brief)
        if not seen.running:
            lines.append(queue_view.idle(seen))
        total = queue_view.whole(seen, self.pace, self.left, now_ms())
        gauges = [
            queue_view.gauge_line(gauge, self.history.get(gauge.name, ()), width if not narrow else width // 2)
            for gauge in self.gauges
        ]
        if narrow:
            lines.append(Content.assemble(*(gauges[:1]), "  " if gauges else "", total))
        else:
            lines += [total, *gauges]
        panel.show(lines)

    def _show_detail(self) -> None:
        """Read the job under the cursor a moment later: a held key passes over hundreds."""
        if self.has_class("-narrow"):
            return
        self.run_worker(partial(self._read_detail, self.table.current), group="detail", exclusive=True)

    async def _read_detail(self, number: int | None) -> None:
        pane = self.query_one("#detail", Pane)
        if number is None:
            pane.show(Content(""))
            return
        try:
            pane.show(queue_view.describe(await self.home.read(queue_view.read_detail, number)))
        except KontextError:  # pruned this moment
            pane.show(Content(""))

    def _nothing(self) -> str:
        if self.view.text or self.view.state:
            return "No such jobs. esc shows them all."
        return "The queue is empty. 3 makes a new batch; `kontext-tui add SCRIPT` queues one too."

    async def _measure(self) -> None:
        """Ask the GPUs how they are, while somebody looks."""
        if not self.is_current:
            return
        self.gauges = await self.home.in_background(self._telemetry.sample)
        for gauge in self.gauges:
            self.history.setdefault(gauge.name, deque(maxlen=HISTORY)).append(float(gauge.used))
        # Where steps are told of, with the next of them: one repaint for both.
        told = self.answer is not None and self.answer.glance.running
        if not told or time.monotonic() - self._now_shown > 3 * GAUGE_SECONDS:
            self._show_now()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        self._show_now()
        self._show_detail()

    @on(JobTable.Moved)
    def _moved(self) -> None:
        self._show_detail()
        self._remember()

    @on(JobTable.Opened)
    def _opened(self) -> None:
        self.action_details()

    # ------------------------------------------------------------ which jobs

    def _look_at(self, **given: Any) -> None:
        self.view = View(**{**vars(self.view), **given})
        self.table.cursor = 0
        self._restore = self.table.current
        self._show_sort()
        self._remember()
        self.reload(order=True)

    def _show_sort(self) -> None:
        head = self.query_one(TableHead)
        head.sort = (self.view.sort, self.view.reverse)
        head.refresh()

    def action_tab(self, state: str) -> None:
        self._look_at(state=state or None)

    def action_next_tab(self, step: int) -> None:
        counts = self.answer.glance.counts if self.answer is not None else {}
        states = [state for state, _, _ in queue_view.tabs(counts, self.view.state)]
        self._look_at(state=states[(states.index(self.view.state) + step) % len(states)])

    def action_sort(self, sort: str) -> None:
        """By a column, or by the next one; by the same one again, the other way round."""
        if sort == self.view.sort:
            self.action_reverse()
        else:
            given = cast("Sort", sort) if sort else SORTS[(SORTS.index(self.view.sort) + 1) % len(SORTS)]
            self._look_at(sort=given, reverse=False)

    def action_reverse(self) -> None:
        self._look_at(reverse=not self.view.reverse)

    def action_freeze(self) -> None:
        self.frozen = not self.frozen
        self._show_note()
        if not self.frozen:
            self.reload(order=True)

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        self.add_class("-filtering")
        field.value = self.view.text
        self.set_focus(field)  # now, not a message later: what is typed next is no command

    @on(Input.Changed, "#filter")
    def _typed(self, message: Input.Changed) -> None:
        if self.has_class("-filtering") and message.value != self.view.text:
            self._look_at(text=message.value)

    @on(Input.Submitted, "#filter")
    def _end_filter(self) -> None:
        self.remove_class("-filtering")
        self.table.focus()

    def action_back(self) -> None:
        """Out of the filter's line, then the marks, the filter, the state."""
        if self.has_class("-filtering"):
            self._look_at(text="")
            self._end_filter()
        elif self.table.marked:
            self.table.clear_marks()
            self._show_note()
        elif self.view.text:
            self._look_at(text="")
        elif self.view.state:
            self._look_at(state=None)
        else:
            self.table.focus()

    def action_mark(self) -> None:
        if self.table.current is not None:
            self.table.toggle_mark(self.table.current)
            self.table.action_move(1)
            self._show_note()

    def action_mark_all(self) -> None:
        self.table.mark_all()
        self._show_note()

    # ------------------------------------------------------------ what is remembered

    def _remember(self) -> None:
        self.home.state["queue"] = {**vars(self.view), "job": self.table.current}

    def _recall(self) -> None:
        """Where the app was left; whatever cannot be is passed by."""
        kept = self.home.state.get("queue")
        if not isinstance(kept, dict):
            return
        text, sort, state = kept.get("text"), kept.get("sort"), kept.get("state")
        self.view = View(
            state=state if state in STATES else None,
            text=text if isinstance(text, str) else "",
            sort=sort if sort in get_args(Sort) else "queue",
            reverse=kept.get("reverse") is True,
        )
        job = kept.get("job")
        self._restore = job if isinstance(job, int) else None
