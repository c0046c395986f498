"""A model, a runtime and a device made ready for jobs, and kept ready from one job to the next."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from core.edit.models import ModelSpec, find_spec, locate
from core.edit.placement import EVERYTHING, Memory, Placement
from core.edit.runtimes import Choice, Room, choose

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
        """The most memory in use since the session was opened for this job; of the whole process on a CPU."""
        ...


class Studio(Protocol):
    """Opens sessions. A worker is given one; tests may give it theirs."""

    device: str
    max_vram: int | None
    """Bytes of its GPU that it may take; None for what is free."""

    def open(
        self,
        model: str,
        precision: str,
        runtime: str,
        *,
        keep_context: bool = False,
        prompts: Sequence[str] = (),
        upcoming: Callable[[], Sequence[str]] = tuple,
    ) -> Session:
        """Make ready what a job asks for. Raises UnavailableError where this machine cannot.

        keep_context: edits may ask for a `context_refresh` above 1. prompts: the job's, encoded when this returns;
        upcoming: those of jobs to come with this model, asked for where encoding them along saves time.
        """
        ...

    def make_room(self) -> str:
        """After running out of memory: need less from now on, and say how. Empty where nothing is left to give up."""
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

    def prepare(self, prompts: Sequence[str], upcoming: Callable[[], Sequence[str]] = tuple) -> None:
        """Begin a job: encode its prompts, each distinct one once, and measure its memory from here on."""
        from core.edit.loading import encode_prompts

        if self.model.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.model.device)
        encode_prompts(self.model, prompts, upcoming)

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

    def held_bytes(self) -> int:
        """GPU memory that is free again once this session is gone."""
        if self.model.device.type != "cuda":
            return 0
        import torch

        return torch.cuda.memory_reserved(self.model.device) + self.run.device_bytes

    def peak_bytes(self) -> int:
        if self.model.device.type == "cuda":
            import torch

            beside = self.run.device_bytes + self.run.recorded_bytes
            return torch.cuda.max_memory_allocated(self.model.device) + beside
        return peak_resident_bytes()


Asked = tuple[str, str, str, bool]
"""Model, precision, runtime, keep_context."""


@dataclass
class LocalStudio:
    """Loads models on this machine, one at a time: the next one takes the place of the last."""

    device: str = "auto"
    on_load: Callable[[Loading], None] = lambda loading: None
    """Called with what loading a model took."""
    max_vram: int | None = None
    _asked: Asked | None = None
    _loaded: tuple[str, Choice] | None = None
    _session: LoadedSession | None = None
    _floors: dict[Asked, Placement] = field(default_factory=dict)
    """What was given up for lack of memory."""

    def open(
        self,
        model: str,
        precision: str,
        runtime: str,
        *,
        keep_context: bool = False,
        prompts: Sequence[str] = (),
        upcoming: Callable[[], Sequence[str]] = tuple,
    ) -> LoadedSession:
        asked = (model, precision, runtime, keep_context)
        if self._session is None or self._asked != asked:
            spec = find_spec(model)
            folder = locate(spec, download=True)
            memory, floor = self.gpu_memory(), self._floors.get(asked, EVERYTHING)
            room = Room(memory, spec, floor) if memory else None
            choice = choose(runtime, precision, spec.name, folder, keep_context=keep_context, room=room)
            if room is None:
                choice = replace(choice, placement=floor)
            if self._session is None or self._loaded != (model, choice):
                self._session = None  # frees the old weights before the new ones come
                self._asked, self._loaded = asked, (model, choice)
                self._session = self._load(spec, folder, choice, prompts, upcoming)
            else:
                self._place(choice)
            self._asked, self._loaded = asked, (model, choice)
        self._session.prepare(prompts, upcoming)
        return self._session

    def make_room(self) -> str:
        """The next rung: take the text encoders off the GPU, then let the VAE work in tiles."""
        if self._loaded is None or self._asked is None:
            return ""
        model, choice = self._loaded
        placement = choice.placement.smaller(gpu=self.device != "cpu")
        if placement is None:
            return ""
        self._floors[self._asked] = placement
        choice = replace(choice, placement=placement)
        self._loaded = model, choice
        if self._session is not None:
            self._place(choice)
        return str(placement)

    def gpu_memory(self) -> Memory | None:
        """Of the GPU that this studio loads onto, before torch is imported; what the loaded model holds is free for
        the next one. None without a GPU."""
        from core.edit.runtimes.trt_api import gpu_memory

        if self.device == "cpu" or version("torch").endswith("+cpu"):
            return None
        found = gpu_memory(int(self.device.partition(":")[2] or 0))
        if found is None:
            return None
        return Memory(found[0] + (self._session.held_bytes() if self._session else 0), found[1], self.max_vram)

    def _place(self, choice: Choice) -> None:
        from core.edit.loading import rearrange

        assert self._session is not None
        self._session.run.release()
        rearrange(self._session.model, choice.placement)

    def _load(
        self,
        spec: ModelSpec,
        folder: Path,
        choice: Choice,
        prompts: Sequence[str],
        upcoming: Callable[[], Sequence[str]],
    ) -> LoadedSession:
        start = time.perf_counter()
        with _no_collection():
            from core.edit.loading import limit_memory, load, pick_device  # torch, diffusers, transformers
            from core.edit.runtimes.opening import open_runtime
        imported = time.perf_counter()
        device = pick_device(self.device)
        self.device = str(device)
        limit_memory(device, self.max_vram)
        loaded = load(
            spec, folder, device, transformer=choice.artifact is None, placement=choice.placement, prompts=prompts,
            upcoming=upcoming,
        )  # fmt: skip
        session = LoadedSession(loaded, open_runtime(choice, loaded))
        limit_memory(device, self.max_vram, beside=session.run.device_bytes)
        took = time.perf_counter() - imported
        reason = "; ".join(filter(None, (choice.reason, session.run.caveat)))
        how = (session.precision, session.runtime, reason)
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
