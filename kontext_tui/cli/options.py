"""Options that several commands share, and the words to read them by."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from core.errors import UsageError

Db = Annotated[
    Path | None,
    typer.Option("--db", metavar="FILE", help="The queue; else $KONTEXT_TUI_DB, else ./jobs.db.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only errors.")]
ScriptFile = Annotated[Path, typer.Argument(metavar="SCRIPT", help="The edit script (YAML).", show_default=False)]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="PATH",
        help="Instead of the script's `input`; may be repeated.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="PATH", help="Instead of the script's `output`.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="M", help="kontext-tiny, kontext-dev or a diffusers folder.", show_default=False),
]
Precision = Annotated[
    str | None, typer.Option(metavar="P", help="auto, bf16, fp8, fp4 or fp4-svd.", show_default=False)
]
RuntimeName = Annotated[
    str | None, typer.Option("--runtime", metavar="R", help="auto, torch, onnx or tensorrt.", show_default=False)
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Denoising steps of every turn that names none.", show_default=False),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="The seed that jobs derive theirs from.", show_default=False)
]
ContextRefresh = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Look at the picture anew at one step in K: faster, nearly exact.",
        show_default=False,
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Edit pictures again that this script has edited already.")]


Gpus = Annotated[str, typer.Option("--gpus", metavar="auto|all|cpu|0,1", help="Where to edit; a worker for each.")]
MaxVram = Annotated[
    str | None,
    typer.Option(
        "--max-vram",
        metavar="SIZE",
        help="GPU memory a worker may take: 12GB, 11.5GiB. Else `max_vram` of config.toml, else what is free.",
        show_default=False,
    ),
]
NoCompile = Annotated[
    bool, typer.Option("--no-compile", help="No compiled kernels, no recorded steps: plain torch, slower.")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
JobIds = Annotated[list[int] | None, typer.Argument(metavar="JOB", help="Job numbers.", show_default=False)]


def max_vram(given: str | None) -> int | None:
    """`--max-vram`, else what the configuration says, in bytes. Raises UsageError."""
    from kontext_tui import settings
    from kontext_tui.figures import read_size

    if given is None:
        return settings.max_vram()
    try:
        return read_size(given)
    except ValueError as error:
        raise UsageError(f"--max-vram {given!r}: {error}") from None


def leave_uncompiled(wanted: bool) -> None:
    """`--no-compile`, as workers and this process see it: `core.edit.native.can_compile` reads it."""
    if wanted:
        os.environ["KONTEXT_TUI_COMPILE"] = "0"


def end_cleanly() -> None:
    """Let SIGTERM and a closed terminal end a long command as Ctrl-C does: what is half made is removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.getsignal(signal.SIGINT))


def start_time(at: str | None, after: str | None) -> int | None:
    """`--at 22:00` (today, or tomorrow where that has passed) and `--after 1h30m` as ms since the epoch."""
    if at and after:
        raise UsageError("--at and --after exclude each other: give one time to start")
    if at:
        if not (match := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at)):
            raise UsageError(f"--at {at!r} is no time of day: write it as 22:00")
        now = datetime.now()
        then = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
        return int((then if then > now else then + timedelta(days=1)).timestamp() * 1000)
    if after:
        match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", after)
        if not match or not any(match.groups()):
            raise UsageError(f"--after {after!r} is no length of time: write it as 90m, 2h or 1h30m")
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        wait = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        return int((datetime.now() + wait).timestamp() * 1000)
    return None


@contextmanager
def open_queue(db: Path | None, *, create: bool = True) -> Iterator[sqlite3.Connection]:
    """The queue that `--db`, the environment or the working folder names; closed again at the end."""
    from core import paths
    from core.jobs.database import connect

    with closing(connect(paths.database(db), create=create)) as conn:
        yield conn
