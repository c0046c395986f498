"""What a batch will take, in lines for a person."""

from __future__ import annotations

from core.jobs.estimate import Measured, Prospect
from kontext_tui.figures import short_time, size
from kontext_tui.text import safe_text


def told(prospect: Prospect, found: Measured | None) -> list[str]:
    """How much there is to do, how long that takes one worker, and how much memory."""
    pictures, turns = prospect.pictures, len(prospect.script.turns)
    each = f"{turns} turn{'s' * (turns != 1)} each: {prospect.steps:,} steps"
    lines = [f"{pictures:,} picture{'s' * (pictures != 1)}, {each}"]
    choice = prospect.choice
    runs = f"{choice.precision} on {choice.runtime}" if choice else ""
    if found is not None:
        lines.append(
            f"about {short_time(prospect.steps * found.step_seconds)} for one worker "
            f"({found.step_seconds * 1000:,.0f} ms a step, from {found.turns} turns made here, {runs})"
        )
    else:
        lines.append("time unknown: no turn was made here " + (f"in {runs} yet" if runs else "with this model yet"))
    if found is not None and found.peak_bytes:
        lines.append(f"memory {size(found.peak_bytes)} at most, as measured")
    elif prospect.weight_bytes:
        lines.append(f"memory over {size(prospect.weight_bytes)}: the weights alone; never measured here")
    if prospect.missing:
        lines.append(safe_text(prospect.missing, 300))
    return lines
