"""A real worker process with a fast editor: what it paints depends on the picture, the prompt and the seed alone.

Run as `python tests/fast_worker.py DATABASE LOG`; every computed turn is a line of LOG. KONTEXT_TEST_STEP_MS sets
how long a step takes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageChops

from core.edit.studio import peak_resident_bytes


@dataclass
class FastEdit:
    """The part of `core.edit.editor.Edit` that a worker reads; importing that one would import torch."""

    image: Image.Image
    model_seconds: float


@dataclass
class FastProgress:
    step: int
    dtype: str = "none"
    shape: tuple[int, ...] = ()
    data: bytes = b""


@dataclass
class FastSession:
    log: Path
    precision: str = "fp32"
    runtime: str = "fast"
    sizes: tuple[tuple[int, int], ...] = ()

    def edit(
        self, image, prompt, *, seed, steps, guidance, context_refresh, keep_model_size, on_step, resume
    ) -> FastEdit:
        step_ms = float(os.environ.get("KONTEXT_TEST_STEP_MS", "0"))
        asked = f"{prompt}/{seed}/{steps}/{guidance}" + ("" if context_refresh == 1 else f"/{context_refresh}")
        digest = hashlib.sha256(asked.encode() + image.tobytes()).digest()
        with self.log.open("a") as log:
            log.write(f"{prompt}\t{seed}\t{digest.hex()[:8]}\n")
        if os.environ.get("KONTEXT_TEST_ABORT_ON") == hashlib.sha256(image.tobytes()).hexdigest()[:8]:
            os.abort()
        for step in range(resume.step if resume else 0, steps):
            time.sleep(step_ms / 1000)
            on_step(step + 1, step_ms, None, lambda: digest[:3])
        return FastEdit(ImageChops.add(image, Image.new("RGB", image.size, tuple(digest[:3]))), 0.0)

    def snapshot(self, step, latents):
        return FastProgress(step)

    def sketch(self, latents, size):
        return Image.new("RGB", (32, 32), tuple(latents))

    def peak_bytes(self) -> int:
        return peak_resident_bytes()


@dataclass
class FastStudio:
    device: str = "fast"
    log: Path = field(default_factory=lambda: Path(os.environ["KONTEXT_TEST_LOG"]))
    on_load: Callable[[object], None] = lambda loading: None
    max_vram: int | None = None

    def open(self, model, precision, runtime, *, keep_context=False, prompts=(), upcoming=tuple) -> FastSession:
        return FastSession(self.log)

    def make_room(self) -> str:
        return ""


def main(database: Path, log: Path) -> None:
    from core.jobs.database import connect
    from core.jobs.worker import Worker, drain

    drain(Worker(connect(database), FastStudio("fast", log)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
