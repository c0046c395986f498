"""Options that several commands share, and the words to read them by."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

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
    str | None, typer.Option(help="kontext-tiny, kontext-dev or a diffusers folder.", show_default=False)
]
Precision = Annotated[str | None, typer.Option(help="auto, bf16, fp8, fp4 or fp4-svd.", show_default=False)]
RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help="auto, torch, onnx or tensorrt.", show_default=False)
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Denoising steps of every turn that names none.", show_default=False),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="The seed that jobs derive theirs from.", show_default=False)
]
Again = Annotated[bool, typer.Option("--again", help="Edit pictures again that this script has edited already.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JobIds = Annotated[list[int] | None, typer.Argument(metavar="[JOB]...", help="Job numbers.", show_default=False)]


@contextmanager
def open_queue(db: Path | None, *, create: bool = True) -> Iterator[sqlite3.Connection]:
    """The queue that `--db`, the environment or the working folder names; closed again at the end."""
    from core import paths
    from core.jobs.database import connect

    with closing(connect(paths.database(db), create=create)) as conn:
        yield conn
