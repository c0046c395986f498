"""Runtimes: what predicts the velocity of one step. Everything else of an edit is shared.

`choose` says which runtime and precision serve a request on this machine and from which files, before anything heavy
is imported; `core.edit.runtimes.opening` then makes it ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.errors import UnavailableError

if TYPE_CHECKING:
    from core.edit.artifacts import Artifact
    from core.edit.sampling import Conditioning, Predict

RUNTIMES = ("torch", "onnx", "tensorrt")
PRECISIONS = ("bf16", "fp8", "fp4", "fp4-svd")
KEEPS_CONTEXT = ("torch",)
"""Those that can keep the context between steps: a graph has one number of tokens and returns no keys."""
KIND = {"torch": "checkpoint", "onnx": "onnx", "tensorrt": "engine"}
"""What each runtime takes from the artifact store; `torch` in bf16 takes nothing."""


class Runtime(Protocol):
    """Predicts velocities for one model in one precision."""

    name: str
    precision: str

    @property
    def device_bytes(self) -> int:
        """GPU memory held beside torch's."""
        ...

    def begin(self, conditioning: Conditioning, *, keep_context: bool = False) -> Predict:
        """Prepare one edit; the returned function predicts each of its steps, until another edit begins.

        keep_context: steps that are not full will come (`core.edit.context`); only runtimes that `choose` gives for
        such an edit can do that.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """What will run, from which artifact, and why, in a line for the person who asked."""

    runtime: str
    precision: str
    reason: str
    artifact: Artifact | None = None


def choose(runtime: str, precision: str, model: str, folder: Path, *, keep_context: bool = False) -> Choice:
    """Pick the runtime and precision for a request where either may be `auto`.

    model: its name, for messages; folder: where it lies; keep_context: for a `context_refresh` above 1. Raises
    UnavailableError where nothing here can do what was asked, saying which command makes it possible.
    """
    require_every_step_full(runtime, keep_context)
    if runtime in ("auto", "torch") and precision in ("auto", "bf16"):
        return Choice("torch", "bf16", "the unquantized weights")
    from core.edit.artifacts import find
    from core.edit.store import model_hash

    model_key = model_hash(folder / "transformer")
    wanted = ("bf16",) if precision == "auto" else (precision,)
    # An engine is the fastest where there is one for this GPU; the checkpoint runs anywhere, emulated where it must.
    able = KEEPS_CONTEXT if keep_context else ("tensorrt", "torch", "onnx")
    for name in able if runtime == "auto" else (runtime,):
        here = _this_gpu() if name == "tensorrt" else {}
        if name == "tensorrt" and runtime == "auto" and not here:
            continue
        for choice in wanted:
            found = find(KIND[name], model=model_key, precision=choice, **here)
            if found:
                return Choice(name, choice, f"the {KIND[name]} made here", found[0])
    raise UnavailableError(_missing(runtime, wanted[0], model))


def require_every_step_full(runtime: str, keep_context: bool) -> None:
    """Raise UnavailableError where a named runtime is asked to keep the context and cannot."""
    if keep_context and runtime not in ("auto", *KEEPS_CONTEXT):
        raise UnavailableError(
            f"the {runtime} runtime cannot keep the context between steps: take the torch runtime, or"
            " context_refresh 1"
        )


def _missing(runtime: str, precision: str, model: str) -> str:
    """What to do so that a request can be served."""
    commands: list[str] = []
    if precision != "bf16":
        commands.append(f"kontext-tui quantize --model {model} --precision {precision}")
    if runtime in ("onnx", "tensorrt"):
        commands.append(f"kontext-tui export --model {model} --precision {precision}")
    if runtime == "tensorrt":
        commands.append(f"kontext-tui engine build --model {model} --precision {precision}")
    what = {"onnx": "ONNX graph", "tensorrt": "TensorRT engine"}.get(runtime, "checkpoint")
    return f"there is no {precision} {what} of {model} here; `{' && '.join(commands)}` makes it"


def _this_gpu() -> dict[str, str | int]:
    """What an engine must have been built for to serve here; empty without a GPU."""
    from core.edit.runtimes.trt_api import current_gpu

    gpu = current_gpu()
    return {"sm": gpu.sm} if gpu else {}
