"""Which steps of an edit are full ones, where the context's keys and values are kept between steps.

Light: no torch. `core.edit.context` does the keeping.
"""

from __future__ import annotations


def full_steps(steps: int, refresh: int) -> tuple[bool, ...]:
    """Of each step whether it runs the context tokens too: every `refresh`-th does, from the first."""
    return tuple(step % refresh == 0 for step in range(steps))


def can_resume(step: int, steps: int, refresh: int) -> bool:
    """Whether the latents after `step` steps are all that the rest needs: the next step must be a full one."""
    return 0 < step < steps and full_steps(steps, refresh)[step]
