"""Memory, heat and power of this machine's GPUs, from the driver; the machine's own memory where there is none."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from core.jobs.devices import GPUS


@dataclass(frozen=True)
class Gauge:
    """How full one memory is, in bytes, and how its GPU is doing where there is one."""

    name: str
    used: int
    total: int
    celsius: float | None = None
    watts: float | None = None
    busy: int | None = None
    """Percent of the last moments in which the GPU computed anything."""


@dataclass
class Telemetry:
    """Asks NVML, or the kernel. Call `sample` from one thread at a time."""

    nvml: Any = None
    gpus: list[Any] = field(default_factory=list)
    _opened: bool = False

    def sample(self) -> list[Gauge]:
        """One gauge a GPU; the machine's memory where there is no GPU or its driver does not answer."""
        if not self._opened:
            self._open()
        gauges = [gauge for index, gpu in enumerate(self.gpus) if (gauge := self._gpu(index, gpu)) is not None]
        return gauges or [_memory()]

    def _open(self) -> None:
        self._opened = True
        if not GPUS.is_dir():
            return
        try:
            self.nvml = importlib.import_module("pynvml")
            self.nvml.nvmlInit()
            self.gpus = [self.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.nvml.nvmlDeviceGetCount())]
        except ImportError:
            return
        except self.nvml.NVMLError:  # no driver, or one that is being updated
            self.gpus = []

    def _gpu(self, index: int, gpu: Any) -> Gauge | None:
        memory = self._ask("nvmlDeviceGetMemoryInfo", gpu)
        if memory is None:
            return None
        busy = self._ask("nvmlDeviceGetUtilizationRates", gpu)
        power = self._ask("nvmlDeviceGetPowerUsage", gpu)
        heat = self._ask("nvmlDeviceGetTemperature", gpu, 0)
        return Gauge(
            f"GPU {index}", memory.used, memory.total, heat, power / 1000 if power is not None else None,
            busy.gpu if busy is not None else None,
        )  # fmt: skip

    def _ask(self, name: str, *args: Any) -> Any:
        """What the driver says; None for what this GPU does not tell."""
        try:
            return getattr(self.nvml, name)(*args)
        except self.nvml.NVMLError:
            return None


def _memory() -> Gauge:
    import psutil

    memory = psutil.virtual_memory()
    return Gauge("RAM", memory.total - memory.available, memory.total)
