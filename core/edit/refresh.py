"""Which steps of an edit are full ones, where the context's keys and values are kept between steps.

Light: no torch. `core.edit.context` does the keeping.
"""

from __future__ import annotations

DENSITY = 0.75
"""The i-th of n full steps is at (i / (n - 1)) ** DENSITY of the way from the first step to the last: further apart
early, where sigmas lie close together and the context moves little from step to step. Measured in docs/speed.md."""


def full_steps(steps: int, refresh: int) -> tuple[bool, ...]:
    """Of each step whether it runs the context tokens too: one in `refresh` does, first and last too."""
    count = -(-steps // refresh)
    full, last = set(), -1
    for index in range(count):
        wanted = round((steps - 1) * (index / max(1, count - 1)) ** DENSITY)
        last = min(max(wanted, last + 1), steps - (count - index))  # each at a step of its own
        full.add(last)
    return tuple(step in full for step in range(steps))


def can_resume(step: int, steps: int, refresh: int) -> bool:
    """Whether the latents after `step` steps are all that the rest needs: the next step must be a full one."""
    return 0 < step < steps and full_steps(steps, refresh)[step]
