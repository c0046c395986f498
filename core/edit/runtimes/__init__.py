"""Runtimes: what predicts the velocity of one step. Everything else of an edit is shared.

`choose` says which runtime and precision serve a request on this machine and from which files, before anything heavy
is imported; `core.edit.runtimes.opening` then makes it ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.edit.native import FIRST_WITH_FP8
from core.edit.placement import EVERYTHING, Placement
from core.errors import UnavailableError

if TYPE_CHECKING:
    from core.edit.artifacts import Artifact
    from core.edit.models import ModelSpec
    from core.edit.placement import Memory, Transformer
    from core.edit.runtimes.trt_api import Gpu
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
    caveat: str
    """Why it is slower here than it could be, for the person who asked; mostly empty."""

    @property
    def device_bytes(self) -> int:
        """GPU memory held beside torch's."""
        ...

    @property
    def recorded_bytes(self) -> int:
        """Of torch's memory what recorded steps keep to themselves: torch counts it as free."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Of a transformer's weights in torch's memory; 0 for a runtime that has its own."""
        ...

    @property
    def kept_bytes(self) -> int:
        """What `keep_context` holds of the edit at work, or of the last one."""
        ...

    def release(self) -> None:
        """Give back what is held beside the weights; the next edit takes it anew."""
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
    reason: str = field(compare=False)
    artifact: Artifact | None = None
    placement: Placement = field(default=EVERYTHING, compare=False)


@dataclass(frozen=True)
class Room:
    """The GPU memory that a choice must fit, and whose it is. floor: give up at least what this placement does."""

    memory: Memory
    spec: ModelSpec
    floor: Placement = EVERYTHING


def choose(
    runtime: str, precision: str, model: str, folder: Path, *, keep_context: bool = False, room: Room | None = None
) -> Choice:
    """Pick the runtime and precision for a request where either may be `auto`.

    model: its name, for messages; folder: where it lies; keep_context: for a `context_refresh` above 1; room: of the
    GPU it must fit, None on a CPU. Raises UnavailableError where nothing here can do what was asked, saying which
    command makes it possible, or which bytes are missing.
    """
    require_every_step_full(runtime, keep_context)
    choices = _choices(runtime, precision, folder, keep_context=keep_context, spare=room is not None)
    if room is not None and runtime != "onnx":  # which computes on the CPU
        found = _first_that_fits(choices, folder, room, model, precision, keep_context=keep_context)
    else:
        found = next(choices, None)
    if found is None:
        raise UnavailableError(_missing(runtime, "bf16" if precision == "auto" else precision, model))
    return found


def _choices(runtime: str, precision: str, folder: Path, *, keep_context: bool, spare: bool) -> Iterator[Choice]:
    """All that can serve a request, the best first. spare: on a GPU `auto` ends with what only saves memory."""
    unquantized = Choice("torch", "bf16", "the unquantized weights")
    torch_may = runtime in ("auto", "torch")
    if torch_may and precision == "bf16":
        yield unquantized
        return
    from core.edit.runtimes.trt_api import current_gpu

    gpu = current_gpu() if runtime == "tensorrt" or "auto" in (runtime, precision) else None
    if precision == "auto" and torch_may and gpu is None:
        yield unquantized
        return
    able = KEEPS_CONTEXT if keep_context else RUNTIMES
    from core.edit.store import model_hash

    model_key = model_hash(folder / "transformer")
    by_name = "auto" not in (runtime, precision)
    best = ", the fastest here" if precision == "auto" and gpu else ""
    for name, each in _candidates(runtime, precision, gpu):
        if name in able and (found := _serving(name, each, model_key, gpu, refused_too=by_name)):
            yield Choice(name, each, f"the {KIND[name]} made here{best}", found)
            best = ""
    if precision == "auto" and torch_may:
        yield unquantized
        for each in SMALLEST if spare else ():
            if found := _serving("torch", each, model_key, gpu, refused_too=False):
                yield Choice("torch", each, f"the {KIND['torch']} made here", found)


def _first_that_fits(
    choices: Iterator[Choice], folder: Path, room: Room, model: str, precision: str, *, keep_context: bool
) -> Choice | None:
    """The first choice that the GPU holds, with how; None where there is no choice. Raises UnavailableError where
    none fits."""
    from core.edit import footprint
    from core.edit.placement import gb, least, place

    parts = footprint.parts_of(folder, room.spec)
    passed: list[tuple[int, str]] = []
    for choice in choices:
        if choice.runtime == "onnx":  # on the CPU, at minutes a step: not for what only lacks room
            if passed:
                break
            return choice
        needs = _bytes_of(choice, folder, room.spec, keep_context=keep_context)
        found = place(needs, parts, room.memory, floor=room.floor)
        what = f"{gb(needs.weights)} of {choice.precision.upper()} weights"
        if found is not None:
            why = choice.reason
            if passed:
                why = f"{passed[0][1]} to work in do not fit {room.memory}: taking"
                why += f" {choice.precision} ({gb(needs.weights)})"
            return replace(choice, placement=found, reason="; ".join(filter(None, [why, str(found)])))
        smallest = least(needs, parts)
        passed.append((smallest, f"{what} with {gb(smallest - needs.weights)}"))
    if not passed:
        return None
    size, what = min(passed)
    ways = ["raise --max-vram" if room.memory.is_limited else "close what else uses the GPU"]
    if precision != "auto":
        ways.insert(0, "take `--precision auto`")
    elif not any("FP4" in each for _, each in passed):
        ways.insert(0, f"make a smaller one (`kontext-tui quantize --model {model} --precision fp4`)")
    raise UnavailableError(
        f"{model} in {precision} needs {gb(size)} of GPU memory, {what} to work in, and there are {room.memory}:"
        f" {', or '.join(ways)}"
    )


def _bytes_of(choice: Choice, folder: Path, spec: ModelSpec, *, keep_context: bool) -> Transformer:
    from core.edit import footprint
    from core.edit.runtimes.trt_api import current_gpu

    if choice.artifact is None:
        return footprint.unquantized(folder, spec, keep_context=keep_context)
    native = choice.runtime != "torch" or _has_fp8(current_gpu())
    size = choice.artifact.size
    return footprint.quantized(folder, spec, size, keep_context=keep_context, native=native)


FASTEST = (
    ("tensorrt", "fp4-svd"), ("tensorrt", "fp4"), ("tensorrt", "fp8"), ("torch", "fp8"), ("tensorrt", "bf16"),
)  # fmt: skip
"""What `auto` tries on a GPU before the unquantized weights. fp4-svd stands before fp4: as fast within some percent,
and nearer to the model."""
SMALLEST = ("fp8", "fp4-svd", "fp4")
"""Checkpoints that `auto` tries by torch after the unquantized weights: they may save time no more, but memory."""


def _has_fp8(gpu: Gpu | None) -> bool:
    return gpu is not None and int(gpu.sm.removeprefix("sm")) >= FIRST_WITH_FP8


def _candidates(runtime: str, precision: str, gpu: Gpu | None) -> list[tuple[str, str]]:
    """Runtimes and precisions that a request allows, the best first."""
    if precision != "auto":  # an engine is the fastest; the checkpoint runs anywhere, emulated where it must
        names = (("tensorrt", "torch", "onnx") if gpu else ("torch", "onnx")) if runtime == "auto" else (runtime,)
        return [(name, precision) for name in names]
    if runtime == "onnx":
        return [("onnx", each) for each in PRECISIONS]
    return [
        (name, each)
        for name, each in FASTEST
        # emulated FP8 would be slower, not faster
        if runtime in ("auto", name) and (name != "torch" or _has_fp8(gpu))
    ]


def _serving(name: str, precision: str, model_key: str, gpu: Gpu | None, *, refused_too: bool) -> Artifact | None:
    """The newest artifact that may serve; of engines, one for this GPU.

    refused_too: an engine that its proof has refused as well, for who named it: opening it says why not.
    """
    from core.edit.artifacts import find

    if name != "tensorrt":
        return next(iter(find(KIND[name], model=model_key, precision=precision)), None)
    from core.edit.runtimes.verdicts import recall

    here = {"sm": gpu.sm} if gpu else {}
    found = find(KIND[name], model=model_key, precision=precision, **here)
    passed = [each for each in found if gpu is None or (verdict := recall(each, gpu)) is None or verdict.passed]
    return next(iter(passed or (found if refused_too else [])), None)


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
