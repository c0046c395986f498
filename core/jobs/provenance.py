"""Where a result came from, as the metadata every output file carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import __version__
from core.jobs.records import Job, Turn


def describe(
    job: Job, turns: list[Turn], turn: Turn, *, input_sha256: str, precision: str, runtime: str
) -> dict[str, Any]:
    """The metadata of one turn's result: the model, what it ran in, and the chain of turns from the input to here.

    Holds no time and no machine: the same edit gives the same bytes again.
    """
    chain = lineage(turns, turn)
    return {
        "software": f"kontext-tui {__version__}",
        "ai_generated": True,
        "model": Path(job.model).name,  # of a folder its name: the way to it is nobody's business
        "precision": precision,
        "runtime": runtime,
        "input": {"name": Path(job.input_path).name, "sha256": input_sha256},
        "prompt": turn.prompt,
        "seed": turn.seed,
        "steps": turn.steps,
        "guidance": turn.guidance,
        **unless_exact(turn),
        "turn": turn.turn,
        "turns": [
            {
                "turn": t.turn,
                "from": t.from_turn,
                "prompt": t.prompt,
                "seed": t.seed,
                "steps": t.steps,
                "guidance": t.guidance,
                **unless_exact(t),
            }
            for t in chain
        ],
    }


def unless_exact(turn: Turn) -> dict[str, int]:
    """`context_refresh`, for a record of a turn that has one."""
    return {"context_refresh": turn.context_refresh} if turn.context_refresh > 1 else {}


def lineage(turns: list[Turn], turn: Turn) -> list[Turn]:
    """The turns that lead from the input to `turn`, it included."""
    by_number = {t.turn: t for t in turns}
    chain = [turn]
    while chain[0].from_turn:
        chain.insert(0, by_number[chain[0].from_turn])
    return chain
