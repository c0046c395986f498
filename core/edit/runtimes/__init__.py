"""Runtimes: what predicts the velocity of one step. Everything else of an edit is shared.

`choose` says which runtime and precision serve a request on this machine, before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.errors import UnavailableError

if TYPE_CHECKING:
    from core.edit.sampling import Conditioning, Predict

RUNTIMES = ("torch", "onnx", "tensorrt")
PRECISIONS = ("bf16", "fp8", "fp4", "fp4-svd")


class Runtime(Protocol):
    """Predicts velocities for one model in one precision."""

    name: str
    precision: str

    def begin(self, conditioning: Conditioning) -> Predict:
        """Prepare one edit; the returned function predicts each of its steps."""
        ...


@dataclass(frozen=True)
class Choice:
    """What will run, and why, in a line for the person who asked."""

    runtime: str
    precision: str
    reason: str


def choose(runtime: str, precision: str) -> Choice:
    """Pick the runtime and precision for a request where either may be `auto`.

    Raises UnavailableError where nothing here can do what was asked.
    """
    wanted = "torch" if runtime == "auto" else runtime
    if wanted != "torch":
        raise UnavailableError(f"runtime {wanted!r} is not in this version; use `runtime: torch` or `auto`")
    if precision not in ("auto", "bf16"):
        raise UnavailableError(
            f"precision {precision!r} is not in this version of the torch runtime; use `precision: bf16` or `auto`"
        )
    return Choice("torch", "bf16", "the unquantized weights; float32 arithmetic on a CPU")
