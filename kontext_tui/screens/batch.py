"""A new batch: which pictures, which edits, with what; what that will take; saved as a script, and queued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast, get_args

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.suggester import SuggestFromList
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Label, OptionList, Select, TextArea

from core.edit.models import MODELS
from core.errors import KontextError, ScriptError
from core.jobs import estimate
from core.jobs.estimate import Measured, Prospect
from core.script import Script
from kontext_tui import batch, estimates
from kontext_tui.batch import Checked, Form, TurnForm
from kontext_tui.daemons import in_daemon
from kontext_tui.screens.batch_actions import BatchActions
from kontext_tui.screens.prompts import PromptArea, SafeInput, safe_lines
from kontext_tui.text import safe_text
from kontext_tui.widgets.folder_tree import FolderTree
from kontext_tui.widgets.hints import Hints
from kontext_tui.widgets.panels import Lines
from kontext_tui.widgets.topbar import TopBar
from kontext_tui.widgets.turn_list import TurnList

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

CHECK_SECONDS = 0.15
"""How long nobody types before the form is checked, and how long before its pictures are looked for."""
LOOK_SECONDS = 0.6
KEEP_SECONDS = 2.0
"""How long until a draft is kept on the disk."""
LINES = 4

TEXTS = ("output", "model", *batch.NUMBERS)
CHOICES = ("precision", "runtime", "output_size")
TURN_TEXTS = ("start", *batch.NUMBERS)
FIELDS = {"turn-from": "turn-start"}

BEGIN = "enter on a folder takes its pictures; then write what to change, a turn each. ctrl+o loads a script."


class _Outdated(Exception):
    """The form has changed since: what is being looked for is of no use any more."""


class PathArea(PromptArea):
    """Paths, one a line."""

    HELP = "Files, folders and patterns such as photos/**/*.jpg, one a line; paths count from the folder you are in."

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":  # a new line, as in any text
            event.prevent_default()
            event.stop()
            self.insert("\n")
        else:
            await super()._on_key(event)


class BatchScreen(BatchActions, Screen[None]):
    """The form of a batch, with the folders of this machine beside it."""

    HELP = (
        "Choose a folder, write what to change, and queue it. Empty fields take the model's own values. "
        "What is wrong is said below as you type; what it will take is told before anything is queued.\n\n"
        "enter in a prompt goes on to the next turn; ctrl+j breaks its line. esc leaves a field, and then the screen."
    )
    DEFAULT_CSS = """
    BatchScreen #folders { width: 1fr; max-width: 52; border-right: solid $foreground 20%; padding: 0 1;
        background: $background; scrollbar-size-vertical: 1; }
    BatchScreen #form { width: 2fr; padding: 0 1; }
    BatchScreen .row { height: 1; }
    BatchScreen #inputs-row { height: auto; max-height: 4; }
    BatchScreen Label { width: 12; color: $foreground 60%; }
    BatchScreen Label.next { width: auto; padding: 0 1 0 2; }
    BatchScreen Input { width: 1fr; background: $surface; }
    BatchScreen Input:focus, BatchScreen TextArea:focus { background: $panel; }
    BatchScreen Select { width: 1fr; max-width: 18; }
    BatchScreen Select > SelectCurrent { background: $surface; }
    BatchScreen Select:focus > SelectCurrent { background: $panel; border: none; }
    BatchScreen TextArea { height: 1; min-height: 1; border: none; padding: 0; background: $surface; }
    BatchScreen #inputs { width: 1fr; height: auto; max-height: 4; padding: 0; }
    BatchScreen #turn-prompt { height: 3; }
    BatchScreen .-wrong, BatchScreen .-wrong > SelectCurrent { background: $error 25% !important; }
    BatchScreen #turns-box, BatchScreen #turn, BatchScreen #told { border-top: solid $foreground 20%;
        border-title-color: $foreground 60%; }
    BatchScreen #turns-box:focus-within, BatchScreen #turn:focus-within { border-top: solid $accent; }
    BatchScreen #turns-box { height: 1fr; min-height: 3; }
    BatchScreen TurnList { height: 1fr; padding: 0; background: $background; text-wrap: nowrap;
        text-overflow: ellipsis; scrollbar-size-vertical: 1; }
    BatchScreen #turn { height: auto; }
    BatchScreen #told { height: auto; min-height: 3; }
    BatchScreen.-high .row, BatchScreen.-high #inputs-row { margin-bottom: 1; }
    BatchScreen.-high #turn-prompt { height: 5; margin-bottom: 1; }
    BatchScreen.-narrow #folders { display: none; }
    BatchScreen.-narrow.-browsing #folders { display: block; max-width: 100%; border-right: none; }
    BatchScreen.-narrow.-browsing #form { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g", "queue", "Queue it", id="batch.queue", priority=True, tooltip="Add the batch to the queue"),
        Binding("ctrl+t", "folders", "Folders", id="batch.folders", priority=True, tooltip="Choose among folders"),
        Binding("ctrl+n", "turn('add')", "Turn", id="batch.turn", priority=True, tooltip="A new turn after this one"),
        Binding("ctrl+s", "save", "Save", id="batch.save", priority=True, tooltip="As a script, in YAML"),
        Binding("ctrl+o", "load", "Load", id="batch.load", priority=True, tooltip="A script's file"),
        Binding("ctrl+l", "clear", "Empty", id="batch.clear", priority=True, show=False, tooltip="Begin anew"),
        Binding("escape", "back", "Back", id="batch.back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.home_folder = Path.cwd()
        self.form = Form()
        self.at = 0
        """The turn that is being edited."""
        self.past: list[tuple[Form, int]] = []
        self.file: Path | None = None
        self.saved = ""
        """What the file says, as it was saved or loaded."""
        self.checked: Checked | None = None
        self.prospect: Prospect | None = None
        self.found: Measured | None = None
        self.refusal: tuple[tuple[str, str], ...] = ()
        """What only looking for the pictures and the model has shown."""
        self.busy = ""
        self._shown: dict[str, tuple[str, str]] = {}
        self._paths: dict[str, str] = {}
        self._late: dict[str, Timer] = {}

    @property
    def home(self) -> KontextApp:
        return cast("KontextApp", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar()
        with Horizontal():
            yield FolderTree(self.home_folder, id="folders")
            with Vertical(id="form"):
                with Horizontal(id="inputs-row"):
                    yield Label("pictures")
                    yield PathArea(id="inputs", placeholder="a folder, such as photos/", compact=True)
                with Horizontal(classes="row"):
                    yield Label("results")
                    yield SafeInput(id="output", placeholder="edited", compact=True)
                    yield Label("as large as", classes="next")
                    yield _select("output_size", {"their picture": "input", "the model": "model"})
                with Horizontal(classes="row"):
                    yield Label("model")
                    yield SafeInput(id="model", compact=True, suggester=SuggestFromList(list(MODELS)))
                    yield Label("precision", classes="next")
                    yield _select("precision", {each: each for each in _literals("precision")})
                    yield Label("runtime", classes="next")
                    yield _select("runtime", {each: each for each in _literals("runtime")})
                yield _numbers("", "random", "model's", "model's", "1: exact")
                with Vertical(id="turns-box") as box:
                    box.border_title = "turns"
                    yield TurnList(id="turns")
                with Vertical(id="turn") as turn:
                    turn.border_title = "turn 1"
                    yield PromptArea(id="turn-prompt", placeholder="what to change, such as: Make it a sunset",
                                     soft_wrap=True, compact=True)  # fmt: skip
                    yield _numbers("turn-", *["above"] * 4)
                yield Lines(id="told")
        yield Hints()

    def on_mount(self) -> None:
        kept = self.home.state.get("batch")
        if isinstance(kept, dict):
            self.form = batch.from_state(kept.get("form")) or self.form
            file, saved = kept.get("file"), kept.get("saved")
            if isinstance(file, str) and isinstance(saved, str):
                self.file, self.saved = Path(file), saved
        self.fill()
        self.call_after_refresh(self._focus_first)  # once it is known what there is room for

    def _focus_first(self) -> None:
        if self.focused is None or self.focused.id == "folders":
            empty = not self.begun
            self.query_one("#inputs" if self.has_class("-narrow") else "#folders" if empty else "#turns").focus()

    def on_screen_resume(self) -> None:
        self.edited(now=True)

    # ------------------------------------------------------------ fields and form

    def fill(self) -> None:
        """Show the form."""
        self.at = min(self.at, len(self.form.turns) - 1)
        shown = [safe_text(path) for path in self.form.inputs]
        self._paths = dict(zip(shown, self.form.inputs, strict=True))
        self.query_one("#inputs", TextArea).text = "\n".join(shown)
        for key in TEXTS:
            self._put(key, getattr(self.form, key))
        for key in CHOICES:
            self.query_one(f"#{key}", Select).value = getattr(self.form, key)
        self.fill_turn()
        self.edited(now=True)

    def fill_turn(self) -> None:
        turn = self.form.turns[self.at]
        for key in TURN_TEXTS:
            self._put(f"turn-{key}", getattr(turn, key))
        self._put("turn-prompt", turn.prompt)
        before = "input" if self.at == 0 else f"turn {self.at}"
        self.query_one("#turn-start", Input).placeholder = before
        self.query_one("#turn").border_title = f"turn {self.at + 1}"
        self._show_turns()

    def _put(self, name: str, value: str) -> None:
        """Show a value, made safe; it stays what it is for as long as nobody touches it."""
        field = self.query_one(f"#{name}")
        safe = safe_lines(value) if isinstance(field, TextArea) else safe_text(value)
        self._shown[name] = (safe, value)
        if isinstance(field, TextArea):
            if field.text != safe:
                field.text = safe
                field.move_cursor(field.document.end)
        elif isinstance(field, Input):
            field.value = safe

    def _get(self, name: str) -> str:
        field = self.query_one(f"#{name}")
        text = field.text if isinstance(field, TextArea) else cast("Input", field).value
        safe, value = self._shown[name]
        return value if text == safe else text

    def take(self) -> Form:
        """The form as its fields stand."""
        paths = [line.strip() for line in self.query_one("#inputs", TextArea).text.split("\n")]
        turn = TurnForm(self._get("turn-prompt"), **{key: self._get(f"turn-{key}") for key in TURN_TEXTS})
        return replace(
            self.form,
            inputs=tuple(self._paths.get(path, path) for path in paths if path),
            turns=(*self.form.turns[: self.at], turn, *self.form.turns[self.at + 1 :]),
            **{key: self._get(key) for key in TEXTS},
            **{key: str(self.query_one(f"#{key}", Select).value) for key in CHOICES},
        )

    @on(TextArea.Changed)
    @on(Input.Changed)
    @on(Select.Changed)
    def _changed(self) -> None:
        form = self.take()
        if form != self.form:
            self.form = form
            self.edited()

    @on(OptionList.OptionHighlighted, "#turns")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_index != self.at and event.option_index < len(self.form.turns):
            self.form = self.take()
            self.at = event.option_index
            self.fill_turn()

    @on(OptionList.OptionSelected, "#turns")
    def _selected(self) -> None:
        self.query_one("#turn-prompt").focus()

    @on(PromptArea.Submitted, "#turn-prompt")
    def _next_turn(self) -> None:
        """Enter in a prompt: on to the next turn, a new one behind the last."""
        self.form = self.take()
        if self.at + 1 < len(self.form.turns):
            self.at += 1
            self.fill_turn()
        elif self.form.turns[self.at].prompt.strip():
            self.action_turn("add")

    @on(Input.Submitted)
    def _next_field(self) -> None:
        self.focus_next()

    @on(FolderTree.Chosen)
    def _chosen(self, message: FolderTree.Chosen) -> None:
        path = batch.picked(message.folder, self.home_folder)
        kept = self.form.inputs if message.more else ()
        self.form = replace(self.take(), inputs=(*(each for each in kept if each != path), path))
        self.remove_class("-browsing")
        self.fill()
        if not message.more:
            self.query_one("#turn-prompt").focus()

    # ------------------------------------------------------------ checking

    def edited(self, *, now: bool = False) -> None:
        """The form is another: check it in a moment, and look for its pictures a little later."""
        self.prospect, self.refusal = None, ()
        self._later("check", 0.0 if now else CHECK_SECONDS, self._check)
        self._later("keep", KEEP_SECONDS, self.keep)

    def _later(self, what: str, seconds: float, call: object) -> None:
        if what in self._late:
            self._late[what].stop()
        self._late[what] = self.set_timer(max(seconds, 0.01), call)  # type: ignore[arg-type]

    def keep(self) -> None:
        """Remember the draft: it survives the app, however that ends."""
        state = {"form": batch.to_state(self.form)}
        if self.file is not None:
            state |= {"file": str(self.file), "saved": self.saved}  # type: ignore[dict-item]
        if self.home.state.get("batch") != state:
            self.home.state["batch"] = state
            self.home.remember()

    def _check(self) -> None:
        self.run_worker(self._check_now, group="check", exclusive=True)

    async def _check_now(self) -> None:
        form = self.form
        checked = await in_daemon(partial(batch.check, form, self.home_folder))
        if form != self.form:
            return
        self.checked = checked
        self.show()
        if checked.script is not None:
            self._later("look", LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self.run_worker(self._look_now, group="look", exclusive=True)

    async def _look_now(self) -> None:
        """Find the pictures, and what was measured of such turns."""
        form, script = self.form, self.checked.script if self.checked is not None else None
        if script is None:
            return

        def up_to_date(folder: Path) -> None:
            if form != self.form or not self.is_attached:
                raise _Outdated

        try:
            prospect = await in_daemon(partial(estimate.look, script, up_to_date))
            found = await self.home.read(estimate.measured, prospect)
        except _Outdated:
            return
        except ScriptError as error:
            self.refusal = tuple((_field_of(script, problem.message), problem.message) for problem in error.problems)
        except KontextError as error:
            self.refusal = (("model", str(error)),)
        else:
            self.prospect, self.found = prospect, found
        if form == self.form:
            self.show()

    @property
    def problems(self) -> tuple[tuple[str, str], ...]:
        return self.checked.problems if self.checked is not None and self.checked.problems else self.refusal

    @property
    def begun(self) -> bool:
        """Whether there is anything yet that could be wrong."""
        return bool(self.form.inputs) or any(turn.prompt for turn in self.form.turns)

    def show(self) -> None:
        """Say what is wrong, beside its field and below; else what the batch will take."""
        problems = self.problems
        wrong = {self._field(path) for path, _ in problems} if self.begun else set()
        for field in self.query("#form Input, #form TextArea, #form Select"):
            field.set_class(field.id in wrong, "-wrong")
        self._show_turns()
        self.query_one("#told", Lines).show(list(self._told(problems)))

    def _show_turns(self) -> None:
        parts = [path.split(".") for path, _ in self.problems] if self.begun else []
        wrong = {int(part[1]) for part in parts if part[0] == "turns" and len(part) > 1}
        self.query_one(TurnList).show(self.form.turns, wrong, self.at)

    def _field(self, path: str) -> str:
        """The field that a problem's path means; none where it is another turn's."""
        match path.split("."):
            case ["input", *_]:
                return "inputs"
            case ["turns", index, *rest] if int(index) == self.at:
                name = f"turn-{rest[0] if rest else 'prompt'}"
                return FIELDS.get(name, name)
            case [key]:
                return key
        return ""

    def _told(self, problems: tuple[tuple[str, str], ...]) -> Iterator[Content]:
        width = 300
        if self.busy:
            yield Content.styled(self.busy, "bold $accent")
        elif not self.begun:
            yield Content(BEGIN)
        elif problems:
            for _, message in problems[: LINES if len(problems) == LINES else LINES - 1]:
                short = message.replace(f"{self.home_folder}{os.sep}", "")  # a long path would push the reason out
                yield Content.assemble(("✗ ", "bold $error"), safe_text(short, width))
            if len(problems) > LINES:
                yield Content.styled(f"  and {len(problems) - LINES + 1} more", "$foreground 60%")
        elif self.prospect is not None:
            first, *rest = estimates.told(self.prospect, self.found)
            yield Content.assemble(("✓ ", "bold $success"), first, ("   ctrl+g queues it", "$foreground 50%"))
            yield from (Content(f"  {line}") for line in rest)
        else:
            yield Content.styled("…", "$foreground 60%")

    def focused_field(self) -> Widget | None:
        """The field that is being typed in, if any."""
        found = self.focused
        return found if isinstance(found, Input | TextArea | Select) else None


def _numbers(prefix: str, seed: str, steps: str, guidance: str, refresh: str) -> Horizontal:
    """A row of numbers, each with what an empty field means; those of a turn have where it starts in front."""
    row: list[Widget] = []
    if prefix:
        row += [Label("starts from"), SafeInput(id="turn-start", compact=True), Label("seed", classes="next")]
    else:
        row.append(Label("seed"))
    row += [
        SafeInput(id=f"{prefix}seed", placeholder=seed, compact=True),
        Label("steps", classes="next"),
        SafeInput(id=f"{prefix}steps", placeholder=steps, compact=True),
        Label("guidance", classes="next"),
        SafeInput(id=f"{prefix}guidance", placeholder=guidance, compact=True),
        Label("refresh", classes="next"),
        SafeInput(
            id=f"{prefix}context_refresh",
            placeholder=refresh,
            compact=True,
            tooltip="Context refresh: look at the picture anew at one step in so many. 1 is exact.",
        ),
    ]
    return Horizontal(*row, classes="row")


def _select(name: str, options: dict[str, str]) -> Select[str]:
    found: Select[str] = Select(list(options.items()), allow_blank=False, id=name, compact=True)
    return found


def _literals(key: str) -> tuple[str, ...]:
    """The words that a script's key may hold."""
    return cast("tuple[str, ...]", get_args(Script.model_fields[key].annotation))


def _field_of(script: Script, message: str) -> str:
    return "output" if message.startswith("output ") else "input"
