"""Jobs as JSON objects and as tables: what commands print on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.jobs.records import Job, Turn
from kontext_tui.text import safe_text


def job_object(job: Job, turns: Sequence[Turn], *, reused: frozenset[int] | None = None) -> dict[str, Any]:
    """One job for `--json`. `reused`: turns that were not computed in this run; None where there is no run."""
    error = {"kind": job.error_kind, "message": job.error} if job.error_kind else None
    return {
        "job": job.id,
        "input": job.input_path,
        "state": job.state,
        "output": job.output_path if job.state == "done" else None,
        "error": error,
        "peak_bytes": peak_bytes(turns),
        "turns": [_turn_object(turn, reused) for turn in turns],
    }


def peak_bytes(turns: Sequence[Turn]) -> int | None:
    """The most memory that a job took, of the GPU where it ran on one; None before a turn of it is done."""
    return max((turn.peak_bytes for turn in turns if turn.peak_bytes), default=None)


def _turn_object(turn: Turn, reused: frozenset[int] | None) -> dict[str, Any]:
    return {
        "turn": turn.turn,
        "prompt": turn.prompt,
        "seed": turn.seed,
        "steps": turn.steps,
        "guidance": turn.guidance,
        "context_refresh": turn.context_refresh,
        "from": turn.from_turn,
        "state": turn.state,
        "step_ms": list(turn.step_ms),
        "seconds": turn.seconds,
        "output": turn.output_path if turn.state == "done" else None,
        "precision": turn.precision,
        "runtime": turn.runtime,
        "reused": turn.turn in reused if reused is not None else False,
        "review": turn.review,
        "redo_of": turn.redo_of,
    }


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout. ASCII only, so that any name survives any terminal and pipe."""
    print(json.dumps(value), flush=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Plain columns on stdout; `right` names the columns set flush right. Cells may be foreign text."""
    from rich.cells import cell_len

    lines = [[safe_text(cell) for cell in row] for row in ([headings] if headings else []) + list(rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = []
        for index, cell in enumerate(line):
            space = " " * (widths[index] - cell_len(cell))
            padded.append(space + cell if index in right else cell + space)
        print("  ".join(padded).rstrip())


def clock(ms: int | None) -> str:
    """A time of day for today's events, the date for older ones."""
    if ms is None:
        return ""
    then = datetime.fromtimestamp(ms / 1000)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
