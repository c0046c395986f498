"""The list of models, precisions and what was made of them. What is done to them is the screen's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList


class ModelList(OptionList):
    """One line an entry; entries keep their place under the cursor when others come and go."""

    HELP = (
        "✓ can be used. ? is an engine that has not been compared with the unquantized model on a GPU yet: its first "
        "use does that by itself. ↻ was made of other weights, or by another TensorRT. ✗ is broken or was refused; "
        "the pane and enter say why."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "cursor_down", "Down", show=False),
        Binding("k,up", "cursor_up", "Up", show=False),
        Binding("g,home", "first", "First", show=False),
        Binding("G,end", "last", "Last", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(compact=True)
        self.keys: list[str] = []
        self.lines: list[Content] = []

    def show(self, keys: Sequence[str], lines: Sequence[Content], keep: str | None = None) -> None:
        """Show these lines. keep: the key to put the cursor on; else where it was, or near it."""
        at = keep or self.key
        if list(keys) != self.keys:
            before = self.highlighted or 0
            self.clear_options()
            self.add_options(lines)
            self.keys = list(keys)
            if lines:
                self.highlighted = self.keys.index(at) if at in self.keys else min(before, len(lines) - 1)
        else:
            for index, (new, old) in enumerate(zip(lines, self.lines, strict=True)):
                if new != old:
                    self.replace_option_prompt_at_index(index, new)
            if keep in self.keys:
                self.highlighted = self.keys.index(keep)
        self.lines = list(lines)

    def _on_click(self, event: events.Click) -> None:
        """A click chooses a line; a click on the chosen one opens it."""
        event.prevent_default()
        clicked = event.style.meta.get("option")
        if clicked is not None and clicked == self.highlighted:
            self.action_select()
        elif clicked is not None and 0 <= clicked < len(self.keys):
            self.highlighted = clicked

    @property
    def key(self) -> str | None:
        """The key of the line under the cursor."""
        at = self.highlighted
        return self.keys[at] if at is not None and at < len(self.keys) else None
