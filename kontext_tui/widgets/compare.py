"""Two pictures compared: side by side, one in place of the other, or where they differ; zoomed and moved as one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from PIL import Image
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message

from core.edit import difference
from kontext_tui.graphics import Graphics
from kontext_tui.pictures import Shot, View
from kontext_tui.widgets.picture import PictureFrame

Look = Literal["side", "flip", "difference"]


@dataclass(frozen=True)
class Pair:
    """What is compared. `before` None: nothing, the picture stands alone. Titles may be foreign text."""

    before: Shot | None
    after: Shot
    old: str = "before"
    new: str = "after"
    decision: str | None = None
    """accepted or rejected: the colour of the frame."""

    @property
    def images(self) -> tuple[Image.Image, Image.Image] | None:
        if self.before is None or self.before.image is None or self.after.image is None:
            return None
        return self.before.image, self.after.image


class ComparePanes(Horizontal):
    """Shows a `Pair`. How it is looked at stays from one pair to the next."""

    DEFAULT_CSS = """
    ComparePanes { height: 1fr; }
    ComparePanes.-single #before { display: none; }
    ComparePanes PictureFrame.-accepted { border: round $success; }
    ComparePanes PictureFrame.-rejected { border: round $error; }
    """

    class Measured(Message):
        """It is known how much the pair on show differs."""

        def __init__(self, pair: Pair, found: difference.Difference) -> None:
            super().__init__()
            self.pair, self.found = pair, found

    def __init__(self, graphics: Graphics, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.pair: Pair | None = None
        self.view = View()
        self.way: Look = "side"
        self.showing_before = False
        self._changes: Shot | None = None
        self.frames = PictureFrame(graphics, id="before"), PictureFrame(graphics, id="after")

    def compose(self) -> ComposeResult:
        yield from self.frames

    def show(self, pair: Pair, *, anew: bool = True) -> None:
        """Look at a pair. anew: it is another one than before, looked at from its start."""
        same = self.pair is not None and self.pair.before is pair.before and self.pair.after is pair.after
        self.pair = pair
        if anew:
            self.view, self.showing_before = View(), False
        if not same:
            self._changes = None
            if pair.images is not None:
                self.run_worker(partial(self._measure, pair, *pair.images), group="measure", exclusive=True)
        self._show()

    async def _measure(self, pair: Pair, before: Image.Image, after: Image.Image) -> None:
        found = await asyncio.to_thread(difference.measure, before, after)
        self.post_message(self.Measured(pair, found))
        if self.way == "difference":
            await self._draw_changes()

    async def _draw_changes(self) -> None:
        """The picture of where they differ is made when it is asked for."""
        pair = self.pair
        if pair is not None and pair.images is not None and self._changes is None:
            image = await asyncio.to_thread(difference.picture, *pair.images)
            if self.pair is not None and self.pair.after is pair.after and self.pair.before is pair.before:
                self._changes = replace(pair.after, image=image)
        self._show()

    def _show(self) -> None:
        pair = self.pair
        if pair is None:
            return
        before, after = self.frames
        single = pair.before is None or self.way != "side"
        self.set_class(single, "-single")
        shown, title, decision = pair.after, pair.new, pair.decision
        if pair.before is not None and self.way == "flip":
            if self.showing_before:
                shown, title, decision = pair.before, f"A · {pair.old}", None
            else:
                title = f"B · {pair.new}"
        elif pair.before is not None and self.way == "difference" and self._changes is not None:
            shown, title = self._changes, "changes are orange"
        for word in ("accepted", "rejected"):
            after.set_class(decision == word, f"-{word}")
        if not single:
            before.show(pair.before, self.view, pair.old)
        after.show(shown, self.view, title)

    # ------------------------------------------------------------ how it is looked at

    def flip(self) -> None:
        """One in the place of the other; the first press shows what it was before."""
        self.showing_before = not (self.way == "flip" and self.showing_before)
        self.way = "flip"
        self._show()

    def toggle_difference(self) -> None:
        self.way = "side" if self.way == "difference" else "difference"
        if self.way == "difference":
            self.run_worker(self._draw_changes, group="changes", exclusive=True)
        else:
            self._show()

    def back(self) -> bool:
        """Out of the zoom, then to side by side. False where there is nothing to leave."""
        if self.view.zoom > 1:
            self.look(View())
        elif self.way != "side":
            self.way = "side"
            self._show()
        else:
            return False
        return True

    def look(self, view: View) -> None:
        self.view = view
        for frame in self.frames:
            frame.look(view)

    @on(PictureFrame.Zoomed)
    def _zoomed(self, message: PictureFrame.Zoomed) -> None:
        message.stop()
        self.look(self.view.zoomed(message.factor))

    @on(PictureFrame.Dragged)
    def _dragged(self, message: PictureFrame.Dragged) -> None:
        message.stop()
        self.look(self.view.panned(message.right, message.down))
