"""How fast a model edits here, and where time and memory go: the figures of NVIDIA's post on FLUX.1 Kontext in low
precision, taken of the very runtimes that jobs run on.

`measure` takes one runtime: milliseconds a step, a whole edit by module, kernels of a step, memory.
`quant.bench_batch` takes a night through the queue, `quant.bench_peers` other programs.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from core.edit import editor, native, sampling
from core.edit.geometry import from_working, to_working
from core.edit.loading import Model, load
from core.edit.models import ModelSpec
from core.edit.refresh import full_steps
from core.edit.runtimes import PRECISIONS, Choice, Runtime
from core.edit.runtimes.opening import open_runtime, open_transformer
from quant import random_weights
from quant.random_weights import Size

PROMPT = "Make it look like sunset"
WARM_UP = 2
"""Calls before timed ones, after the first, which may compile."""
REFRESHES = (2, 4)

PUBLISHED = (
    ("RTX 5090", {"bf16": 669, "fp8": 358, "fp4": 273}),
    ("RTX PRO 6000 Blackwell", {"bf16": 607, "fp8": 317, "fp4": 254}),
)
"""Milliseconds a step of FLUX.1 Kontext [dev] that NVIDIA published, TensorRT engines at a megapixel."""

GEMM, ATTENTION, ELEMENTWISE, OTHER = "GEMM", "attention", "elementwise, norms, rounding", "other"
KINDS: dict[str, tuple[str, ...]] = {
    ATTENTION: ("sdpa", "flash", "fmha", "attention", "cudnn_generated"),
    GEMM: ("gemm", "nvjet", "cutlass", "xmma", "cublas", "mm_", "aten::mm", "aten::addmm", "aten::bmm", "scaled_mm",
           "mkldnn_linear", "aten::linear"),
    OTHER: ("memcpy", "memset", "aten::cat", "catarray", "aten::copy_", "aten::embedding", "aten::index"),
}  # fmt: skip
"""Parts of kernels' names, of operations' on a CPU; all others compute element by element, norms and rounding too."""


@dataclass(frozen=True)
class Candidate:
    """A runtime to measure. `prepare` makes it ready, with the rest of the pipeline around it."""

    precision: str
    runtime: str
    prepare: Callable[[], tuple[Model, Runtime]]


def candidate(spec: ModelSpec, folder: Path, choice: Choice, device: torch.device) -> Candidate:
    """What `choose` chose."""

    def prepare() -> tuple[Model, Runtime]:
        model = load(spec, folder, device, transformer=choice.artifact is None)
        return model, open_runtime(choice, model)

    return Candidate(choice.precision, choice.runtime, prepare)


def random_candidates(size: Size, precisions: Sequence[str], device: torch.device) -> list[Candidate]:
    """The torch runtime over random weights."""

    def opener(precision: str) -> Callable[[], tuple[Model, Runtime]]:
        return lambda: random_session(size, precision, device)

    return [Candidate(precision, "torch", opener(precision)) for precision in precisions or PRECISIONS]


def random_session(size: Size, precision: str, device: torch.device) -> tuple[Model, Runtime]:
    """A pipeline of random weights in a precision, opened as a real one would be."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = random_weights.make_transformer(size, device, dtype)
    if precision != "bf16":
        sample = random_weights.make_samples(1, size, device, dtype)[0]
        random_weights.quantize(transformer, precision, sample)
    model = random_weights.make_model(size, device, dtype, transformer)
    return model, open_transformer(transformer, precision if precision != "bf16" else None)


# ---------------------------------------------------------------- one runtime


def measure(
    candidate: Candidate, *, calls: int, steps: int, reference: torch.Tensor | None = None
) -> tuple[dict[str, Any], torch.Tensor]:
    """Facts about one runtime, and the velocity it predicts for numbers that are the same for all.

    calls: timed steps; steps: of the whole edit; reference: the unquantized velocity, to tell the error of one step.
    """
    with room():
        model, runtime = candidate.prepare()
        device = model.device
        weights = runtime_bytes(runtime)
        facts: dict[str, Any] = {
            "precision": runtime.precision, "runtime": candidate.runtime, "weights_bytes": weights,
            "emulated": runtime.precision in random_weights.PACKS and runtime.name == "torch"
            and not native.serves(device),
            "pipeline_bytes": weights + sum(_bytes(m) for m in (model.vae, model.text_encoder, model.text_encoder_2)),
        }  # fmt: skip
        if runtime.caveat:
            facts["caveat"] = runtime.caveat
        picture = make_picture(*model.spec.sizes[-1])
        with torch.inference_mode():
            context = editor.encode(model, editor.to_pixels(picture, model))
            conditioning, _ = _conditioned(model, context, steps)
            torch.manual_seed(1)
            latents = torch.randn_like(conditioning.context)
            timestep = conditioning.timesteps[[steps // 2]]
            facts["tokens"] = {
                "image": latents.shape[1], "context": conditioning.context.shape[1],
                "text": conditioning.prompt.shape[1],
            }  # fmt: skip
            predict = runtime.begin(conditioning)
            step = partial(predict, latents, timestep, True)
            facts["first_call_s"] = round(_seconds(step, device), 3)
            velocity = step().float().cpu()
            if reference is not None:
                facts["error"] = round(float((velocity - reference).norm() / reference.norm()), 4)
            reset_peak(device)
            facts["ms"] = times(step, calls, device)
            facts["step_peak_bytes"] = peak(device, runtime)
            facts["begin_ms"] = times(partial(runtime.begin, conditioning), calls, device)["median"]
            if runtime.name == "torch":
                facts["kernels"], facts["largest_kernels"] = kernels(step, device)
                facts["context_refresh"] = _refreshed(runtime, conditioning, latents, timestep, calls, steps)
            del predict, step, conditioning
        facts["modules"] = modules(model, runtime, picture, steps)
        facts["edit_peak_bytes"] = peak(device, runtime)
    return facts, velocity


def _conditioned(model: Model, context: torch.Tensor, steps: int) -> tuple[Any, torch.Tensor]:
    """Of an edit of so many steps, with its sigmas [steps + 1]: as many noise tokens as the context has."""
    sigmas = sampling.schedule(model.scheduler, steps, sampling.pack(context).shape[1])
    return editor.condition(model, context, PROMPT, model.spec.guidance, sigmas), sigmas


def _refreshed(
    runtime: Runtime, conditioning: Any, latents: torch.Tensor, timestep: torch.Tensor, calls: int, steps: int
) -> dict[str, Any]:
    """A step that keeps the context, one that reuses it, and what that comes to over an edit of `steps`."""
    device = latents.device
    predict = runtime.begin(conditioning, keep_context=True)
    predict(latents, timestep, True)
    predict(latents, timestep, False)
    full = times(lambda: predict(latents, timestep, True), calls, device)
    alone = times(lambda: predict(latents, timestep, False), calls, device)
    averages = {}
    for refresh in REFRESHES:
        share = sum(full_steps(steps, refresh)) / steps
        averages[str(refresh)] = round(share * full["median"] + (1 - share) * alone["median"], 2)
    return {"full": full, "partial": alone, "kept_bytes": runtime.kept_bytes, "average_ms": averages}


def modules(model: Model, runtime: Runtime, picture: Image.Image, steps: int) -> dict[str, float]:
    """Seconds that each module takes of one edit, prompt and files included."""
    from io import BytesIO

    device = model.device
    spent = dict.fromkeys(("transformer", "text encoders", "VAE encoder", "VAE decoder", "picture in and out"), 0.0)

    @contextmanager
    def on(name: str) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        yield
        synchronize(device)
        spent[name] += time.perf_counter() - start

    model.prompts.clear()
    size = model.spec.sizes[-1]
    with torch.inference_mode():
        editor.condition(model, editor.encode(model, editor.to_pixels(picture, model)), PROMPT + ".", 2.5)  # warm
        with on("picture in and out"):
            pixels = editor.to_pixels(to_working(picture, size), model)
        with on("VAE encoder"):
            context = editor.encode(model, pixels)
        with on("text encoders"):
            conditioning, sigmas = _conditioned(model, context, steps)
        _, channels, height, width = context.shape
        latents = sampling.make_noise(0, channels, height, width, like=context)
        with on("transformer"):
            latents = sampling.denoise(runtime.begin(conditioning), latents, sigmas)
        editor.decode(model, latents, *size)
        with on("VAE decoder"):
            decoded = editor.decode(model, latents, *size)
        with on("picture in and out"):
            from_working(editor.to_image(decoded), picture.size).save(BytesIO(), "PNG")
    return {name: round(seconds, 4) for name, seconds in spent.items()}


def kernels(call: Callable[[], Any], device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of one call by kind of kernel (of operation, on a CPU), and the largest by name."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with _silent(), profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        call()
        synchronize(device)
    kinds, names = Counter(dict.fromkeys((GEMM, ATTENTION, ELEMENTWISE, OTHER), 0.0)), Counter[str]()
    for event in seen.key_averages():
        ms = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000
        kinds[kind_of(event.key)] += ms
        names[f"{event.key[:70]} x{event.count}"] += ms
    return {k: round(v, 2) for k, v in kinds.items()}, {k: round(v, 2) for k, v in names.most_common(12)}


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler's library writes to stderr itself, where our own progress stands."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), ELEMENTWISE)


# ---------------------------------------------------------------- clocks and scales


def times(call: Callable[[], Any], calls: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a call, warm: median, the tenth and ninetieth percentile, and how many were timed."""
    for _ in range(WARM_UP):
        call()
    taken = sorted(1000 * _seconds(call, device) for _ in range(calls))
    low, high = (taken[min(calls - 1, max(0, round(part * calls - 0.5)))] for part in (0.1, 0.9))
    return {"median": round(median(taken), 2), "p10": round(low, 2), "p90": round(high, 2), "calls": calls}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device, runtime: Runtime | None = None) -> int | None:
    """The most GPU memory in use since `reset_peak`; None on a CPU, where a process cannot tell whose it was."""
    if device.type != "cuda":
        return None
    beside = 0 if runtime is None else runtime.device_bytes + runtime.recorded_bytes
    return torch.cuda.max_memory_allocated(device) + beside


def runtime_bytes(runtime: Runtime) -> int:
    """Of a transformer's weights; for an engine all that it holds on the GPU."""
    return runtime.weight_bytes or runtime.device_bytes


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@contextmanager
def room() -> Iterator[None]:
    """What was made inside is gone afterwards, from the GPU too."""
    try:
        yield
    finally:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make_picture(width: int, height: int, number: int = 0) -> Image.Image:
    """A picture of its own for each number: gradients, with edges for the PNG to work at."""
    across = Image.linear_gradient("L").resize((width, height))
    down = across.rotate(90 + number).resize((width, height))
    noise = Image.effect_noise((width, height), 20)
    return Image.merge("RGB", (across, down, noise))
