"""Dialogs of the models' screen: what to make, and what a command printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Label, Select, Static

from kontext_tui.tasks import Command
from kontext_tui.text import safe_text
from kontext_tui.widgets.panels import Pane


@dataclass(frozen=True)
class Wish:
    """A precision, and the GPU an engine is for."""

    precision: str
    gpu: str


class MakeDialog(ModalScreen[Wish | None]):
    """Asks for a precision and a GPU, and shows the command lines that will run; None where nothing came of it."""

    DEFAULT_CSS = """
    MakeDialog { align: center middle; background: $background 60%; }
    MakeDialog > Vertical {
        width: 78; max-width: 100%; height: auto; padding: 0 1;
        background: $surface; border: round $primary; border-title-color: $accent;
    }
    MakeDialog Horizontal { height: auto; }
    MakeDialog Label { padding: 0 1; width: 12; color: $foreground 60%; }
    MakeDialog Select { width: 42; }
    MakeDialog Static { margin-top: 1; padding: 0 1; }
    MakeDialog .buttons { align-horizontal: right; margin-top: 1; }
    MakeDialog Button { margin-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Leave", id="dialog.leave")]

    def __init__(
        self,
        title: str,
        verb: str,
        wish: Wish,
        precisions: Sequence[str],
        gpus: Sequence[tuple[str, str]],
        plan: Callable[[Wish], tuple[Command, ...]],
        note: str = "",
    ) -> None:
        """gpus: (title, name) of each that may be built for; none where no engine is built."""
        super().__init__()
        self.heading, self.verb, self.wish, self.plan, self.note = title, verb, wish, plan, note
        self.precisions, self.gpus = precisions, gpus

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(f" {safe_text(self.heading, 70)} ")
            with Horizontal():
                yield Label("precision")
                yield _select("precision", [(each, each) for each in self.precisions], self.wish.precision)
            if self.gpus:
                with Horizontal():
                    yield Label("GPU")
                    yield _select("gpu", self.gpus, self.wish.gpu)
            yield Static(id="plan", markup=False)
            with Horizontal(classes="buttons"):
                yield Button(self.verb, variant="primary", id="go")
                yield Button("Leave", id="leave")

    def on_mount(self) -> None:
        self._show()
        self.query_one("#go").focus()

    def _chosen(self) -> Wish:
        gpu = str(self.query_one("#gpu", Select).value) if self.gpus else "auto"
        return Wish(str(self.query_one("#precision", Select).value), gpu)

    @on(Select.Changed)
    def _show(self) -> None:
        lines = [Content.styled(safe_text(command.line()), "$accent") for command in self.plan(self._chosen())]
        if self.note:
            lines.insert(0, Content(self.note))
        self.query_one("#plan", Static).update(Content("\n").join(lines))

    @on(Button.Pressed)
    def _pressed(self, message: Button.Pressed) -> None:
        self.dismiss(self._chosen() if message.button.id == "go" else None)


class PaneScreen(ModalScreen[None]):
    """Lines over the screen: an entry in full, or what a command printed."""

    DEFAULT_CSS = """
    PaneScreen { align: center middle; background: $background 60%; }
    PaneScreen > Pane {
        width: 94%; max-width: 120; height: auto; max-height: 90%; padding: 0 2;
        background: $surface; border: round $primary; border-title-color: $accent; scrollbar-size-vertical: 1;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss", "Close")]

    def __init__(self, title: str, content: Content) -> None:
        super().__init__()
        self.heading, self.content = title, content

    def compose(self) -> ComposeResult:
        pane = Pane()
        pane.border_title = Content(f" {safe_text(self.heading, 70)} ")
        pane.border_subtitle = "esc closes"
        yield pane

    def on_mount(self) -> None:
        self.query_one(Pane).show(self.content)


def _select(name: str, options: Sequence[tuple[str, str]], value: str) -> Select[str]:
    return Select(list(options), value=value, allow_blank=False, compact=True, id=name)
