"""Which parts of a model lie on the GPU, and when: decided by bytes, before anything is loaded. No torch here.

What gives way first costs nothing but time: the text encoders leave the GPU once prompts are encoded. Then they pass
through it layer by layer. Last the VAE works in tiles, which a picture may show in its last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Encoders = Literal["stay", "visit", "stream"]
"""Of the text encoders: always on the GPU; there whole for as long as they encode; there a layer at a time."""

CONTEXT_BYTES = 600_000_000
"""What a process holds on a GPU beside its tensors: the CUDA context, workspaces of cuBLAS and cuDNN."""
TILE = 512
"""Pixels a side of a VAE tile. The model's own tiles are as large as its pictures, and save nothing."""

_ORDER: tuple[Encoders, ...] = ("stay", "visit", "stream")


@dataclass(frozen=True)
class Memory:
    """GPU memory in bytes: what is free for this process, what there is, and what `--max-vram` allows it."""

    free: int
    total: int
    limit: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether `--max-vram` is what counts."""
        return self.limit is not None and self.limit < self.free

    @property
    def usable(self) -> int:
        """For tensors; below zero where not even the context fits."""
        return min(self.free, self.free if self.limit is None else self.limit) - CONTEXT_BYTES

    def __str__(self) -> str:
        return f"{gb(min(self.free, self.limit or self.free))} {'allowed' if self.is_limited else 'free'}"


@dataclass(frozen=True)
class Parts:
    """Bytes of what surrounds the transformer, at the model's largest size."""

    encoders: int
    vae: int
    encode: int
    """Activations of encoding a prompt."""
    layer: int
    """The largest layer of the text encoders."""
    decode: int
    """Activations of the VAE; of one tile and the whole picture for `decode_tiled`."""
    decode_tiled: int


@dataclass(frozen=True)
class Transformer:
    """Bytes of a transformer in some precision: its weights, and a step's activations with the context it keeps."""

    weights: int
    step: int


@dataclass(frozen=True)
class Placement:
    """Where the parts lie. `first`: how the text encoders encode before the transformer has come."""

    encoders: Encoders = "stay"
    tiled: bool = False
    first: Encoders = "stay"

    def __str__(self) -> str:
        leave = "text encoders leave the GPU after encoding"
        encoders = {
            ("visit", "visit"): leave,
            ("stream", "visit"): f"{leave} and come back layer by layer",
            ("stream", "stream"): "text encoders pass through the GPU layer by layer",
        }.get((self.encoders, self.first), "")
        return ", ".join(filter(None, [encoders, "the VAE works in tiles" if self.tiled else ""]))

    def smaller(self, *, gpu: bool = True) -> Placement | None:
        """What takes less memory at work than this, in the order of what it costs; None where nothing is left."""
        if gpu and self.encoders == "stay":
            return replace(self, encoders="visit", first="visit")
        return None if self.tiled else replace(self, tiled=True)


EVERYTHING = Placement()
"""All parts stay on the device."""


def place(
    transformer: Transformer, parts: Parts, memory: Memory, *, floor: Placement = EVERYTHING
) -> Placement | None:
    """The placement that gives up the least and fits; None where none does.

    floor: give up at least what this one does, which has run out of memory less.
    """
    for encoders, tiled in _rungs(floor):
        if peak(transformer, parts, encoders, tiled=tiled) <= memory.usable:
            whole = parts.encoders + parts.encode <= memory.usable
            first: Encoders = "stay" if encoders == "stay" else "visit" if whole else "stream"
            return Placement(encoders, tiled, first)
    return None


def _rungs(floor: Placement) -> Iterator[tuple[Encoders, bool]]:
    for tiled in (False, True):
        for encoders in _ORDER:
            if tiled >= floor.tiled and _ORDER.index(encoders) >= _ORDER.index(floor.encoders):
                yield encoders, tiled


def peak(transformer: Transformer, parts: Parts, encoders: Encoders, *, tiled: bool) -> int:
    """The most bytes of tensors that such a placement has on the GPU once everything is loaded."""
    visiting = {"stay": 0, "visit": parts.encoders, "stream": parts.layer}[encoders] + parts.encode
    # A recorded step keeps its activations' room to itself.
    working = transformer.step + max(parts.decode_tiled if tiled else parts.decode, visiting)
    return transformer.weights + parts.vae + (parts.encoders if encoders == "stay" else 0) + working


def least(transformer: Transformer, parts: Parts) -> int:
    """The GPU memory without which nothing runs, what a process needs beside tensors included."""
    return peak(transformer, parts, "stream", tiled=True) + CONTEXT_BYTES


def gb(count: int) -> str:
    """Bytes in units of ten, as cards are sold: 23.8 GB, 22 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
