"""Walking through finished turns: what is looked at, and how."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from textual import on
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Static

from core.edit.difference import Difference
from core.errors import KontextError
from core.jobs import results
from core.jobs.records import Turn
from core.jobs.results import Pick, Scope, Which
from kontext_tui.feed import Changed
from kontext_tui.pictures import Album, Shot, View
from kontext_tui.review_state import (
    Base,
    JobView,
    Totals,
    called,
    end_job,
    first_pick,
    heading,
    in_order,
    load_job,
    load_totals,
    mark,
    pick_in,
    step_job,
    waiting,
    words,
)  # fmt: skip
from kontext_tui.screens.prompts import LineDialog
from kontext_tui.text import safe_text
from kontext_tui.widgets.compare import ComparePanes, Pair
from kontext_tui.widgets.hints import Hints
from kontext_tui.widgets.topbar import TopBar
from kontext_tui.widgets.turn_strip import TurnStrip

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

REST_SECONDS = 0.15
"""How long nobody walks on before the totals are counted, the one read that may take long."""
NOTHING = "No finished turn yet. Queue a folder, and look again when a worker has run."
FILTERED = "No result is shown: f and / set what is, esc shows all."
WHICH: tuple[Which | None, ...] = (None, "undecided", "accepted", "rejected")


class WalkScreen(Screen[None]):
    """Shows one result of the queue, before and after, and goes from one to the next. Decides nothing."""

    DEFAULT_CSS = """
    WalkScreen { layout: vertical; }
    WalkScreen #heading { height: 1; padding: 0 1; }
    WalkScreen #words { height: auto; max-height: 4; padding: 0 1; }
    WalkScreen #nothing { height: 1fr; content-align: center middle; color: $text-muted; display: none; }
    WalkScreen.-empty #nothing { display: block; }
    WalkScreen.-empty ComparePanes, WalkScreen.-empty TurnStrip, WalkScreen.-empty #words { display: none; }
    """
    THUMBNAILS_FROM: ClassVar[tuple[int, int]] = (100, 32)
    """Columns and rows from which on the strip has small pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.album = Album()
        self.scope = results.ALL
        self.pick: Pick | None = None
        """Where the review is going; what is on show is `shown`."""
        self.shown: Pick | None = None
        self.data: JobView | None = None
        self.after: Shot | None = None
        self.found: Difference | None = None
        self.base: Base = "source"
        self.said = ""
        self.totals: Totals | None = None
        self._ready = False
        self._due = True
        """Something that was asked for has not been shown yet; news must not overtake it."""
        self._stale, self._count_again_at = True, 0.0

    @property
    def home(self) -> KontextApp:
        return cast("KontextApp", self.app)

    @property
    def turn(self) -> Turn | None:
        """The turn on show, or on its way there; None for an input."""
        return self.data.turn(self.pick.turn) if self.data is not None and self.pick is not None else None

    def compose(self) -> ComposeResult:
        # Kept at hand: a worker may come back with pictures when the app is being taken down, widget by widget.
        graphics = self.home.graphics
        self.heading, self.words = Static(id="heading", markup=False), Static(id="words", markup=False)
        self.panes, self.strip = ComparePanes(graphics), TurnStrip(self.album, cell=graphics.cell)
        self.nothing = Static(NOTHING, id="nothing", markup=False)
        yield TopBar()
        yield self.heading
        yield self.panes
        yield self.strip
        yield self.words
        yield self.nothing
        yield Hints()

    # ------------------------------------------------------------ what is looked at

    def on_mount(self) -> None:
        self._ready = True
        self.go(self.pick)

    def on_screen_resume(self) -> None:
        self.go(self.pick)

    def on_resize(self) -> None:
        columns, rows = self.THUMBNAILS_FROM
        self.strip.set_class(self.size.width >= columns and self.size.height >= rows, "-thumbnails")
        self.go(self.pick)

    def on_unmount(self) -> None:
        self.album.close()

    @on(Changed)
    def _changed(self) -> None:
        """The queue has been written to: bring what is shown up to date."""
        self._stale = True
        if self.is_current:
            self.go(self.pick, fresh=False, only_news=True)

    def open_job(self, job_id: int) -> None:
        """Look at a job, as another screen asks for."""
        self.run_worker(partial(self._open_job, job_id), group="walk", exclusive=True)

    async def _open_job(self, job_id: int) -> None:
        if found := await self._read(pick_in, job_id):
            self.go(found)
        else:
            self.home.toast(f"job {job_id} has no finished turn yet", "warning")

    def go(self, pick: Pick | None, *, fresh: bool = True, only_news: bool = False) -> None:
        """Look at a result; without one, at where the review begins.

        fresh: what is decided has changed. only_news: leave the screen alone where the job is as it was.
        """
        self.pick = pick
        if not self._ready:  # resumed or resized before there are widgets
            return
        if fresh:
            self._stale, self._count_again_at = True, 0.0
        self._due = self._due or not only_news
        self.run_worker(partial(self._go, pick), group="go", exclusive=True)

    async def _go(self, pick: Pick | None) -> None:
        data = await self._load(pick) if pick is not None else None
        if data is None:  # nothing yet, or forgotten by `prune`
            pick = await self._read(first_pick, self.scope)
            data = await self._load(pick) if pick is not None else None
        self.set_class(data is None, "-empty")
        if data is None or pick is None:
            self._show_nothing()
            return
        if self._due or data != self.data or pick != self.shown:
            await self._show(pick, data)
            self._due = False
        await self._count(pick)
        await self._read_ahead(pick)

    def _show_nothing(self) -> None:
        self.pick = self.shown = self.data = self.after = self.totals = None
        self.heading.update("")
        self.nothing.update(NOTHING if self.scope == results.ALL else FILTERED)
        self.refresh_bindings()

    async def _show(self, pick: Pick, data: JobView) -> None:
        anew, arrived = pick != self.shown, self._arrived(data)
        if self.data is not None and self.data.job.id != pick.job_id:
            self.base = "source"
        if anew:
            self.found = None
        self.pick, self.data = pick, data
        self._say()
        self.refresh_bindings()
        self.strip.show(data.turns, pick.turn, data.job.input_path)
        await self._look(pick, data, anew)
        for turn in arrived:
            what = f"the redo of turn {turn.redo_of}" if turn.redo_of else "the branch"
            self.home.toast(f"{pick.job_id}.{turn.turn} is done: {what}")

    async def _load(self, pick: Pick) -> JobView | None:
        data = cast("JobView | None", await self._read(load_job, pick.job_id, quiet=True))
        return data if data is not None and (pick.turn == 0 or data.turn(pick.turn)) else None

    async def _count(self, pick: Pick) -> None:
        """Count the totals once walking has come to rest; while others change them, for 2 % of the time at most."""
        known = self.totals is not None and (self.totals.job_id, self.totals.scope) == (pick.job_id, self.scope)
        if known and not self._stale:
            return
        await asyncio.sleep(max(REST_SECONDS, self._count_again_at - time.monotonic() if known else 0.0))
        began = time.monotonic()
        self._stale = False
        self.totals = cast("Totals | None", await self._read(load_totals, pick.job_id, self.scope, quiet=True))
        self._count_again_at = time.monotonic() + 50 * (time.monotonic() - began)
        self._say()

    def _arrived(self, data: JobView) -> list[Turn]:
        """Redos and branches of the job that were waited for and are done."""
        if self.data is None or self.data.job.id != data.job.id:
            return []
        waited = {turn.turn for turn in self.data.turns if turn.added_at and turn.state != "done"}
        return [turn for turn in data.turns if turn.turn in waited and turn.state == "done"]

    async def _look(self, pick: Pick, data: JobView, anew: bool) -> None:
        """Read the pictures and show them."""
        turn = data.turn(pick.turn)
        before = None
        if turn is None:
            after = await self.album.read(*data.picture(0))
            pair = Pair(None, after, new="the input")
        else:
            number = data.compared(turn, self.base)
            before = await self.album.read(*data.picture(number))
            if turn.state == "done":
                after = await self.album.read(*data.picture(turn.turn))
            else:
                after = Shot(turn.output_path, problem=waiting(turn))
            old = "the old result: " if self.base == "old" and number == turn.redo_of else "before: "
            pair = Pair(before, after, old + called(number), f"{mark(turn)} after: turn {turn.turn}", turn.review)
        self.shown, self.after = pick, after
        self.panes.show(pair, anew=anew)
        self.refresh_bindings()

    async def _read_ahead(self, pick: Pick) -> None:
        """Have the next undecided result at hand: that is where most decisions lead."""
        ahead = await self._read(results.next_undecided, pick, quiet=True, name=self.scope.name)
        if ahead is None or ahead == pick:
            return
        data = await self._read(load_job, ahead.job_id, quiet=True)
        turn = data.turn(ahead.turn) if data is not None else None
        if turn is not None:
            for number in (turn.from_turn, turn.turn):
                await self.album.read(*data.picture(number))

    @on(ComparePanes.Measured)
    def _measured(self, message: ComparePanes.Measured) -> None:
        if self.after is message.pair.after and self.base != "old":
            self.found = message.found
            self._say()

    def _say(self) -> None:
        if self.data is not None and self.pick is not None:
            self.heading.update(heading(self.data, self.pick, self.scope, self.totals, self.said))
            self.words.update(words(self.data, self.pick, self.found))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What needs a finished turn is greyed out without one."""
        turn = self.turn
        if action in ("decide", "redo", "redo_prompt", "flip", "difference", "base"):
            return True if turn is not None and (turn.state == "done" or action == "base") else None
        if action in ("branch", "rest", "open", "next_undecided", "accept_shown") and self.data is None:
            return None
        return True

    # ------------------------------------------------------------ how it is looked at

    def action_flip(self) -> None:
        self.panes.flip()

    def action_difference(self) -> None:
        self.panes.toggle_difference()

    def action_zoom(self, factor: float) -> None:
        self.panes.look(self.panes.view.zoomed(factor) if factor else View())

    def action_base(self) -> None:
        """Compare with the input, the old result where this is a redo, and what it was made from again."""
        turn = self.turn
        choices: list[Base] = ["source"]
        if turn is not None and turn.from_turn:
            choices.append("input")
        if turn is not None and turn.redo_of:
            choices.append("old")
        at = choices.index(self.base) + 1 if self.base in choices else 1
        self.base = choices[at % len(choices)]
        if len(choices) == 1:
            self.home.toast(
                "this turn was made from the input, and is no redo: there is nothing else to compare with"
            )
        self.go(self.pick, fresh=False)

    def action_back(self) -> None:
        """Out of the zoom, the A/B or the difference, then out of the filter."""
        if self.panes.back():
            return
        if self.base != "source":
            self.base = "source"
            self.go(self.pick, fresh=False)
        elif self.scope != results.ALL:
            self._show_only(results.ALL)

    # ------------------------------------------------------------ walking

    async def action_arrow(self, right: int, down: int) -> None:
        """Arrows move a zoomed picture; else they walk."""
        if self.panes.view.zoom > 1:
            self.panes.look(self.panes.view.panned(right * 0.2, down * 0.2))
        elif right:
            await self.action_turn(right)
        else:
            await self.action_job(down)

    async def action_turn(self, step: int) -> None:
        """The next turn as the strip shows them; past the last one, the next job."""
        data, pick = self.data, self.pick
        if pick is not None and (data is None or data.job.id != pick.job_id):  # still on its way
            data = await self._load(pick)
        if data is None or pick is None:
            return
        numbers = [0, *(turn.turn for turn in in_order(data.turns))]
        at = numbers.index(pick.turn) + step if pick.turn in numbers else 0
        if 0 <= at < len(numbers):
            self.go(Pick(pick.job_id, numbers[at]), fresh=False)
        else:
            await self.action_job(step)

    async def action_job(self, step: int) -> None:
        if self.pick is not None:
            found = await self._read(step_job, self.pick.job_id, step, self.scope)
            if found is None:
                self.home.toast("this is the last job" if step > 0 else "this is the first job", timeout=2)
            else:
                self.go(found)

    async def action_end(self, end: Literal[-1, 1]) -> None:
        if found := await self._read(end_job, end, self.scope):
            self.go(found)

    async def action_next_undecided(self) -> None:
        await self._go_undecided(self.pick)

    async def _go_undecided(self, after: Pick | None) -> None:
        found = await self._read(results.next_undecided, after, name=self.scope.name)
        if found is None:
            self.home.toast("everything here is decided; E exports what was accepted")
        self.go(found or after)

    @on(TurnStrip.Chosen)
    def _chosen(self, message: TurnStrip.Chosen) -> None:
        if self.pick is not None:
            self.go(Pick(self.pick.job_id, message.turn), fresh=False)

    def action_filter(self) -> None:
        which = WHICH[(WHICH.index(self.scope.which) + 1) % len(WHICH)]
        self._show_only(replace(self.scope, which=which))

    def action_name(self) -> None:
        text = "Show only pictures whose name holds this; nothing shows all."
        dialog = LineDialog("Pictures by name", text, self.scope.name, "Show", empty=True)
        self.app.push_screen(dialog, self._named)

    def _named(self, name: str | None) -> None:
        if name is not None:
            self._show_only(replace(self.scope, name=name))

    def _show_only(self, scope: Scope) -> None:
        self.scope = scope
        self.go(None)

    # ------------------------------------------------------------ the queue

    async def _read(self, query: Callable[..., Any], *arguments: Any, quiet: bool = False, **named: Any) -> Any:
        """What the queue holds; None where it refuses, which is said unless `quiet`."""
        try:
            return await self.home.read(query, *arguments, **named)
        except KontextError as error:
            if not quiet:
                self._refused(error)
            return None

    def _refused(self, error: KontextError) -> None:
        self.home.toast(safe_text(str(error), 400), "error")
