"""A worker as a process of its own: `python -m core.jobs.child`, started and watched by a supervisor.

It edits on one device, tells what happens as JSON lines on stdout, and ends between two steps on SIGTERM, or when its
supervisor is gone (its stdin ends). One child serves one GPU: a broken CUDA context dies with it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sqlite3
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.jobs import checkpoints, claims, control, records, worker
from core.jobs.database import connect
from core.jobs.events import Event

BROKEN_DEVICE = 75
"""Exit code of a child whose GPU needs a new process (EX_TEMPFAIL of sysexits.h)."""
NO_DATABASE = 74
"""Exit code of a child that could not write to the queue: its disk is full, or worse (EX_IOERR of sysexits.h)."""

TAKEN = 73
"""Exit code of a child whose job was taken from it: it had been given up for dead."""


def main() -> int:
    """Work until told to stop; returns the exit code."""
    options = _options()
    stop = threading.Event()
    # Ctrl-C reaches every process of the terminal; what is to be done about it the supervisor says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    threading.Thread(target=_watch_supervisor, args=(stop,), daemon=True).start()
    conn = connect(options.db, create=False)
    conn.on_busy = lambda: _wait_on(stop)
    studio = _studio(options.studio, options.device)
    studio.max_vram = options.max_vram
    studio.on_load = lambda loading: _tell(Event("loaded", data=asdict(loading)))
    seconds = float(os.environ.get("KONTEXT_TUI_CHECKPOINT_SECONDS", checkpoints.SECONDS))
    told = 0

    def wait() -> bool:
        nonlocal told
        if options.batch is None:
            return not options.drain
        left = records.unfinished(conn, options.batch)
        if left and left != told:
            _tell(Event("waiting", data={"jobs": left, "paused": control.paused(conn)}))
        told = left
        return left > 0

    try:
        this = worker.Worker(conn, studio, _tell, stop.is_set, seconds)
        _tell(Event("ready", data={"worker": this.id}))
        worker.drain(this, batch_id=options.batch, wait=wait)
    except worker.Stopped:
        return 0
    except worker.BrokenDevice:
        return BROKEN_DEVICE
    except claims.StaleClaim:
        return TAKEN
    except sqlite3.Error as error:
        _tell(Event("database", data={"message": str(error)}))
        return NO_DATABASE
    return 0


def _wait_on(stop: threading.Event) -> None:
    """The queue is locked by another program: its job is kept, and the supervisor hears that this is no hang."""
    _tell(Event("busy"))
    if stop.is_set():
        raise worker.Stopped("told to stop")


def _tell(event: Event) -> None:
    try:
        sys.stdout.write(json.dumps(vars(event)) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - nobody listens any more; the stop is on its way


def _watch_supervisor(stop: threading.Event) -> None:
    """The supervisor holds the other end of stdin for as long as it lives."""
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    stop.set()


def _studio(spec: str, device: str) -> Any:
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)(device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="core.jobs.child")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-vram", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--studio", default="core.edit.studio:LocalStudio")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
