"""A model, a runtime and a device made ready for jobs, and kept ready from one job to the next."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from core.edit.models import ModelSpec, find_spec, locate
from core.edit.runtimes import Choice, choose

if TYPE_CHECKING:
    from core.edit.editor import Edit, Progress
    from core.edit.geometry import Size
    from core.edit.loading import Model
    from core.edit.runtimes import Runtime
    from core.edit.sampling import OnStep


class Session(Protocol):
    """Edits pictures with one model in one precision."""

    precision: str
    runtime: str

    @property
    def sizes(self) -> Sequence[Size]:
        """That the model works at: a picture may come in the one it gets; none leaves every picture as it is."""
        ...

    def prepare(self, prompts: list[str]) -> None:
        """Encode these prompts now, each distinct one once."""
        ...

    def edit(
        self,
        image: Image.Image,
        prompt: str,
        *,
        seed: int,
        steps: int,
        guidance: float,
        context_refresh: int,
        keep_model_size: bool,
        on_step: OnStep | None,
        resume: Progress | None,
    ) -> Edit: ...

    def snapshot(self, step: int, latents: Any) -> Progress:
        """What `edit` can resume from, of the latents that `on_step` was given."""
        ...

    def sketch(self, latents: Any, size: tuple[int, int]) -> Image.Image:
        """A small picture of latents that `on_step` was given, of an edit of a picture of this size."""
        ...

    def peak_bytes(self) -> int:
        """The most memory in use so far: of the GPU where there is one, else of this process."""
        ...


class Studio(Protocol):
    """Opens sessions. A worker is given one; tests may give it theirs."""

    device: str

    def open(self, model: str, precision: str, runtime: str, *, keep_context: bool = False) -> Session:
        """Make ready what a job asks for. Raises UnavailableError where this machine cannot.

        keep_context: edits may ask for a `context_refresh` above 1.
        """
        ...

    def make_room(self) -> bool:
        """After running out of memory: need less from now on. False where there is nothing left to give up."""
        ...


@dataclass(frozen=True)
class Loading:
    """A model was loaded. `reason`: why it runs in this precision by this runtime; `import_seconds` is for the
    libraries, once a process; `seconds` for the weights."""

    model: str
    device: str
    precision: str
    runtime: str
    reason: str
    import_seconds: float
    seconds: float


@dataclass
class LoadedSession:
    """The session of a loaded model."""

    model: Model
    run: Runtime
    precision: str = field(init=False)
    runtime: str = field(init=False)
    _factors: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.precision, self.runtime = self.run.precision, self.run.name

    @property
    def sizes(self) -> Sequence[Size]:
        return self.model.spec.sizes

    def prepare(self, prompts: list[str]) -> None:
        from core.edit.loading import encode_prompt

        for prompt in prompts:
            encode_prompt(self.model, prompt)

    def edit(
        self,
        image: Image.Image,
        prompt: str,
        *,
        seed: int,
        steps: int,
        guidance: float,
        context_refresh: int,
        keep_model_size: bool,
        on_step: OnStep | None,
        resume: Progress | None,
    ) -> Edit:
        from core.edit.editor import edit

        return edit(
            self.model,
            self.run,
            image,
            prompt,
            seed=seed,
            steps=steps,
            guidance=guidance,
            context_refresh=context_refresh,
            keep_model_size=keep_model_size,
            on_step=on_step,
            resume=resume,
        )

    def snapshot(self, step: int, latents: Any) -> Progress:
        from core.edit.editor import snapshot

        return snapshot(step, latents)

    def sketch(self, latents: Any, size: tuple[int, int]) -> Image.Image:
        from core.edit.geometry import working_size
        from core.edit.sketch import colour_factors, sketch

        if self._factors is None:
            self._factors = colour_factors(self.model)
        return sketch(self.model, self._factors, latents, *working_size(*size, self.model.spec.sizes))

    def peak_bytes(self) -> int:
        if self.model.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.model.device) + self.run.device_bytes
        return peak_resident_bytes()


@dataclass
class LocalStudio:
    """Loads models on this machine, one at a time: the next one takes the place of the last."""

    device: str = "auto"
    on_load: Callable[[Loading], None] = lambda loading: None
    """Called with what loading a model took."""
    _asked: tuple[str, str, str, bool] | None = None
    _loaded: tuple[str, Choice] | None = None
    _session: LoadedSession | None = None

    def open(self, model: str, precision: str, runtime: str, *, keep_context: bool = False) -> LoadedSession:
        asked = (model, precision, runtime, keep_context)
        if self._session is None or self._asked != asked:
            spec = find_spec(model)
            folder = locate(spec, download=True)
            choice = choose(runtime, precision, spec.name, folder, keep_context=keep_context)
            if self._session is None or self._loaded != (model, choice):
                self._session = self._asked = None  # frees the old weights before the new ones come
                self._session, self._loaded = self._load(spec, folder, choice), (model, choice)
            self._asked = asked
        return self._session

    def make_room(self) -> bool:
        """Empty the caches, take the text encoders off the GPU and let the VAE work in tiles; once."""
        from core.edit.loading import shrink

        return self._session is not None and shrink(self._session.model)

    def _load(self, spec: ModelSpec, folder: Path, choice: Choice) -> LoadedSession:
        start = time.perf_counter()
        with _no_collection():
            from core.edit.loading import load, pick_device  # torch, diffusers, transformers
            from core.edit.runtimes.opening import open_runtime
        imported = time.perf_counter()
        device = pick_device(self.device)
        self.device = str(device)
        loaded = load(spec, folder, device, transformer=choice.artifact is None)
        session = LoadedSession(loaded, open_runtime(choice, loaded))
        took = time.perf_counter() - imported
        how = (session.precision, session.runtime, choice.reason)
        self.on_load(Loading(spec.name, self.device, *how, imported - start, took))
        return session


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that an import makes is garbage: not looking for any saves 0.8 of 5 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_resident_bytes() -> int:
    """The most memory this process has held (getrusage(2): KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
