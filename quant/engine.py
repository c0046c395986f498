"""ONNX -> TensorRT engine, by one code path for both flavours: TensorRT for RTX and full TensorRT.

The network is strongly typed: layers run in the precision the graph says, and none falls back silently. One
optimization profile serves all of a model's aspect ratios. TensorRT-RTX builds on a machine with no GPU at all.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.edit import artifacts
from core.edit.models import ModelSpec
from core.edit.runtimes import trt_api
from core.edit.runtimes.trt_api import FLAVOURS, GPUS, INPUTS
from core.errors import ExitCode, KontextError, UnavailableError, UsageError
from quant.onnx_files import NUMBER_FORMATS, Graph, read_graph

FLAGS = "strongly-typed,detailed"
"""How the network is built, part of an engine's key. `detailed`: the engine can list its layers' precisions."""
PIXELS_PER_TOKEN = 16  # a side: the VAE's 8, and 2x2 latents packed into one token
ENGINE_FILE = "model.engine"
_CHUNK = 1 << 26  # bytes written at a time


class Stopped(KontextError):
    """A build that was asked to stop."""

    kind = "stopped"
    exit_code = ExitCode.INTERRUPTED


@dataclass(frozen=True)
class Profile:
    """Numbers of tokens an engine serves: image and context together, and the text's."""

    min: int
    opt: int
    max: int
    text: int = 512

    def __str__(self) -> str:
        return f"{self.min}-{self.opt}-{self.max}+{self.text}"


@dataclass(frozen=True)
class Target:
    """What an engine is built by and for."""

    flavour: str
    version: str
    sm: str


@dataclass(frozen=True)
class Progress:
    """How far a build is: what the builder works at, and a share of the whole that never falls (0 to 1)."""

    phase: str
    fraction: float


def profile_for(spec: ModelSpec) -> Profile:
    """One profile for all of a model's sizes, tuned for the squarest. kontext-dev: 8084, 8192, 8300 tokens."""
    counts = {size: 2 * (size[0] // PIXELS_PER_TOKEN) * (size[1] // PIXELS_PER_TOKEN) for size in spec.sizes}
    return Profile(min(counts.values()), counts[trt_api.squarest(spec.sizes)], max(counts.values()), spec.text_tokens)


def choose_target(gpu: str = "auto", flavour: str = "auto") -> Target:
    """The flavour and GPU to build for. `auto` flavour: TensorRT-RTX where it serves the GPU, else full TensorRT.

    Raises UsageError for a GPU that must be named or is unknown, UnavailableError where no flavour here serves it.
    """
    if flavour != "auto" and flavour not in FLAVOURS:
        raise UsageError(f"there is no TensorRT flavour {flavour!r}: name auto, {' or '.join(FLAVOURS)}")
    here = trt_api.current_gpu()
    if gpu == "auto" and here is None:
        raise UsageError("no NVIDIA GPU is in reach: name the one to build for, such as `--gpu sm120` (RTX 50)")
    sm = here.sm if gpu == "auto" and here is not None else gpu.lower()
    if sm not in GPUS:
        known = ", ".join(f"{name} ({title})" for name, title in GPUS.items())
        raise UsageError(f"{sm}: not a GPU we know; name one of {known}")
    reasons = []
    for name in FLAVOURS if flavour == "auto" else (flavour,):
        try:
            module = trt_api.load(name)
        except UnavailableError as error:
            reasons.append(str(error))
            continue
        reason = _cannot_serve(name, module, sm, here)
        if reason is None:
            return Target(name, str(module.__version__), sm)
        reasons.append(reason)
    raise UnavailableError("; ".join(reasons))


def _cannot_serve(flavour: str, module: Any, sm: str, here: trt_api.Gpu | None) -> str | None:
    title = f"{FLAVOURS[flavour].title} {module.__version__}"
    if not FLAVOURS[flavour].any_gpu:
        there = f"a {here.sm}" if here else "none"
        return None if here and here.sm == sm else f"{title} builds for the GPU it runs on, here {there}, not {sm}"
    known = trt_api.supported(module)
    return None if sm in known else f"{title} knows {', '.join(known)}, not {sm} ({GPUS[sm]})"


def check_hardware(sm: str, precision: str) -> None:
    """Raise UnavailableError where a GPU has no arithmetic for a precision, before anything is built."""
    for number_format in ("bf16", NUMBER_FORMATS[precision]):
        reason = trt_api.missing_format(sm, number_format)
        if reason is not None:
            raise UnavailableError(f"{precision} cannot be built: {reason}")


def key_parts(
    *, model: str, onnx: str, precision: str, target: Target, profile: Profile
) -> dict[str, artifacts.Part]:
    """What an engine is made of: its key in the store. model: `artifacts.model_hash`; onnx: `onnx_hash`."""
    return {
        "model": model,
        "onnx": onnx,
        "precision": precision,
        "sm": target.sm,
        "flavour": target.flavour,
        "version": target.version,
        "profile": str(profile),
        "flags": FLAGS,
    }


def build(
    onnx_path: Path,
    out_folder: Path,
    *,
    precision: str,
    profile: Profile,
    gpu: str = "auto",
    flavour: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Build `model.engine` in `out_folder` and return facts about it.

    `on_progress` is called from the builder's thread. An exception raised in the calling thread (Ctrl-C) and
    `should_stop` both stop the builder at its next step: at once, or when the kernels at work are compiled.
    Raises UsageError for another kind of graph, UnavailableError with TensorRT's own words where it refuses, Stopped.
    """
    target = choose_target(gpu, flavour)
    check_hardware(target.sm, precision)
    graph = read_graph(onnx_path)
    graph.check(onnx_path, precision)
    for number_format in sorted(graph.formats):
        check_hardware(target.sm, number_format)
    module = trt_api.load(target.flavour)
    log = trt_api.logger(module)
    stop = threading.Event()
    ended = threading.Event()
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["facts"] = _build(module, log, onnx_path, graph, out_folder, target, profile, stop, on_progress)
        except BaseException as error:
            outcome["error"] = error
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="engine builder", daemon=True)
    # The builder runs without the interpreter's lock, and signals reach this thread. Not `join` with a timeout: one
    # that is interrupted takes the thread for ended (python/cpython#90882), and leaving it behind crashes at exit.
    try:
        with _signals_held():  # one that comes while it starts would leave it running, unseen
            thread.start()
        while not ended.wait(0.05):
            if should_stop is not None and should_stop():
                stop.set()
    finally:
        stop.set()
        while thread.ident is not None and not ended.is_set():
            with suppress(BaseException):  # another Ctrl-C: the builder cannot stop sooner
                if on_progress is not None:
                    on_progress(Progress("stopping", 0.0))
                ended.wait()
        if thread.ident is not None:
            thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return dict(outcome["facts"])


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come meanwhile are delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _build(
    module: Any,
    log: Any,
    onnx_path: Path,
    graph: Graph,
    out_folder: Path,
    target: Target,
    profile: Profile,
    stop: threading.Event,
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    refused = f"{FLAVOURS[target.flavour].title} {target.version} cannot build {onnx_path.name} for {target.sm}"
    began = time.perf_counter()
    builder = module.Builder(log)
    strongly_typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = module.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reason = errors[0].desc() + f" (node {errors[0].node_name()})" if errors else "it cannot be parsed"
        raise UnavailableError(f"{refused}: {' '.join(reason.split())}")
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    if FLAVOURS[target.flavour].any_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, target.sm.upper()), 0)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(_set_profile(builder, network, profile, onnx_path))
    monitor = _make_monitor(module, stop, on_progress)
    config.progress_monitor = monitor
    timings = f"timings-{target.flavour}-{target.version}-{target.sm}"
    if FLAVOURS[target.flavour].timing_cache:
        config.set_timing_cache(config.create_timing_cache(artifacts.read_small(timings) or b""), False)
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if stop.is_set():
        raise Stopped("the engine's build was stopped; nothing of it is kept")
    if plan is None:
        raise UnavailableError(f"{refused}: {log.errors[0] if log.errors else 'it gives no reason'}")
    if FLAVOURS[target.flavour].timing_cache:
        artifacts.write_small(timings, bytes(config.get_timing_cache().serialize()))
    built = time.perf_counter()
    size = _write(plan, out_folder / ENGINE_FILE)
    monitor.finish()
    return {
        "engine": ENGINE_FILE,
        "onnx_path": str(onnx_path.absolute()),
        "onnx_bytes": sum(p.stat().st_size for p in graph.files(onnx_path)),
        "engine_bytes": size,
        "network_layers": layers,
        "parse_seconds": round(parsed - began, 3),
        "build_seconds": round(built - parsed, 3),
        "write_seconds": round(time.perf_counter() - built, 3),
        "warnings": log.warnings[:20],
    }


def _set_profile(builder: Any, network: Any, profile: Profile, onnx_path: Path) -> Any:
    """An optimization profile with the open axes of the graph's inputs filled in by what they count; batch is 1."""
    filled = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = []
        for tokens in (profile.min, profile.opt, profile.max):
            counts = {"batch": 1, "tokens": tokens, "text": profile.text}
            wanted = [counts.get(axis) for axis in INPUTS[tensor.name]]
            shape = tuple(w if have == -1 else have for have, w in zip(tuple(tensor.shape), wanted, strict=True))
            if any(w not in (None, s) for s, w in zip(shape, wanted, strict=True)) or None in shape:
                raise UsageError(
                    f"{onnx_path}: {tensor.name} is {tuple(tensor.shape)}, which does not serve {tokens} image and "
                    f"context tokens and {profile.text} of text; export it for this model again"
                )
            shapes.append(shape)
        if -1 in tuple(tensor.shape):
            filled.set_shape(tensor.name, *shapes)
    return filled


def _make_monitor(module: Any, stop: threading.Event, on_progress: Callable[[Progress], None] | None) -> Any:
    """An IProgressMonitor. It is called from several threads of the builder, and must never raise."""
    lock = threading.Lock()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, list[Any]] = {}  # name: [parent, steps, steps done]
            self.fraction = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                self.phases[phase_name] = [parent_phase, max(num_steps, 1), 0]
                self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                if phase_name in self.phases:
                    self.phases[phase_name][2] = min(step + 1, self.phases[phase_name][1])
                    self._tell(phase_name)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                self.phases.pop(phase_name, None)

        def _tell(self, phase: str) -> None:
            share, name, seen = 0.0, phase, set()
            while name in self.phases and name not in seen:  # from the inmost phase out
                seen.add(name)
                parent, steps, done = self.phases[name]
                share, name = min((done + share) / steps, 1.0), parent
            if name is None and share >= self.fraction:
                self.fraction = share
            self._send(phase)

        def finish(self) -> None:
            self.fraction = 1.0
            self._send("done")

        def _send(self, phase: str) -> None:
            if on_progress is not None:
                with suppress(Exception):
                    on_progress(Progress(phase, self.fraction))

    return Monitor()


def _write(plan: Any, path: Path) -> int:
    """Write an engine from the builder's own memory, without a second copy of it."""
    view = memoryview(plan).cast("B")
    with path.open("wb") as file:
        for start in range(0, len(view), _CHUNK):
            file.write(view[start : start + _CHUNK])
    return len(view)
