"""What a batch will take, before it is queued: time from turns measured here, memory from those or from the weights.

Nothing is guessed: what was never measured is None.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from core.edit.models import ModelSpec, find_spec, locate
from core.edit.outputs import is_result
from core.edit.runtimes import Choice, choose, require_every_step_full
from core.errors import UnavailableError
from core.inputs import OnFolder, find_inputs
from core.script import Script

JOBS = 2_000
"""Done jobs that are looked back upon, the newest."""
TURNS = 200
"""Turns of them that the figures are taken from."""


@dataclass(frozen=True)
class Prospect:
    """What a script would queue, and what would run it."""

    script: Script
    spec: ModelSpec
    pictures: int
    steps: int
    """Denoising steps of all turns of all pictures."""
    choice: Choice | None
    """None where the model is not on this machine yet; then `missing` says so."""
    missing: str = ""
    weight_bytes: int | None = None
    """Of the files that hold the weights; what runs them needs more."""

    @property
    def turns(self) -> int:
        return self.pictures * len(self.script.turns)


@dataclass(frozen=True)
class Measured:
    """Turns of one model, precision and runtime that were made here."""

    turns: int
    step_seconds: float
    """Median of a turn's seconds by its steps, with all that a worker waits for around them; of turns with the same
    `context_refresh`, and where a script has several, as it mixes them."""
    peak_bytes: int | None
    """The most memory that one took: the GPU's, or the process's where there is none."""


def look(script: Script, on_folder: OnFolder = lambda folder: None) -> Prospect:
    """Find a script's pictures, its model and what runs it. Opens no picture, except to know our own results.

    Raises what adding the script would: ScriptError, UnavailableError.
    """
    spec = find_spec(script.model, script.folder)
    found = find_inputs(script, is_result, on_folder)
    keep_context = script.most_refresh > 1
    require_every_step_full(script.runtime, keep_context)
    each = sum(turn.steps or script.steps or spec.steps for turn in script.turns)
    size = (len(found), len(found) * each)
    try:
        folder = locate(spec)
    except UnavailableError as error:
        if spec.folder is not None:
            raise
        return Prospect(script, spec, *size, None, str(error))  # it may be added; `work` needs it
    choice = choose(script.runtime, script.precision, spec.name, folder, keep_context=keep_context)
    return Prospect(script, spec, *size, choice, weight_bytes=_weights(folder, choice))


def measured(conn: sqlite3.Connection, prospect: Prospect) -> Measured | None:
    """What such turns took lately; None where there was none."""
    script, choice = prospect.script, prospect.choice
    precision, runtime = (choice.precision, choice.runtime) if choice else (script.precision, script.runtime)
    unquantized = precision in ("auto", "bf16")  # which a CPU computes in fp32
    rows = conn.execute(
        "SELECT t.steps, t.seconds, t.peak_bytes, t.context_refresh"
        " FROM (SELECT id, model FROM jobs WHERE state = 'done' ORDER BY id DESC LIMIT ?) j"
        " JOIN turns t ON t.job_id = j.id"
        " WHERE j.model = ? AND t.state = 'done' AND t.seconds > 0 AND t.steps > 0"
        " AND t.precision IN (?, ?) AND t.runtime = ? ORDER BY t.job_id DESC, t.turn DESC LIMIT ?",
        (
            *(JOBS, prospect.spec.name, "bf16" if unquantized else precision, "fp32" if unquantized else precision),
            *("torch" if runtime == "auto" else runtime, TURNS),
        ),
    ).fetchall()
    steps: Counter[int] = Counter()
    for turn in script.turns:
        steps[script.refresh_of(turn)] += turn.steps or script.steps or prospect.spec.steps
    rows = [row for row in rows if row["context_refresh"] in steps]
    paces = {
        refresh: [row["seconds"] / row["steps"] for row in rows if row["context_refresh"] == refresh]
        for refresh in steps
    }
    if not all(paces.values()):
        return None
    seconds = sum(median(paces[refresh]) * count for refresh, count in steps.items()) / steps.total()
    peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"]]
    return Measured(len(rows), seconds, max(peaks, default=None))


def _weights(folder: Path, choice: Choice) -> int:
    parts = ["text_encoder", "text_encoder_2", "vae"]
    total = 0
    if choice.artifact is None:
        parts.append("transformer")
    else:
        total = choice.artifact.size
    for part in parts:
        total += sum(file.stat().st_size for file in (folder / part).glob("*.safetensors"))
    return total
