"""Help for what is focused: its words, and the keys that work there now."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static


class HelpScreen(ModalScreen[None]):
    """A panel over the screen that asked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "Close", key_display="esc"),
        Binding("j,down", "scroll(1)", "Down", show=False),
        Binding("k,up", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, about: Screen[Any]) -> None:
        super().__init__()
        self.words = _words(about)
        self.keys = _keys(about)

    def compose(self) -> ComposeResult:
        with VerticalScroll() as panel:
            panel.border_title = "Help"
            panel.border_subtitle = "esc closes"
            if self.words:
                yield Static(self.words, markup=False)
            yield Static(self.keys, markup=False)

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def _words(about: Screen[Any]) -> Content:
    """The HELP of the focused widget and of what it lies in, the nearest first."""
    node = about.focused or about
    texts = [each.HELP for each in node.ancestors_with_self if getattr(each, "HELP", None)]
    return Content("\n\n").join([Content(str(text).strip()) for text in dict.fromkeys(texts)])


def _keys(about: Screen[Any]) -> Content:
    """Every key that works now: what it does, and the name by which the configuration may move it."""
    rows: dict[str, tuple[list[str], str, str]] = {}
    for active in about.active_bindings.values():
        binding = active.binding
        if binding.system or not binding.description:
            continue
        keys, _, _ = rows.setdefault(
            binding.id or binding.action, ([], active.tooltip or binding.description, binding.id or "")
        )
        key = about.app.get_key_display(binding)
        if key not in keys:
            keys.append(key)
    width = max((len(" ".join(keys)) for keys, _, _ in rows.values()), default=0)
    lines = []
    for keys, what, name in rows.values():
        line = [(f"{' '.join(keys):>{width}}  ", "bold $accent"), what]
        if name:
            line.append((f"  {name}", "$foreground 50%"))
        lines.append(Content.assemble(*line))
    return Content("\n").join(lines)
