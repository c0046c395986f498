"""The door to TensorRT in its two flavours, and what the hardware they serve can do. No torch, no TensorRT at import.

`tensorrt_rtx` (TensorRT for RTX) builds on any machine for RTX 20 to 50 and finishes kernels on the user's GPU;
`tensorrt` (full TensorRT) builds for the GPU it runs on, data-centre GPUs included. Their Python interfaces are the
same but for a few members, which `tests/test_tensorrt_contract.py` checks against the real bindings.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import UnavailableError

if TYPE_CHECKING:
    from core.edit.artifacts import Artifact


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs. `modules`: the meta package's module first, then the bindings' own."""

    name: str
    title: str
    modules: tuple[str, ...]
    extra: str
    any_gpu: bool
    """Builds for another GPU than the one it runs on, or on a machine with none."""
    timing_cache: bool
    """Keeps tactic timings. TensorRT-RTX takes none: its timing cache calls do nothing since 1.2 (its bindings)."""
    jit: bool
    """Finishes kernels where the engine runs, so that a cache of them on disk pays."""


FLAVOURS = {
    "tensorrt_rtx": Flavour(
        "tensorrt_rtx", "TensorRT-RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx",
        any_gpu=True, timing_cache=False, jit=True,
    ),
    "tensorrt": Flavour(
        "tensorrt", "TensorRT", ("tensorrt", "tensorrt_bindings"), "tensorrt",
        any_gpu=False, timing_cache=True, jit=False,
    ),
}  # fmt: skip

_LOGGERS: dict[str, Any] = {}
KEPT_LINES = 50  # of warnings and of errors, the last

GPUS = {
    "sm75": "RTX 20, T4",
    "sm80": "A100",
    "sm86": "RTX 30, A10, A40",
    "sm89": "RTX 40, L4, L40",
    "sm90": "H100, H200",
    "sm100": "B200, GB200",
    "sm103": "B300, GB300",
    "sm120": "RTX 50, RTX PRO Blackwell",
    "sm121": "GB10",
}
"""Compute capabilities by NVIDIA's names (https://developer.nvidia.com/cuda-gpus)."""

SINCE = {"bf16": 80, "fp8": 89, "fp4": 100}
"""The first compute capability with tensor cores for each number format, as the builder itself says."""
FORMAT_NAMES = {"bf16": "BF16", "fp8": "FP8", "fp4": "FP4"}

INPUTS: dict[str, tuple[str, ...]] = {
    "hidden_states": ("batch", "tokens", "channels"),
    "encoder_hidden_states": ("batch", "text", "joint"),
    "pooled_projections": ("batch", "pooled"),
    "timestep": ("batch",),
    "img_ids": ("tokens", "axes"),
    "txt_ids": ("text", "axes"),
    "guidance": ("batch",),
}
"""The transformer's ONNX interface (that of BFL's published graphs): inputs and what their axes count.
`tokens` are image and context tokens together, `text` T5's."""
OUTPUT = "latent"  # [batch, tokens, channels]


@dataclass(frozen=True)
class Gpu:
    """The GPU edits run on. `driver`: its version, part of what an engine was proven with."""

    name: str
    sm: str
    driver: str


def load(flavour: str) -> Any:
    """The module of a flavour. Raises UnavailableError naming the extra that installs it."""
    known = FLAVOURS[flavour]
    for name in known.modules:
        with suppress(ImportError, OSError):
            return importlib.import_module(name)
    raise UnavailableError(
        f"{known.title} is not installed: `pip install 'kontext-tui[{known.extra}]'` brings its libraries"
    )


def is_installed(flavour: str) -> bool:
    """Whether a flavour's module is there to import; nothing is imported."""
    return any(importlib.util.find_spec(name) is not None for name in FLAVOURS[flavour].modules)


def supported(module: Any) -> list[str]:
    """The compute capabilities a flavour builds for, as its own enum lists them."""
    members = getattr(module, "ComputeCapability", None)
    names = [name.lower() for name in dir(members) if name.startswith("SM")]
    return sorted(names, key=lambda name: int(name[2:]))


def missing_format(sm: str, number_format: str) -> str | None:
    """Why a GPU cannot run a number format (bf16, fp8, fp4); None where it can."""
    first = SINCE[number_format]
    if int(sm[2:]) >= first:
        return None
    able = "; ".join(f"{name} {title}" for name, title in GPUS.items() if int(name[2:]) >= first)
    return f"{sm} ({GPUS[sm]}) has no {FORMAT_NAMES[number_format]} tensor cores; GPUs that have: {able}"


def squarest(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) nearest to a square, of equals the larger: what engines are tuned for and proven at."""
    return min(sizes, key=lambda size: (max(size) / min(size), -size[0] * size[1]))


def logger(module: Any) -> Any:
    """The logger of this process, which prints nothing; its lists `warnings` and `errors` begin empty again.

    One for all: TensorRT keeps the first logger that it is given and warns of every other one.
    """
    found = _LOGGERS.get(module.__name__)
    if found is None:
        found = _LOGGERS[module.__name__] = _make_logger(module)
    found.errors, found.warnings = [], []
    return found


def _make_logger(module: Any) -> Any:
    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(msg.split())
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                kept = self.errors
            elif severity == module.ILogger.WARNING:
                kept = self.warnings
            else:
                return
            kept.append(line)
            del kept[:-KEPT_LINES]

    return Log()


def require_gpu(artifact: Artifact) -> Gpu:
    """The GPU here, which must be the kind that the engine was built for."""
    gpu, sm = current_gpu(), artifact.parts.get("sm")
    if gpu is None:
        raise UnavailableError(
            "a TensorRT engine needs an NVIDIA GPU, and none is in reach; `--runtime onnx` runs its graph on a CPU"
        )
    if gpu.sm != sm:
        raise UnavailableError(
            f"the engine {artifact.key[:12]} is for {sm}, and {gpu.name} is {gpu.sm}: "
            f"`kontext-tui engine build --gpu {gpu.sm}` makes one for it"
        )
    return gpu


def load_module(artifact: Artifact) -> Any:
    """The TensorRT that an engine was built by; plans are bound to its exact version."""
    module = load(str(artifact.parts["flavour"]))
    if str(module.__version__) != artifact.parts["version"]:
        title = FLAVOURS[str(artifact.parts["flavour"])].title
        raise UnavailableError(
            f"the engine {artifact.key[:12]} was built by {title} {artifact.parts['version']}, and "
            f"{module.__version__} is installed: `kontext-tui engine build` makes it again"
        )
    return module


def current_gpu() -> Gpu | None:
    """The first GPU that CUDA shows this process, asked of NVML (no CUDA context is made); None without one.

    NVML: https://docs.nvidia.com/deploy/nvml-api/
    """
    with _nvml_device(0) as (nvml, device):
        major, minor = ctypes.c_int(), ctypes.c_int()
        name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
        if not nvml or nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)):
            return None
        nvml.nvmlDeviceGetName(device, name, 96)
        nvml.nvmlSystemGetDriverVersion(driver, 80)
        return Gpu(name.value.decode(), f"sm{major.value}{minor.value}", driver.value.decode())


def gpu_memory(index: int = 0) -> tuple[int, int] | None:
    """Free and total bytes of a GPU, counted among those that CUDA shows this process; None where nothing tells."""
    with _nvml_device(index) as (nvml, device):
        memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        if not nvml or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
            return None
        return memory[1], memory[0]


@contextmanager
def _nvml_device(index: int) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of a GPU; (None, None) where there is no such GPU or no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        ready = nvml.nvmlInit_v2() == 0
    except OSError:
        ready = False
    if not ready:
        yield None, None
        return
    try:
        device = ctypes.c_void_p()
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        listed = [str(index)] if shown is None else shown.split(",")[index : index + 1]
        visible = listed[0].strip() if listed else ""
        if visible.isdecimal():
            found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(visible)), ctypes.byref(device))
        else:
            found = nvml.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(device))
        yield (None, None) if found else (nvml, device)
    finally:
        nvml.nvmlShutdown()
