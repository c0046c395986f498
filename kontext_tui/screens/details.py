"""One job in full, over the list: what the pane beside it shows where there is room for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from core.errors import KontextError
from kontext_tui import queue_view
from kontext_tui.feed import Changed
from kontext_tui.widgets.panels import Pane

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp


class DetailScreen(ModalScreen[None]):
    """A job's turns and story, kept up to date."""

    DEFAULT_CSS = """
    DetailScreen { align: center middle; background: $background 60%; }
    DetailScreen > Pane {
        width: 94%; max-width: 120; height: 90%; padding: 0 2;
        background: $surface; border: round $primary; border-title-color: $accent; scrollbar-size-vertical: 1;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss", "Close")]

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def compose(self) -> ComposeResult:
        pane = Pane()
        pane.border_title = f"Job {self.number}"
        pane.border_subtitle = "esc closes"
        yield pane

    async def on_mount(self) -> None:
        await self._load()

    async def on_changed(self, message: Changed) -> None:
        await self._load()

    async def _load(self) -> None:
        try:
            detail = await cast("KontextApp", self.app).read(queue_view.read_detail, self.number)
        except KontextError:  # pruned meanwhile
            self.dismiss()
            return
        self.query_one(Pane).show(queue_view.describe(detail))
