"""The queue at work."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer, Static

from core.jobs import board
from kontext_tui.feed import Changed
from kontext_tui.widgets.topbar import TopBar


class QueueScreen(Screen[None]):
    """Jobs, what runs now, and what became of them."""

    HELP = "The queue."

    def compose(self) -> ComposeResult:
        yield TopBar()
        yield Static(id="counts", markup=False)
        yield Footer()

    async def on_changed(self, message: Changed) -> None:
        seen = await self.app.read(board.glance)
        self.query_one("#counts", Static).update("  ".join(f"{state} {n:,}" for state, n in seen.counts.items()))
