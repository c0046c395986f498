"""The app: what people leave open overnight. Modes, keys that hold everywhere, and the way to the queue.

Nothing heavy is imported here, and torch never: pictures are edited by worker processes alone.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme
from textual.widgets import Input
from textual.worker import WorkerFailed

from core.errors import DatabaseError, KontextError
from kontext_tui import settings as config
from kontext_tui.feed import CALM_SECONDS, HANDS_OFF_SECONDS, POLL_SECONDS, Changed, Feed
from kontext_tui.graphics import Graphics
from kontext_tui.settings import Settings
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from kontext_tui.starting import Started
    from kontext_tui.task_runner import TaskRunner

P = ParamSpec("P")
T = TypeVar("T")

KONTEXT = Theme(
    name="kontext",
    primary="#7aa2f7",
    secondary="#bb9af7",
    accent="#e0af68",
    foreground="#c8d0e0",
    background="#14161c",
    surface="#1a1d25",
    panel="#232733",
    success="#8fc77a",
    warning="#e0af68",
    error="#e8707a",
    dark=True,
    variables={"footer-key-foreground": "#e0af68", "block-cursor-text-style": "none"},
)


def _screen(module: str, name: str) -> Callable[[], Screen[Any]]:
    """A screen that is imported when it is first gone to: the first paint does not wait for the others."""

    def make() -> Screen[Any]:
        screen: Screen[Any] = getattr(importlib.import_module(f"kontext_tui.screens.{module}"), name)()
        return screen

    return make


class KontextApp(App[str]):
    """The app over one queue. Its result is what to say once the terminal is the shell's again."""

    TITLE = "kontext-tui"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {
        "queue": _screen("queue", "QueueScreen"),
        "review": _screen("review", "ReviewScreen"),
        "batch": _screen("batch", "BatchScreen"),
        "models": _screen("models", "ModelsScreen"),
    }
    LABELS: ClassVar[dict[str, str]] = {
        "queue": "Queue",
        "review": "Review",
        "batch": "New batch",
        "models": "Models",
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own type
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]  # noqa: RUF012
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave; workers go on"),
        Binding("question_mark,f1", "help", "Help", id="app.help", key_display="?", tooltip="Keys and words"),
        *(
            Binding(f"{number},f{number + 1}", f"mode('{mode}')", label, id=f"app.{mode}", show=False)
            for number, (mode, label) in enumerate(LABELS.items(), start=1)
        ),
    ]

    def __init__(self, database: Path, settings: Settings, graphics: Graphics | None = None) -> None:
        """graphics: how pictures are drawn; half blocks where nobody has asked the terminal (`graphics.choose`)."""
        super().__init__()
        self.database, self.settings = database, settings
        self.graphics = graphics or Graphics("off" if settings.images == "off" else "halfcell")
        self.feed = Feed(database)
        self.state: dict[str, Any] = config.load_state(database)
        """What is remembered until the next start, JSON-able; each screen has a key of its own."""
        self._tasks: TaskRunner | None = None
        self.worker: Started | None = None
        self.touched = time.monotonic()
        """When a key or the mouse was used last."""
        self._told = 0.0
        self._refused = ""
        self.register_theme(KONTEXT)
        theme = settings.theme
        if theme == "auto":
            theme = "ansi-dark" if self.console.color_system == "standard" else KONTEXT.name
        self.theme = theme
        self.set_keymap(dict(settings.keys))

    def on_mount(self) -> None:
        mode = self.state.get("screen")
        self.switch_mode(mode if mode in self.MODES else "queue")
        self.set_interval(POLL_SECONDS, self._poll)
        # What is there by then stays: the collector need not look through all of it again and again.
        self.set_timer(3.0, lambda: gc.freeze())
        if "task" in self.state:
            self.tasks.adopt()
        if self.settings.workers:
            self.run_worker(self._start_where_none_is)
        if self.graphics.notice:
            self.toast(self.graphics.notice, "warning")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self.exit)
            except (RuntimeError, ValueError, NotImplementedError):  # not the main thread: a test, a browser
                break

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.InputEvent):
            self.touched = time.monotonic()
        await super().on_event(event)

    def on_key(self, event: events.Key) -> None:
        """What was typed before a line of text had the focus, and is no command any more, belongs into that line."""
        if event.is_printable and isinstance(self.focused, Input):
            self.focused.post_message(events.Key(event.key, event.character))

    async def on_unmount(self) -> None:
        self.remember()
        await asyncio.to_thread(self.feed.close)

    def remember(self) -> None:
        """Keep the state for the next start."""
        self.state["screen"] = self.current_mode
        config.save_state(self.database, self.state)

    # ------------------------------------------------------------ the queue

    async def read(
        self, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        """What `query(conn, *args)` returns, run in the reading thread.

        Raises what it raises, SQLite's refusals as DatabaseError. A KontextError that nobody catches becomes a toast.
        """
        return await self.feed.read(query, *args, **named)

    async def write(
        self, command: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        """Run a short command in the writing thread, then tell the screens. Errors as with `read`."""
        try:
            return await self.feed.write(command, *args, **named)
        finally:
            self.call_later(self._poll, now=True)

    async def in_background(self, function: Callable[[], T]) -> T:
        """What `function()` returns, run in a thread of its own: for what is slow and not the queue's."""
        return await asyncio.get_running_loop().run_in_executor(None, function)

    async def _poll(self, now: bool = False) -> None:
        """Tell the screens of the current mode that the queue changed; calmly, however fast it does."""
        clock = time.monotonic()
        calm = CALM_SECONDS if clock - self.touched < HANDS_OFF_SECONDS else 2 * CALM_SECONDS
        if not now and clock - self._told < calm:
            return
        try:
            if await self.feed.changed() or now:
                self._told = time.monotonic()
                self._refused = ""
                for screen in self.screen_stack:
                    screen.post_message(Changed())
        except DatabaseError as error:
            if str(error) != self._refused:  # once, not four times a second
                self._refused = str(error)
                self._toast_error(error)

    # ------------------------------------------------------------ workers

    def start_worker(self) -> None:
        """Start a worker as a process of its own session: it goes on when the app is closed."""
        from kontext_tui.starting import start_worker

        try:
            self.worker = start_worker(self.database)
        except OSError as error:
            self.toast(f"no worker could be started: {error}", "error")
            return
        self.toast("a worker starts; it goes on when the app is closed")
        self.set_timer(3.0, self._check_worker)

    async def _start_where_none_is(self) -> None:
        from core.jobs.workers import live_workers

        if not await self.read(live_workers):
            self.start_worker()

    def _check_worker(self) -> None:
        """Say why a worker that was started has ended; no zombie stays behind."""
        if self.worker is None:
            return
        code = self.worker.process.poll()
        if code is None:
            self.set_timer(5.0, self._check_worker)
            return
        if code:
            self.toast(
                f"the worker ended: {safe_text(self.worker.last_words() or f'exit code {code}', 300)}", "error"
            )
        self.worker = None

    @property
    def tasks(self) -> TaskRunner:
        """Long commands that are not the queue's: quantizing, building engines."""
        if self._tasks is None:
            from kontext_tui.task_runner import TaskRunner

            self._tasks = TaskRunner(self)
        return self._tasks

    # ------------------------------------------------------------ errors

    def _handle_exception(self, error: Exception) -> None:
        """What a user can mend is a toast; everything else ends the app, as it should."""
        cause = error.error if isinstance(error, WorkerFailed) else error
        if isinstance(cause, KontextError):
            self._toast_error(cause)
        else:
            super()._handle_exception(error)

    def _toast_error(self, error: BaseException) -> None:
        lines = str(error).splitlines() or [type(error).__name__]
        self.toast("\n".join(safe_text(line, 300) for line in lines[:6]), "error")

    def toast(self, text: str, severity: Any = "information", timeout: float | None = None) -> None:
        """Say what happened. `text` is shown as it is: no markup."""
        self.notify(text, severity=severity, timeout=timeout, markup=False)

    # ------------------------------------------------------------ what holds everywhere

    def action_mode(self, mode: str) -> None:
        if mode != self.current_mode and not self.screen.is_modal:
            self.switch_mode(mode)

    def action_help(self) -> None:
        from kontext_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen))

    async def action_quit(self) -> None:
        """Leave. Workers are processes of their own: they go on, and it is said."""
        from core.jobs.workers import live_workers

        try:
            workers = await asyncio.wait_for(self.feed.read(live_workers), timeout=1.0)
        except (TimeoutError, KontextError):
            workers = []
        task = self._tasks.going_on() if self._tasks is not None else ""
        said = [f"{task} goes on"] if task else []
        if workers:
            where = ", ".join(worker.device for worker in workers)
            said.insert(0, f"workers go on: {len(workers)} ({safe_text(where, 60)})")
        self.exit("\n".join(said) or None)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: the other screens, what the keys of this one do, themes."""
        for mode, label in self.LABELS.items():
            if mode != self.current_mode:
                yield SystemCommand(label, f"Go to {label.lower()}", lambda mode=mode: self.action_mode(mode))
        seen = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if not binding.id or binding.id in seen or not active.enabled or binding.id.startswith("app."):
                continue
            seen.add(binding.id)
            action = binding.action
            yield SystemCommand(
                binding.description,
                active.tooltip or f"Key {self.get_key_display(binding)}",
                lambda action=action, node=active.node: self.run_worker(self.run_action(action, node)),
            )
        yield SystemCommand("Help", "Keys and words of what is focused", self.action_help)
        yield SystemCommand("Theme", "Change the colours until the app is closed", self.action_change_theme)
        yield SystemCommand("Save a screenshot", "This screen as an SVG file", self.action_save_screenshot)
        yield SystemCommand("Quit", "Leave; workers go on", self.action_quit)

    def action_save_screenshot(self) -> None:
        from kontext_tui.screenshot import svg

        path = Path.cwd() / time.strftime("kontext-tui-%Y-%m-%d-%H%M%S.svg")
        try:
            path.write_text(svg(self, "kontext-tui"), "utf-8")
        except OSError as error:
            self.toast(f"{safe_text(str(path))}: {error.strerror}", "error")
        else:
            self.toast(f"saved {safe_text(str(path))}")
