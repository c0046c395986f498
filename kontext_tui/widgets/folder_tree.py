"""Folders as a tree, each with the number of pictures in it and below, as a script would find them.

Folders are listed and counted in threads, by names alone: neither a pipe nor a drive that hangs is waited for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from core.errors import UsageError
from core.inputs import pictures_below, subfolders
from kontext_tui.daemons import in_daemon
from kontext_tui.text import safe_text

COUNT_SECONDS = 3.0
"""A folder that takes longer to count is said to hold at least what was found."""
MOST = 2_000
"""Subfolders of one folder that are shown; the others are reached by typing their path."""


class FolderTree(Tree[Path]):
    """The folders below one, and the way up from there."""

    HELP = (
        "Folders, with the pictures in each and below. enter takes one as the input; space adds it to those chosen "
        "already; h and l close and open it; u goes up."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose(False)", "Take this folder", id="folders.take"),
        Binding("space", "choose(True)", "Add it", id="folders.add", tooltip="Beside those chosen already"),
        Binding("l,right", "open", "Open", id="folders.open", show=False),
        Binding("h,left", "close", "Close", id="folders.close", show=False),
        Binding("u,backspace", "up", "Up", id="folders.up", tooltip="The folder above"),
        Binding("j,down", "cursor_down", "Down", show=False),
        Binding("k,up", "cursor_up", "Up", show=False),
        Binding("g,home", "scroll_home", "First", show=False),
        Binding("G,end", "scroll_end", "Last", show=False),
    ]

    class Chosen(Message):
        """A folder is to be the input, or, with `more`, another one."""

        def __init__(self, folder: Path, more: bool) -> None:
            super().__init__()
            self.folder, self.more = folder, more

    def __init__(self, folder: Path, id: str | None = None) -> None:
        super().__init__(_label(folder), folder, id=id)
        self.auto_expand = False
        self.guide_depth = 2
        self.counts: dict[Path, str] = {}
        self._wanted: deque[Path] = deque()
        self._asked: set[Path] = set()
        self._counting = False
        self._gone = threading.Event()

    def on_mount(self) -> None:
        self.root.expand()

    def on_unmount(self) -> None:
        self._gone.set()

    # ------------------------------------------------------------ showing

    def render_label(self, node: TreeNode[Path], base_style: Style, style: Style) -> Text:
        folder = node.data
        if folder is None:
            return super().render_label(node, base_style, style)
        if folder not in self._asked and not self._gone.is_set():  # it has come into view
            self._asked.add(folder)
            self._wanted.append(folder)
            self.call_later(self._count)
        arrow = ("▾ " if node.is_expanded else "▸ ") if node.allow_expand else "  "
        name = node.label if isinstance(node.label, Text) else Text(str(node.label))
        count = self.counts.get(folder, "…")
        dim = Style.combine([style, Style(dim=True)])
        return Text.assemble((arrow, base_style), (name.plain, style), ("  " + count, dim))

    def _count(self) -> None:
        if not self._counting and self._wanted:
            self._counting = True
            self.run_worker(self._count_wanted, group="count")

    async def _count_wanted(self) -> None:
        """Count what has come into view, the newest first, one after the other."""
        try:
            while self._wanted and not self._gone.is_set():
                folder = self._wanted.pop()
                self.counts[folder] = await in_daemon(partial(counted, folder, self._gone))
                self._invalidate()
                self.refresh()
        finally:
            self._counting = False

    # ------------------------------------------------------------ walking

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Path]) -> None:
        event.stop()
        if not event.node.children and event.node.data is not None:
            self.run_worker(partial(self._list, event.node, event.node.data), group="list")

    async def _list(self, node: TreeNode[Path], folder: Path) -> None:
        try:
            found = await in_daemon(partial(subfolders, folder))
        except UsageError:
            self.counts[folder] = "not yours to read"
            found = []
        if node.children or not self.is_attached:
            return
        for each in found[:MOST]:
            node.add(Text(safe_text(each.name)), each)
        if len(found) > MOST:
            node.add_leaf(Text(f"and {len(found) - MOST:,} more", style="dim"))
        node.allow_expand = bool(found)
        self._invalidate()

    def action_open(self) -> None:
        node = self.cursor_node
        if node is not None and node.allow_expand:
            if node.is_expanded:
                self.action_cursor_down()
            else:
                node.expand()

    def action_close(self) -> None:
        node = self.cursor_node
        if node is None or (node is self.root and not node.is_expanded):
            self.action_up()
        elif node.is_expanded:
            node.collapse()
        elif node.parent is not None:
            self.move_cursor(node.parent)
        else:
            self.action_up()

    def action_up(self) -> None:
        """Make the folder above the tree's root."""
        folder = self.root.data
        if folder is not None and folder.parent != folder:
            self.go(folder.parent)

    def go(self, folder: Path) -> None:
        """Make this folder the tree's root."""
        self.reset(_label(folder), folder)
        self.root.expand()
        self.move_cursor(self.root)

    def action_choose(self, more: bool) -> None:
        node = self.cursor_node
        if node is not None and node.data is not None:
            self.post_message(self.Chosen(node.data, more))


def counted(folder: Path, gone: threading.Event, seconds: float = COUNT_SECONDS) -> str:
    """How many pictures a script finds there; `1,234+` where the time did not suffice."""
    end, total = time.monotonic() + seconds, 0
    try:
        for number in pictures_below(folder):
            total += number
            if gone.is_set() or time.monotonic() > end:
                return f"{total:,}+"
    except UsageError:
        return f"{total:,}+, not all yours to read"
    return f"{total:,}"


def _label(folder: Path) -> Text:
    home = os.path.expanduser("~")  # noqa: PTH111 - text, not a path to use
    text = str(folder)
    if text.startswith(home + os.sep):
        text = "~" + text[len(home) :]
    return Text(safe_text(text))
