"""The turns of a batch as a list: numbers, where each starts, and the beginnings of their prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList

from kontext_tui.batch import NUMBERS, TurnForm
from kontext_tui.text import safe_text


class TurnList(OptionList):
    """One line a turn. What is done to turns is the screen's business."""

    HELP = (
        "The turns that every picture goes through, each from the result of the one before it, or of the one named."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "cursor_down", "Down", show=False),
        Binding("k,up", "cursor_up", "Up", show=False),
        Binding("g,home", "first", "First", show=False),
        Binding("G,end", "last", "Last", show=False),
        Binding("enter", "select", "Edit", id="turns.edit", tooltip="Go to the turn's prompt"),
        Binding("n", "screen.turn('add')", "Add", id="turns.add", tooltip="A new turn behind this one"),
        Binding("b", "screen.turn('copy')", "Branch", id="turns.branch", tooltip="Another turn from the same start"),
        Binding("x,delete", "screen.turn('remove')", "Remove", id="turns.remove", tooltip="u brings it back"),
        Binding("u", "screen.turn('undo')", "Undo", id="turns.undo", show=False, tooltip="Turns as they were before"),
        Binding("K,shift+up", "screen.turn('up')", "Move up", id="turns.up", show=False),
        Binding("J,shift+down", "screen.turn('down')", "Move down", id="turns.down", show=False),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, compact=True)
        self.prompts: list[Content] = []

    def show(self, turns: Sequence[TurnForm], wrong: Collection[int], at: int) -> None:
        """Show these turns; `wrong` are the indices of those with a mistake, `at` that of the one being edited."""
        lines = [_line(number, turn, number - 1 in wrong) for number, turn in enumerate(turns, 1)]
        if len(lines) != len(self.prompts):
            self.clear_options()
            self.add_options(lines)
        else:
            for index, (new, old) in enumerate(zip(lines, self.prompts, strict=True)):
                if new != old:
                    self.replace_option_prompt_at_index(index, new)
        self.prompts = lines
        if self.highlighted != at:
            self.highlighted = at


def _line(number: int, turn: TurnForm, wrong: bool) -> Content:
    start = turn.start.strip()
    origin = "" if not start else "from the input  " if start == "0" else f"from {safe_text(start, 8)}  "
    own = [f"{key.removeprefix('context_')} {safe_text(value.strip(), 20)}" for key in NUMBERS
           if (value := getattr(turn, key)).strip()]  # fmt: skip
    prompt = safe_text(" ".join(turn.prompt.split()), 300)
    return Content.assemble(
        ("! " if wrong else "  ", "bold $error"),
        (f"{number:>3}  ", "$foreground 60%"),
        (origin, "$accent"),
        (prompt or "no prompt yet", "" if prompt else "$foreground 50%"),
        ("  " + ", ".join(own) if own else "", "$foreground 50%"),
    )
