"""The bar at the top: where one may go, which queue this is, and whether it is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.content import Content
from textual.reactive import reactive
from textual.style import Style
from textual.widgets import Static

from kontext_tui.figures import short_path
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp


class TopBar(Static):
    """Tabs of the app's screens on the left, the queue on the right."""

    note: reactive[str] = reactive("")
    """What the screen has to say about the queue, such as that it is paused."""

    def __init__(self) -> None:
        super().__init__(markup=False)

    def render(self) -> Content:
        app = cast("KontextApp", self.app)
        parts: list[Content] = [Content.styled(" kontext ", "bold $primary")]
        for number, (mode, label) in enumerate(app.LABELS.items(), start=1):
            here = mode == app.current_mode
            text = Content.styled(f" {number} {label} ", "bold reverse" if here else "$foreground")
            parts.append(text.stylize(Style.from_meta({"@click": f"app.mode('{mode}')"})))
        left = Content("").join(parts)
        note = safe_text(self.note, 40)
        folder = safe_text(short_path(app.database.absolute()))
        room = self.size.width - 2 - left.cell_length
        right = Content.styled(note, "bold $warning") if note else Content("")
        if len(note) + len(folder) + 4 <= room:
            right = Content("  ").join([right, Content.styled(folder, "$foreground 60%")])
        return Content.assemble(left, " " * max(1, room - right.cell_length), right)
