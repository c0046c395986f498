"""The keys that work here, at the foot of a screen."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

COMPACT_BELOW = 100
"""Columns."""


class Hints(Footer):
    """The footer; the key for help is always in sight, however many others there are."""

    DEFAULT_CSS = "Hints.-compact FooterKey.-command-palette { padding-right: 1; margin: 0; }"

    def __init__(self) -> None:
        super().__init__(show_command_palette=False)

    def compose(self) -> ComposeResult:
        for key in super().compose():
            if isinstance(key, FooterKey) and key.action == "help":
                key.add_class("-command-palette")  # at the right end
            yield key

    def on_resize(self, event: events.Resize) -> None:
        self.compact = event.size.width < COMPACT_BELOW
