"""Small dialogs: a prompt to redo or branch with, and a folder to export to."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, Label, Static, TextArea

from core.errors import UsageError
from core.jobs.queue import SEED_BITS
from core.jobs.review import Change
from core.script import MAX_PROMPT
from kontext_tui.text import safe_text


def safe_lines(text: str) -> str:
    """Foreign text of several lines, each made safe."""
    return "\n".join(safe_text(line) for line in text.splitlines())


class PromptArea(TextArea):
    """Text of a prompt: Enter says it is finished, ctrl+j (and shift+enter, where a terminal sends it) breaks a line.

    What is pasted is made safe: a clipboard holds anything.
    """

    class Submitted(Message):
        """Enter was pressed."""

        def __init__(self, area: PromptArea) -> None:
            super().__init__()
            self.area = area

        @property
        def control(self) -> PromptArea:
            return self.area

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Submitted(self))
        elif event.key in ("ctrl+j", "shift+enter"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
        else:
            await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert(safe_lines(event.text))


class SafeInput(Input):
    """A line of text; what is pasted into it is made safe."""

    def _on_paste(self, event: events.Paste) -> None:
        super()._on_paste(events.Paste(safe_text(event.text.strip().split("\n")[0], MAX_PROMPT)))
        event.stop()
        event.prevent_default()


class Tick(Checkbox):
    """A checkbox that shows its state without colours too."""

    @property
    def BUTTON_INNER(self) -> str:  # type: ignore[override]  # noqa: N802 - Textual's name
        return "X" if self.value else " "


@dataclass(frozen=True)
class Asked:
    """What a person asked for: the change, and whether later turns come along."""

    change: Change
    with_later: bool = False


class PromptDialog(ModalScreen[Asked | None]):
    """Asks for a prompt and a seed; None where nothing came of it."""

    DEFAULT_CSS = """
    PromptDialog { align: center middle; }
    PromptDialog > Vertical {
        width: 76; max-width: 100%; height: auto; max-height: 100%; padding: 0 1;
        border: round $primary; background: $surface;
    }
    PromptDialog TextArea { height: 6; }
    PromptDialog Horizontal { height: auto; }
    PromptDialog .row Label { padding: 1 1 0 1; }
    PromptDialog Input { width: 26; }
    PromptDialog Checkbox { width: auto; }
    PromptDialog .problem { color: $error; height: auto; }
    PromptDialog .hint { color: $text-muted; padding: 0 1; }
    PromptDialog .buttons { align-horizontal: right; }
    PromptDialog Button { margin-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Leave", id="dialog.leave"),
        Binding("ctrl+s", "queue", "Queue it", id="dialog.queue", priority=True),
    ]

    def __init__(
        self, title: str, prompt: str = "", seed: int | None = None, *, redo: bool = False, later: int = 0
    ) -> None:
        """redo: prompt and seed are those of a result that is to become another. later: how many turns lead on."""
        super().__init__()
        self.heading, self.prompt, self.seed, self.redo, self.later = title, prompt, seed, redo, later

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(f" {safe_text(self.heading, 70)} ")
            yield PromptArea(safe_lines(self.prompt), soft_wrap=True, show_line_numbers=False)
            with Horizontal(classes="row"):
                yield Label("seed")
                yield SafeInput("" if self.seed is None else str(self.seed), placeholder="a new one", type="integer")
                if self.later:
                    turns = "turn" if self.later == 1 else f"{self.later} turns"
                    yield Tick(f"and the {turns} after it", id="later")
            yield Static(classes="problem", markup=False)
            yield Static("enter queues it, ctrl+j breaks a line", classes="hint", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Queue", variant="primary", id="queue")
                yield Button("Leave", id="leave")

    def on_mount(self) -> None:
        area = self.query_one(PromptArea)
        area.focus()
        area.move_cursor(area.document.end)

    @on(Button.Pressed, "#leave")
    def _leave(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#queue")
    @on(PromptArea.Submitted)
    @on(Input.Submitted)
    def action_queue(self) -> None:
        text, seed = self.query_one(PromptArea).text, self.query_one(Input).value.strip()
        problem = self.query_one(".problem", Static)
        if not 0 < len(text.strip()) <= MAX_PROMPT:
            problem.update(f"a prompt is text of 1 to {MAX_PROMPT:,} characters")
            return
        # A prompt that was shown with escapes and not touched is meant as it was.
        prompt = self.prompt if text == safe_lines(self.prompt) else text
        if self.redo and (prompt, seed) == (self.prompt, str(self.seed)):
            problem.update("the same prompt and seed make the same picture: change one, or leave the seed empty")
            return
        try:
            change = Change(prompt=prompt, seed=int(seed) if seed else secrets.randbits(SEED_BITS))
        except (UsageError, ValueError) as error:
            problem.update(Content(safe_text(str(error), 200)))
            return
        later = bool(self.later) and self.query_one("#later", Checkbox).value
        self.dismiss(Asked(change, later))


class LineDialog(ModalScreen[str | None]):
    """Asks for a line of text, such as a folder; None where nothing came of it."""

    DEFAULT_CSS = """
    LineDialog { align: center middle; }
    LineDialog > Vertical {
        width: 70; max-width: 100%; height: auto; padding: 0 1; border: round $primary; background: $surface;
    }
    LineDialog Horizontal { height: auto; align-horizontal: right; }
    LineDialog Button { margin-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Leave", id="dialog.leave")]

    def __init__(self, title: str, text: str, line: str, verb: str, *, empty: bool = False) -> None:
        """empty: nothing is an answer too."""
        super().__init__()
        self.heading, self.text, self.line, self.verb, self.empty = title, text, line, verb, empty

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(f" {safe_text(self.heading, 60)} ")
            yield Static(Content(self.text))
            yield SafeInput(safe_text(self.line))
            with Horizontal():
                yield Button(self.verb, variant="primary", id="go")
                yield Button("Leave", id="leave")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    @on(Button.Pressed, "#leave")
    def _leave(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#go")
    @on(Input.Submitted)
    def _go(self) -> None:
        line = self.query_one(Input).value.strip()
        if line or self.empty:
            self.dismiss(self.line if line == safe_text(self.line) else line)


class ConfirmDialog(ModalScreen[bool]):
    """Asks before something large; `y` or Enter says yes."""

    DEFAULT_CSS = """
    ConfirmDialog { align: center middle; }
    ConfirmDialog > Vertical {
        width: 60; max-width: 100%; height: auto; padding: 1 2; border: round $warning; background: $surface;
    }
    ConfirmDialog Horizontal { height: auto; align-horizontal: right; margin-top: 1; }
    ConfirmDialog Button { margin-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="dialog.yes"),
        Binding("n,escape", "answer(False)", "No", id="dialog.no"),
    ]

    def __init__(self, text: str, verb: str) -> None:
        super().__init__()
        self.text, self.verb = text, verb

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(self.text))
            with Horizontal():
                yield Button(self.verb, variant="warning", id="yes")
                yield Button("Leave", id="no")

    def on_mount(self) -> None:
        self.query_one("#yes").focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
