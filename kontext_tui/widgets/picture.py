"""A picture in a frame: drawn as `Graphics` settled, zoomed and moved by a `View`, and never a reason to crash.

The frame is given a `Shot` that was made in a thread; cutting it to the cells there are happens in a thread too.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from kontext_tui.graphics import Graphics
from kontext_tui.pictures import Shot, View, cut, fit
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from PIL import Image

PROBLEM_CELLS = 600
"""Characters of a problem that are shown; names may be as long as disks allow."""


def half_blocks(image: Image.Image) -> list[Strip]:
    """RGB pixels as cells, two rows of pixels in one of text: the upper in the colour of ▀, the lower behind it."""
    width, height = image.size
    data = image.convert("RGB").tobytes()
    strips = []
    for top in range(0, height - 1, 2):
        upper = data[3 * width * top : 3 * width * (top + 1)]
        lower = data[3 * width * (top + 1) : 3 * width * (top + 2)]
        segments, last, run = [], b"", 0
        for at in range(0, 3 * width, 3):
            pair = upper[at : at + 3] + lower[at : at + 3]
            if pair != last and run:
                segments.append(Segment("▀" * run, _style(last)))
                run = 0
            last, run = pair, run + 1
        segments.append(Segment("▀" * run, _style(last)))
        strips.append(Strip(segments, width))
    return strips


@lru_cache(maxsize=16_384)
def _style(pair: bytes) -> Style:
    """Foreground and background of a cell, three bytes each."""
    return Style(color=Color.from_rgb(*pair[:3]), bgcolor=Color.from_rgb(*pair[3:]))


class HalfBlocks(Widget):
    """A picture that is as large as the widget, in half blocks."""

    DEFAULT_CSS = "HalfBlocks { width: auto; height: auto; }"

    def __init__(self) -> None:
        super().__init__()
        self.strips: list[Strip] = []

    def draw(self, strips: list[Strip]) -> None:
        self.strips = strips
        self.refresh()

    def render_line(self, y: int) -> Strip:
        return self.strips[y] if y < len(self.strips) else Strip.blank(self.size.width)


class PictureFrame(Container):
    """Shows one `Shot` as large as it fits. `title` is foreign text; a problem is said in the frame."""

    DEFAULT_CSS = """
    PictureFrame {
        border: round $panel;
        border-title-color: $text;
        border-subtitle-color: $warning;
        align: center middle;
        width: 1fr;
        height: 1fr;
        min-height: 3;
    }
    PictureFrame > .problem {
        display: none;
        width: 100%;
        height: auto;
        padding: 0 2;
        text-align: center;
        color: $text-muted;
    }
    PictureFrame.-problem > .problem { display: block; }
    PictureFrame.-problem > .picture { display: none; }
    """

    class Dragged(Message):
        """The picture was pulled with the mouse, by shares of what is seen."""

        def __init__(self, right: float, down: float) -> None:
            super().__init__()
            self.right, self.down = right, down

    class Zoomed(Message):
        """The wheel was turned over the picture."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

    def __init__(self, graphics: Graphics, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.graphics = graphics
        self.shot: Shot | None = None
        self.view = View()
        self._title: Content | None = None
        self.drawn: tuple[int, int] = (0, 0)
        """Columns and rows that the picture fills."""
        self._drawing: tuple[object, ...] | None = None
        """What was asked for last, so that the same is not drawn twice."""
        self._canvas = _canvas(graphics)
        self._problem = Static(classes="problem", markup=False)

    def compose(self) -> ComposeResult:
        if self._canvas is not None:
            self._canvas.add_class("picture")
            yield self._canvas
        yield self._problem

    def on_resize(self) -> None:
        self._redraw()

    def show(self, shot: Shot | None, view: View | None = None, title: str = "") -> None:
        """Look at a picture (None: nothing yet). It is drawn when it has been cut to size, a moment later."""
        self.shot, self.view = shot, view or self.view
        self._title = Content(f" {safe_text(title, 200)} ") if title else None
        self._redraw()

    def look(self, view: View) -> None:
        """Look at another part of the same picture."""
        self.view = view
        self._redraw()

    def _redraw(self) -> None:
        if not self.is_mounted:
            return
        shot, room = self.shot, (self.content_size.width, self.content_size.height)
        drawing = (shot, self.view, room)
        if drawing == self._drawing:
            self._entitle()
            return
        self._drawing = drawing
        if shot is None or shot.image is None or self._canvas is None:
            self.workers.cancel_group(self, "draw")
            self._say(shot)
        elif min(room) > 0:
            self.run_worker(partial(self._draw, shot, shot.image, room), group="draw", exclusive=True)

    async def _draw(self, shot: Shot, image: Image.Image, room: tuple[int, int]) -> None:
        columns, rows = fit(shot.size, room, self.graphics.cell)
        across, down = self.graphics.pixels
        picture = await asyncio.to_thread(cut, image, self.view, (columns * across, rows * down))
        canvas = self._canvas
        assert canvas is not None
        if isinstance(canvas, HalfBlocks):
            canvas.draw(await asyncio.to_thread(half_blocks, picture))
        else:
            canvas.image = picture  # type: ignore[attr-defined]
        if (columns, rows) != self.drawn:
            canvas.styles.width, canvas.styles.height = columns, rows
        self.drawn = (columns, rows)
        self._entitle()
        self.remove_class("-problem")
        zoom = f"{self.view.zoom:.1f}×" if self.view.zoom > 1 else ""
        self.border_subtitle = Content(f" {safe_text(shot.problem or zoom)} ") if shot.problem or zoom else None

    def _entitle(self) -> None:
        """The title comes with its picture: one repaint, and never the one beside the other."""
        if self.border_title != self._title:
            self.border_title = self._title

    def _say(self, shot: Shot | None) -> None:
        """In place of a picture, the reason there is none."""
        if shot is None:
            text = "reading …"
        elif shot.problem is not None:
            text = safe_text(shot.problem, PROBLEM_CELLS)
        else:
            text = "pictures are off (images = off); o opens it in a viewer"
        self.drawn = (0, 0)
        self._entitle()
        self.border_subtitle = None
        self.add_class("-problem")
        self._problem.update(Content(text))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Zoomed(1.25))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Zoomed(0.8))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        columns, rows = self.drawn
        if event.button and columns and rows and (event.delta_x or event.delta_y):
            self.post_message(self.Dragged(-event.delta_x / columns, -event.delta_y / rows))


def _canvas(graphics: Graphics) -> Widget | None:
    if graphics.kind == "off":
        return None
    if graphics.kind == "halfcell":
        return HalfBlocks()
    from textual_image.widget import SixelImage, TGPImage  # `graphics.choose` has imported it before the app ran

    canvas: Widget = SixelImage() if graphics.kind == "sixel" else TGPImage()
    return canvas
