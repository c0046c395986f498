"""What happens to jobs, told as it happens: to whoever shows progress, and to the events table for the story."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened. `what` is a word below; `data` is JSON-able.

    added, claimed, loading, loaded {seconds}, note {text}, turn {prompt, steps, seed; in the story: after_step},
    step {step, steps, ms}, turn_done {seconds, output, reused, pause_ms}, done, dead / failed {kind, message},
    cancelled, released {reason}, lost (its worker died), retried, waiting {jobs} (for jobs that another process is
    working on), interrupted {left: jobs by state}.

    A worker saves one turn while it computes the next: turn_done and done may come among the steps of what follows.
    `seconds` are the worker's own, without that; `pause_ms` is from its last step before the turn to the first.

    In review: accepted, rejected, unreviewed {reason}, redo {of, prompt, seed}, branch {from, prompt, seed},
    withdrawn (a redo or branch that had not begun), exported {to}. `turn` is the one that is meant or added.
    """

    what: str
    job_id: int | None = None
    turn: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener for those who need none."""
