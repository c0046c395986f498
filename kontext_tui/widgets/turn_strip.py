"""A job's turns side by side, the input first, each branch after what it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest

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

Key = tuple[str, str | None]
THUMBNAIL = (14, 4)
"""Columns and rows of a small picture."""


class Tile(Vertical):
    """One turn: a small picture, its number and mark, where it comes from, its prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.shows: Key | None = None
        """Path and hash of what the small picture is of."""
        self.small, self.label = HalfBlocks(), Static(classes="label", markup=False)

    def compose(self) -> ComposeResult:
        yield self.small
        yield self.label

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
        self.tiles: list[Tile] = []

    def show(self, turns: Sequence[Turn], chosen: int, input_path: str) -> None:
        """Bring the tiles up to date. Tiles are never taken away: one that is not needed hides."""
        ordered: list[Turn | None] = [None, *in_order(turns)]
        tiles = self.tiles
        if added := [Tile() for _ in ordered[len(tiles) :]]:
            if not self.is_attached:  # the app is being closed
                return
            self.mount_all(added)
            tiles += added
        paths: list[Key | None] = []
        previous = 0
        for tile, turn in zip_longest(tiles, ordered):
            tile.display = turn is not None or tile is tiles[0]
            if not tile.display:
                continue
            tile.turn = turn.turn if turn is not None else 0
            tile.set_class(tile.turn == chosen, "-chosen")
            tile.label.update(_label(turn, previous))
            previous = tile.turn
            if turn is None:
                paths.append((input_path, None))
            else:
                paths.append((turn.output_path, turn.output_sha256) if turn.state == "done" else None)
            if tile.turn == chosen:
                self.call_after_refresh(tile.scroll_visible, animate=False)
        if self.has_class("-thumbnails"):
            fill = partial(self._fill, list(zip(tiles, paths, strict=False)))
            self.run_worker(fill, group="thumbnails", exclusive=True)

    async def _fill(self, wanted: list[tuple[Tile, Key | None]]) -> None:
        stale = [(tile, key) for tile, key in wanted if tile.shows != key]
        for tile, _ in stale:
            tile.shows = None
            tile.small.draw([])
        for tile, key in stale:
            if key is not None:
                shot = await self.album.thumbnail(*key)
                tile.shows = key
                tile.small.draw([] if shot.image is None else _thumbnail(shot, self.cell))


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
