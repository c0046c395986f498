"""The keys that work here, at the foot of a screen."""

from __future__ import annotations

from functools import partial

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
            if isinstance(key, FooterKey) and key.action.removeprefix("app.") == "help":
                key.add_class("-command-palette")  # at the right end
            yield key
        self.call_after_refresh(self._fit)

    def on_resize(self, event: events.Resize) -> None:
        self.compact = event.size.width < COMPACT_BELOW
        self.call_after_refresh(self._fit)

    def _fit(self, tries: int = 20) -> None:
        """Show no key by halves: those that run into the one for help are left out; the help names them."""
        keys = [key for key in self.query(FooterKey) if key.display]
        if not any(key.region for key in keys):  # not laid out yet, or a screen that nobody sees
            if tries:
                self.set_timer(0.05, partial(self._fit, tries - 1))
            return
        last = [key for key in keys if key.has_class("-command-palette")]
        end = last[0].region.x if last else self.size.width
        for key in keys:
            key.visible = key in last or 0 < key.region.right <= end
