"""The supervisor: one disposable child process a device, watched from outside.

It imports no torch, so it lives when a child does not: it renews the children's leases, puts back what dead ones
held, starts new ones with growing pauses, and ends those that hang.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import selectors
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from core.errors import UnavailableError
from core.jobs import claims, control
from core.jobs.child import BROKEN_DEVICE, NO_DATABASE, TAKEN
from core.jobs.database import checkpoint
from core.jobs.events import Event, Listener

RENEW_SECONDS = 5.0
BUSY_MS = 1000
"""How long the supervisor itself waits for another program's write: it must hear signals meanwhile."""
GRACE_SECONDS = 10.0
"""From asking a hung child to end to making it."""
STEP_FACTOR, STEP_SECONDS = 20.0, 120.0
"""A step is hung after so many times the median step, and at least so long. Loading and saving count as steps."""
LOAD_SECONDS = 1800.0
"""What loading a model may take: 24 GB from a slow disk, an engine's first start."""
RESTART_CAP_SECONDS = 60.0
BREAKER_COUNT, BREAKER_SECONDS = 3, 600.0
"""So many GPU failures in so many seconds pause the queue: the next job would fail the same way."""


@dataclass(frozen=True)
class Plan:
    """What to supervise. devices: one child each, such as cpu, auto, cuda:0. batch_id: these jobs alone. max_vram:
    bytes of its GPU that each child may take."""

    database: Path
    devices: Sequence[str] = ("auto",)
    batch_id: int | None = None
    drain: bool = True
    max_vram: int | None = None
    studio: str = "core.edit.studio:LocalStudio"
    step_seconds: float = STEP_SECONDS
    grace_seconds: float = GRACE_SECONDS


@dataclass
class Child:
    """A running child and what was last heard of it."""

    device: str
    process: subprocess.Popen[bytes]
    heard: float
    worker_id: int | None = None
    step_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    loading: bool = True
    jobs: set[int | None] = field(default_factory=set)
    """What it has: the one it computes, and one it may still be saving."""
    buffer: bytes = b""
    asked: float | None = None
    """When it was asked to end; infinite where no grace time runs."""
    hung: bool = False


@dataclass
class Supervision:
    """The state of a supervisor at work."""

    plan: Plan
    conn: sqlite3.Connection
    listener: Listener
    children: dict[str, Child] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    restart_at: dict[str, float] = field(default_factory=dict)
    broken: deque[float] = field(default_factory=deque)
    finished: set[str] = field(default_factory=set)
    blame: dict[int, str] = field(default_factory=dict)
    """Workers that died on their own, until what they held could be put back."""
    bury: bool = True
    """Whether someone died whose jobs are not put back yet."""


def supervise(plan: Plan, conn: sqlite3.Connection, listener: Listener, stop: Callable[[], int]) -> None:
    """Keep one child a device at work until nothing is left, or `stop` says 1 (end after the step) or 2 (now).

    Raises UnavailableError where another supervisor of this user has a device already.
    """
    with ExitStack() as stack:
        for device in plan.devices:
            if device.startswith("cuda"):
                stack.enter_context(device_lock(device))
        supervision = Supervision(plan, conn, listener)
        stack.callback(_end_all, supervision)
        conn.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        renewed = 0.0
        while not _is_over(supervision, stop()):
            _start_missing(supervision, stop())
            _listen(supervision, seconds=0.2)
            _bury_dead(supervision)
            _put_back(supervision)
            _end_hung(supervision)
            if stop():
                _ask_all(supervision, now=stop() > 1)
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                _renew(supervision)


def _is_over(supervision: Supervision, stopping: int) -> bool:
    return not supervision.children and (bool(stopping) or supervision.finished.issuperset(supervision.plan.devices))


def _start_missing(supervision: Supervision, stopping: int) -> None:
    if stopping:
        return
    for device in supervision.plan.devices:
        waiting = time.monotonic() < supervision.restart_at.get(device, 0.0)
        if device not in supervision.children and device not in supervision.finished and not waiting:
            supervision.children[device] = _start(supervision.plan, device)


def seen_as(device: str) -> tuple[str, dict[str, str]]:
    """What a device is called in the process that has it, and what of the environment makes it so.

    Before torch is imported, so that the child sees this GPU alone, or none: what is chosen by the GPU there is, such
    as an engine, is not chosen for a worker on the processor.
    """
    if device.startswith("cuda:"):
        return "cuda:0", {"CUDA_VISIBLE_DEVICES": device.partition(":")[2]}
    return device, {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}


def _start(plan: Plan, device: str) -> Child:
    command = [sys.executable, "-m", "core.jobs.child", "--db", str(plan.database), "--studio", plan.studio]
    name, visible = seen_as(device)
    environment = {**os.environ, **visible}
    command += ["--device", name]
    if plan.max_vram is not None:
        command += ["--max-vram", str(plan.max_vram)]
    if plan.batch_id is not None:
        command += ["--batch", str(plan.batch_id)]
    if plan.drain:
        command.append("--drain")
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return Child(device, process, heard=time.monotonic())


def _listen(supervision: Supervision, seconds: float) -> None:
    """Pass on what the children tell, waiting at most so long for anything."""
    with selectors.DefaultSelector() as selector:
        for child in supervision.children.values():
            assert child.process.stdout is not None
            selector.register(child.process.stdout, selectors.EVENT_READ, child)
        if not selector.get_map():
            time.sleep(seconds)
            return
        for key, _ in selector.select(seconds):
            _read(supervision, key.data)


def _read(supervision: Supervision, child: Child) -> None:
    assert child.process.stdout is not None
    with suppress(BlockingIOError):
        data = child.process.stdout.read()
        if not data:
            time.sleep(0.01)  # its end of the pipe is closed: it is about to be buried
            return
        *lines, child.buffer = (child.buffer + data).split(b"\n")
        for line in lines:
            with suppress(ValueError, TypeError):  # a library that prints: not ours
                _hear(supervision, child, Event(**json.loads(line)))


def _hear(supervision: Supervision, child: Child, event: Event) -> None:
    child.heard = time.monotonic()
    if event.what == "ready":
        child.worker_id = event.data["worker"]
        return
    if event.what == "step":
        child.step_ms.append(event.data["ms"])
    if event.what in ("claimed", "loading"):
        child.jobs.add(event.job_id)
    if event.what in ("loading", "turn"):
        child.loading = event.what == "loading"
    if event.what in ("done", "dead", "failed", "cancelled", "released", "stale", "paused"):
        child.jobs.discard(event.job_id)
        supervision.failures[child.device] = 0
    supervision.listener(event)


def _bury_dead(supervision: Supervision) -> None:
    """Take note of children that have ended, put back what they held, and plan the next one."""
    for device, child in list(supervision.children.items()):
        code = child.process.poll()
        if code is None:
            continue
        _read(supervision, child)  # its last words
        del supervision.children[device]
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe is not None:
                pipe.close()
        alone = child.asked is None and code not in (0, BROKEN_DEVICE, NO_DATABASE, TAKEN)
        if child.worker_id is not None and (child.hung or alone):
            supervision.blame[child.worker_id] = "timeout" if child.hung else "killed_worker"
        supervision.bury = True
        if code == 0 and not child.hung:
            supervision.finished.add(device)
            continue
        supervision.failures[device] = failures = supervision.failures.get(device, 0) + 1
        supervision.restart_at[device] = time.monotonic() + min(2.0 ** (failures - 1) - 1, RESTART_CAP_SECONDS)
        if code == BROKEN_DEVICE:
            _trip(supervision, device)


def _put_back(supervision: Supervision) -> None:
    """Requeue what dead children held; a database that is busy or full now is asked again in the next round."""
    if not supervision.bury:
        return
    with suppress(sqlite3.OperationalError):
        for event in claims.rescue(supervision.conn, blame=supervision.blame):
            supervision.listener(event)
        supervision.blame.clear()
        supervision.bury = False


def _trip(supervision: Supervision, device: str) -> None:
    """Count a GPU failure; too many of them pause the queue."""
    now = time.monotonic()
    supervision.broken.append(now)
    while now - supervision.broken[0] > BREAKER_SECONDS:
        supervision.broken.popleft()
    if len(supervision.broken) >= BREAKER_COUNT:
        reason = f"{device} failed {len(supervision.broken)} times in {BREAKER_SECONDS / 60:.0f} minutes"
        with suppress(sqlite3.OperationalError):  # busy: the next failure tries again
            control.pause(supervision.conn, reason)
            supervision.listener(Event("paused", data={"message": reason}))
            supervision.broken.clear()


def _end_hung(supervision: Supervision) -> None:
    for child in supervision.children.values():
        silent = time.monotonic() - child.heard
        if child.asked is not None:
            if time.monotonic() - child.asked > supervision.plan.grace_seconds:
                child.process.kill()
        elif child.jobs and silent > _patience(supervision.plan, child):
            supervision.listener(Event("hung", data={"device": child.device, "seconds": silent}))
            child.hung, child.asked = True, time.monotonic()
            child.process.terminate()


def _patience(plan: Plan, child: Child) -> float:
    if child.loading:
        return max(LOAD_SECONDS, plan.step_seconds) if plan.step_seconds >= STEP_SECONDS else plan.step_seconds
    return max(STEP_FACTOR * median(child.step_ms) / 1000 if child.step_ms else 0.0, plan.step_seconds)


def _renew(supervision: Supervision) -> None:
    """Leases of living children only; a database that is busy now is asked again in 5 s, leases last 30."""
    alive = [c.worker_id for c in supervision.children.values() if c.worker_id and c.process.poll() is None]
    with suppress(sqlite3.OperationalError):
        if alive:
            claims.renew(supervision.conn, alive)
        for event in claims.rescue(supervision.conn, blame=supervision.blame):
            supervision.listener(event)
        _checkpoint(supervision)


def _ask_all(supervision: Supervision, *, now: bool) -> None:
    for child in supervision.children.values():
        if now:
            child.process.kill()
        elif child.asked is None:
            child.asked = float("inf")  # a step may take long: no grace time, a second signal ends it at once
            child.process.terminate()


def _end_all(supervision: Supervision) -> None:
    """Whatever happened here, no child stays behind and nothing stays `running`."""
    for child in supervision.children.values():
        child.process.kill()
        child.process.wait()
    with suppress(sqlite3.Error):
        claims.rescue(supervision.conn, blame=supervision.blame)
        _checkpoint(supervision)


@contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Hold a GPU for this supervisor. Raises UnavailableError where another of this user has it."""
    with _lock(device.replace(":", "-")) as held:
        if not held:
            raise UnavailableError(
                f"{device} is at work for another kontext-tui of yours; its jobs go on there, or name another --gpus"
            )
        yield


@contextmanager
def _lock(name: str) -> Iterator[bool]:
    """Whether this process has a lock of that name among a user's: a file that the kernel frees with its process."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = folder / f"kontext-tui-{os.getuid()}-{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _checkpoint(supervision: Supervision) -> None:
    """Copy the log into the file, unless another supervisor of this queue does so at the moment."""
    path = str(supervision.plan.database.resolve())
    with suppress(OSError), _lock(f"checkpoint-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}") as held:
        if held:
            checkpoint(supervision.conn)
