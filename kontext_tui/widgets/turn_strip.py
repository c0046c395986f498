"""A job's turns side by side, the input first, each branch after what it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from textual import events
from textual.app import ComposeResult
from textual.containers import HorizontalScroll, Vertical
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widgets import Static

from core.jobs.records import Turn
from kontext_tui.pictures import Album, Shot, View, cut, fit
from kontext_tui.review_state import COLOURS, in_order, mark
from kontext_tui.text import safe_text
from kontext_tui.widgets.picture import HalfBlocks, half_blocks

THUMBNAIL = (14, 4)
"""Columns and rows of a small picture."""


class Tile(Vertical):
    """One turn: a small picture, its number and mark, where it comes from, its prompt."""

    def __init__(self, turn: int) -> None:
        super().__init__(id=f"turn-{turn}")
        self.turn = turn
        self.thumbnail_of: tuple[object, ...] | None = None

    def compose(self) -> ComposeResult:
        yield HalfBlocks()
        yield Static(classes="label", markup=False)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(TurnStrip.Chosen(self.turn))


class TurnStrip(HorizontalScroll, can_focus=False):
    """All turns of a job. Small pictures come where there is room for them (class `-thumbnails`)."""

    DEFAULT_CSS = """
    TurnStrip { height: auto; scrollbar-size-horizontal: 1; }
    TurnStrip Tile { width: 13; height: auto; padding: 0 0 0 1; border-left: blank; }
    TurnStrip.-thumbnails Tile { width: 17; }
    TurnStrip Tile.-chosen { background: $boost; border-left: thick $primary; }
    TurnStrip Tile:hover { background: $boost; }
    TurnStrip Tile > HalfBlocks { display: none; }
    TurnStrip.-thumbnails Tile > HalfBlocks { display: block; height: 4; width: 14; }
    TurnStrip Tile > .label { height: 2; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    class Chosen(Message):
        """A turn was clicked; 0 is the input."""

        def __init__(self, turn: int) -> None:
            super().__init__()
            self.turn = turn

    def __init__(self, album: Album, *, cell: tuple[int, int], id: str | None = None) -> None:
        super().__init__(id=id)
        self.album, self.cell = album, cell

    async def show(self, turns: Sequence[Turn], chosen: int, input_path: str) -> None:
        """Bring the tiles up to date; those that stay are not made again."""
        ordered = in_order(turns)
        numbers = [0, *(turn.turn for turn in ordered)]
        if [tile.turn for tile in self.query(Tile)] != numbers:
            await self.remove_children()
            await self.mount_all([Tile(number) for number in numbers])
        previous = 0
        for tile, turn in zip(self.query(Tile), [None, *ordered], strict=True):
            tile.set_class(tile.turn == chosen, "-chosen")
            tile.query_one(".label", Static).update(_label(turn, previous))
            previous = tile.turn
            if tile.turn == chosen:
                tile.scroll_visible(animate=False)
        paths = {0: (input_path, None)} | {
            turn.turn: (turn.output_path, turn.output_sha256) for turn in ordered if turn.state == "done"
        }
        if self.has_class("-thumbnails"):
            self.run_worker(partial(self._fill, paths), group="thumbnails", exclusive=True, exit_on_error=False)

    async def _fill(self, paths: dict[int, tuple[str, str | None]]) -> None:
        for tile in list(self.query(Tile)):
            key = paths.get(tile.turn)
            if key is None or key == tile.thumbnail_of:
                continue
            shot = await self.album.thumbnail(*key)
            if tile.is_mounted:
                tile.thumbnail_of = key
                tile.query_one(HalfBlocks).draw([] if shot.image is None else _thumbnail(shot, self.cell))


def _thumbnail(shot: Shot, cell: tuple[int, int]) -> list[Strip]:
    assert shot.image is not None
    columns, rows = fit(shot.size, THUMBNAIL, cell)
    return half_blocks(cut(shot.image, View(), (columns, rows * 2)))


def _label(turn: Turn | None, previous: int) -> Content:
    """Two lines. Where a turn does not go on from the one before it, it says from which."""
    if turn is None:
        return Content.assemble(("0", "bold"), "\n", ("input", "dim"))
    number = Content.assemble(
        (f"{mark(turn)} {turn.turn}", f"bold {COLOURS.get(turn.review or turn.state, '$text')}")
    )
    start = "" if turn.from_turn == previous else f" ← {turn.from_turn}"
    again = f" ↻ {turn.redo_of}" if turn.redo_of else ""
    prompt = safe_text(turn.prompt, 40)
    return Content.assemble(number, (start + again, "dim"), "\n", Content(prompt))
