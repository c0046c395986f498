"""Models and engines: what there is, what it is worth, and the commands that make more of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList

from core.edit import artifacts, inventory
from core.edit.inventory import Inventory, Made
from core.edit.runtimes import PRECISIONS
from core.edit.runtimes.trt_api import GPUS, SINCE, current_gpu
from core.errors import KontextError
from kontext_tui import models_view, plans
from kontext_tui.desktop import open_file
from kontext_tui.figures import size
from kontext_tui.models_view import Entry
from kontext_tui.screens.making import MakeDialog, PaneScreen, Wish
from kontext_tui.screens.questions import Question
from kontext_tui.tasks import Command
from kontext_tui.text import safe_text
from kontext_tui.widgets.hints import Hints
from kontext_tui.widgets.model_list import ModelList
from kontext_tui.widgets.panels import Lines, Pane
from kontext_tui.widgets.topbar import TopBar

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

LOOK_SECONDS = 5.0
"""How often the store is looked at while it is on show: others may make something too."""
TELL_SECONDS = 1.0
MOST_LIKELY = "sm120"
"""The GPU that is offered where there is none: engines are built for RTX cards elsewhere."""


class ModelsScreen(Screen[None]):
    """The models of this machine, and checkpoints, graphs and engines made of them."""

    HELP = (
        "A model is quantized to a checkpoint, a checkpoint is exported as an ONNX graph, and of that an engine is "
        "built for one kind of GPU; b makes what is missing before it. Each is the command that is shown, run as a "
        "process of its own: it goes on when the app is closed."
    )
    DEFAULT_CSS = """
    ModelsScreen ModelList { width: 3fr; height: 1fr; padding: 0 1; background: $background; border: none;
        text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1; }
    ModelsScreen ModelList:focus { background-tint: transparent; }
    ModelsScreen ModelList > .option-list--option-highlighted,
    ModelsScreen ModelList:focus > .option-list--option-highlighted { background: $primary 40%; color: $foreground; }
    ModelsScreen #about { width: 2fr; max-width: 64; padding: 0 1; border-left: solid $foreground 20%;
        scrollbar-size-vertical: 1; }
    ModelsScreen #about:focus { border-left: solid $accent; }
    ModelsScreen #task { height: auto; max-height: 4; padding: 0 1; border-top: solid $foreground 20%;
        display: none; }
    ModelsScreen.-task #task { display: block; }
    ModelsScreen.-narrow #about { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "make('quantize')", "Quantize", id="models.quantize", tooltip="A smaller checkpoint of it"),
        Binding("e", "make('export')", "Export", id="models.export", tooltip="Its ONNX graph"),
        Binding("b", "make('build')", "Build", id="models.build", tooltip="A TensorRT engine, and what it needs"),
        Binding("p", "compare", "Compare", id="models.compare", tooltip="What each precision costs, on twelve edits"),
        Binding("l", "lint", "Lint", id="models.lint", tooltip="What of a graph or engine runs in low precision"),
        Binding("v", "verify", "Verify", id="models.verify", tooltip="Hold an engine against the unquantized model"),
        Binding("x,delete", "remove", "Remove", id="models.remove", tooltip="Delete what was made; asks first"),
        Binding("c", "cancel", "Cancel", id="models.cancel", tooltip="Stop what is being made; nothing half is kept"),
        Binding("enter", "details", "Details", id="models.details", show=False, tooltip="Everything about it"),
        Binding("o", "open", "Open folder", id="models.open", show=False, tooltip="Open its folder on the desktop"),
        Binding("escape", "back", "Back", id="models.back", show=False),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: Inventory | None = None
        self.entries: list[Entry] = []
        self.gpu: str | None = None
        """The kind of GPU here."""
        self.wanted: str | None = None
        """What the next look puts the cursor on."""

    @property
    def home(self) -> KontextApp:
        return cast("KontextApp", self.app)

    @property
    def models(self) -> ModelList:
        return self.query_one(ModelList)

    @property
    def entry(self) -> Entry | None:
        key = self.models.key
        return next((entry for entry in self.entries if entry.key == key), None)

    def compose(self) -> ComposeResult:
        yield TopBar()
        with Horizontal():
            yield ModelList()
            yield Pane(id="about", help="The model or artifact under the cursor, in full.")
        with Vertical(id="task"):
            yield Lines()
        yield Hints()

    def on_mount(self) -> None:
        self.models.focus()
        self.set_interval(LOOK_SECONDS, self._look_again)
        self.set_interval(TELL_SECONDS, self.show_task)

    def on_screen_resume(self) -> None:
        self.look()
        self.show_task()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._show)

    # ------------------------------------------------------------ looking

    def look(self, keep: str | None = None) -> None:
        """Look at the store. keep: what to put the cursor on, by this look or by one that overtakes it."""
        self.wanted = keep or self.wanted
        self.run_worker(self._look, group="look", exclusive=True)

    def _look_again(self) -> None:
        if self.is_current:
            self.look()

    async def _look(self) -> None:
        self.found, gpu = await self.home.in_background(_all)
        self.gpu = gpu
        self.entries = models_view.entries(self.found)
        keep, self.wanted = self.wanted, None
        self._show(keep or (None if self.models.keys else self.home.state.get("models")))

    def _show(self, keep: str | None = None) -> None:
        if self.found is None:
            return
        width = max(20, self.models.content_region.width)
        lines = [models_view.line(entry, self.found, width) for entry in self.entries]
        self.models.show([entry.key for entry in self.entries], lines, keep)
        self._show_about()

    @on(OptionList.OptionHighlighted)
    def _show_about(self) -> None:
        if self.found is not None and (entry := self.entry) is not None:
            self.home.state["models"] = entry.key
            self.query_one("#about", Pane).show(models_view.describe(entry, self.found))

    def show_task(self) -> None:
        """Tell how the task goes, or went."""
        task = self.home.tasks.task
        self.set_class(task is not None, "-task")
        if task is not None:
            bindings = [each.binding for each in self.active_bindings.values()]
            keys = [self.app.get_key_display(each) for each in bindings if each.id == "models.cancel"]
            told = models_view.told(task, max(20, self.size.width - 2), next(iter(keys), "c"))
            self.query_one("#task Lines", Lines).show(told)
        self.refresh_bindings()

    def task_ended(self, key: str | None) -> None:
        """Something was made, or not."""
        self.show_task()
        self.look(key)

    # ------------------------------------------------------------ making

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.home.tasks.running if action == "cancel" else True

    def action_make(self, goal: plans.Goal) -> None:
        found, entry = self.found, self.entry
        if found is None or entry is None or self._busy():
            return
        model = next((each for each in found.models if each.name == entry.model), None)
        if model is None or (model.state != "there" and not (goal == "quantize" and model.name == "kontext-dev")):
            reason = model.reason if model is not None else "there is no model that this was made of"
            self.home.toast(safe_text(reason or "", 300), "warning")
            return
        precisions = [each for each in PRECISIONS if goal != "quantize" or each != "bf16"]
        precision = entry.precision if entry.precision in precisions else precisions[0]
        note = "" if model.state == "there" else "The model is downloaded first: about 33 GB."

        def plan(wish: Wish) -> tuple[Command, ...]:
            return plans.to_make(found, goal, model.name, wish.precision, wish.gpu)

        def chosen(wish: Wish | None) -> None:
            if wish is not None:
                self.start(*plan(wish))

        title = {"quantize": "Quantize", "export": "Export", "build": "Build an engine of"}[goal] + f" {model.name}"
        gpus = self._gpus() if goal == "build" else []
        gpu = "auto" if self.gpu else MOST_LIKELY
        verb = title.split()[0]
        self.app.push_screen(MakeDialog(title, verb, Wish(precision, gpu), precisions, gpus, plan, note), chosen)

    def _gpus(self) -> list[tuple[str, str]]:
        """Title and name of each that an engine can be built for, the one here first."""
        able = [name for name in GPUS if int(name[2:]) >= SINCE["bf16"]]
        here = [(f"this one: {self.gpu}", "auto")] if self.gpu else []
        return here + [(f"{name}: {GPUS[name]}", name) for name in able]

    def action_compare(self) -> None:
        found, entry = self.found, self.entry
        if found is None or entry is None or self._busy():
            return
        command = plans.to_compare(found, entry.model)
        if command is None:
            self.home.toast("nothing to compare yet: z quantizes the model first", "warning")
            return
        self.start(command)

    def action_lint(self) -> None:
        made = self._made("l looks into an ONNX graph or an engine: choose one", "onnx", "engine")
        if made is not None and not self._busy():
            self.start(plans.to_lint(made))

    def action_verify(self) -> None:
        made = self._made("v holds an engine against its model: choose one", "engine")
        if made is not None and not self._busy():
            self.start(plans.to_verify(made))

    def start(self, *commands: Command) -> None:
        self.home.tasks.start(commands)

    def _busy(self) -> bool:
        if self.home.tasks.running:
            self.home.toast("one thing at a time: c cancels what is at work", "warning")
        return self.home.tasks.running

    def _made(self, otherwise: str, *kinds: str) -> Made | None:
        """What is under the cursor, where it is of one of these kinds and whole; says what to do where not."""
        made = self.entry.made if self.entry is not None else None
        if made is None or made.artifact.kind not in kinds:
            self.home.toast(otherwise, "warning")
            return None
        if made.standing == "broken":
            self.home.toast(safe_text(made.reason or "it is broken", 300), "warning")
            return None
        return made

    def action_cancel(self) -> None:
        self.home.tasks.stop()
        self.show_task()

    # ------------------------------------------------------------ the rest

    def action_remove(self) -> None:
        made = self.entry.made if self.entry is not None else None
        if made is None:
            self.home.toast("x removes a checkpoint, a graph or an engine: choose one. Models are kept", "warning")
            return
        artifact = made.artifact
        kind = models_view.KINDS.get(artifact.kind, artifact.kind)
        named = f"the {kind} of {safe_text(made.model or '?', 40)} in {safe_text(made.precision or '?', 10)}"
        seconds = artifact.manifest.get("seconds")
        cost = f" Making it took {models_view.short_time(float(seconds))}." if seconds is not None else ""

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(partial(self._remove, made, named))

        words = f"{size(artifact.size)} are deleted, and that cannot be undone.{cost}"
        self.app.push_screen(Question(f"Remove {named}?", words), answered)

    async def _remove(self, made: Made, named: str) -> None:
        try:
            await self.home.in_background(partial(artifacts.remove, made.artifact))
        except KontextError as error:
            self.home.toast(safe_text(str(error), 300), "error")
            return
        self.home.toast(f"removed {named}")
        self.look()

    @on(OptionList.OptionSelected)
    def action_details(self) -> None:
        if self.found is not None and (entry := self.entry) is not None:
            self.app.push_screen(PaneScreen(entry.model, models_view.describe(entry, self.found)))

    def show_output(self, title: str, text: str) -> None:
        """What a command printed."""
        lines = [Content(safe_text(line)) for line in text.splitlines()]
        self.app.push_screen(PaneScreen(title, Content("\n").join(lines)))

    def action_open(self) -> None:
        if self.found is None or (entry := self.entry) is None:
            return
        model = next((each for each in self.found.models if each.name == entry.model), None)
        folder = entry.made.artifact.folder if entry.made else model.folder if model else None
        if folder is None:
            self.home.toast("it is not on this machine", "warning")
        elif problem := open_file(str(folder)):
            self.home.toast(f"{safe_text(str(folder), 300)}: {problem}", "warning")

    def action_back(self) -> None:
        if self.focused is not self.models:
            self.models.focus()
        else:
            self.home.action_mode("queue")


def _all() -> tuple[Inventory, str | None]:
    gpu = current_gpu()
    return inventory.look(), gpu.sm if gpu else None
