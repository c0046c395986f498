"""FLUX's double and single blocks over rows [tokens, width], one residual tensor for all streams.

What a block's last product makes is not added at once: the next pass that normalizes those rows adds it, gated, on
its way (`Step.pending`), which saves a read and a write of all rows a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from core.edit.native.modulation import round_rows
from core.edit.native.rounding import Attention, Rounding
from core.edit.native.weights import FP8, Matrix


@dataclass
class Stream:
    """Half of a double block, for text or for image tokens."""

    modulation: Matrix
    qkv: Matrix
    norms: Tensor  # [2, dim]: of queries and keys
    out: Matrix
    up: Matrix
    down: Matrix


@dataclass
class Double:
    """Text and image tokens with weights of their own, and one attention for both."""

    text: Stream
    image: Stream
    attention: Attention


@dataclass
class Single:
    """All tokens alike; `into` makes queries, keys, values and the MLP's input at once."""

    modulation: Matrix
    into: Matrix
    norms: Tensor
    out: Matrix
    attention: Attention


@dataclass
class Step:
    """One call's state.

    h [tokens, width]: the residual, text tokens first, written in place; cos, sin [tokens, dim / 2].
    """

    ops: ModuleType
    h: Tensor
    cos: Tensor
    sin: Tensor
    text_tokens: int
    kept: Tensor | None = None
    """[2, context tokens, heads, dim]: keys and values of the attention at work."""
    reuse: bool = False
    """Context tokens are not among the rows: their keys and values come from `kept`."""
    pending: list[tuple[slice, Tensor, Tensor]] = field(default_factory=list)
    """(rows, y, gate): h[rows] += y * gate is still to be done."""

    @property
    def others(self) -> int:
        """How many tokens there are to attend to."""
        return len(self.h) + (self.kept.shape[1] if self.reuse and self.kept is not None else 0)

    def streams(self) -> tuple[slice, slice]:
        return slice(0, self.text_tokens), slice(self.text_tokens, len(self.h))

    def empty(self, rows: int, width: int, *, low: bool) -> Tensor:
        return self.h.new_empty(rows, width, dtype=FP8 if low else self.h.dtype)

    def modulated(self, rows: slice, shift: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        """LayerNorm of these rows of h, modulated and rounded; what is pending for them is added first."""
        out = self.empty(rows.stop - rows.start, self.h.shape[1], low=rounding.step is not None)
        parts = [(rows, None)] if not self.pending else [(where, (y, gate)) for where, y, gate in self.pending]
        for where, add in parts:
            a, b = max(rows.start, where.start), min(rows.stop, where.stop)
            if a < b:
                own = None if add is None else (add[0][a - where.start : b - where.start], add[1])
                into = out[a - rows.start : b - rows.start]
                self.ops.modulate(self.h[a:b], shift, scale, into, rounding, own)
        self.pending = [each for each in self.pending if each[0].stop <= rows.start or each[0].start >= rows.stop]
        return out


def double(step: Step, block: Double, of_text: Tensor, of_image: Tensor) -> None:
    """of_text, of_image [6 * width]: shifts, scales and gates."""
    both, rows, width = (block.text, block.image), step.streams(), step.h.shape[1]
    mods = [each.chunk(6) for each in (of_text, of_image)]
    attention = block.attention
    low = attention.steps is not None
    joint = _joint(step, attention, block.text.qkv, block.image.qkv)
    given = []
    for stream, where, mod in zip(both, rows, mods, strict=True):
        x = step.modulated(where, mod[0], mod[1], stream.qkv.rounding)
        product = stream.qkv(x, out=None if joint is None else joint[where])
        given.append((where, product, stream.qkv.parts, stream.norms))
    made = step.empty(len(step.h), width, low=low)
    _attend(step, attention, given, made, slice(0, len(step.h)), joint)
    del joint, given
    for stream, where, mod in zip(both, rows, mods, strict=True):
        x = made[where] if low else round_rows(step.ops, made[where], stream.out.rounding)
        step.pending.append((where, stream.out(x, attention.out_step), mod[2]))
        x = step.modulated(where, mod[3], mod[4], stream.up.rounding)
        active = step.empty(len(x), stream.up.outputs, low=stream.down.is_low)
        _activated(step, stream.up, x, active, stream.down.rounding)
        step.pending.append((where, stream.down(active), mod[5]))


def single(step: Step, block: Single, mods: Tensor, rows: slice | None = None) -> None:
    """mods [3 * width]: shift, scale and gate. rows: of which tokens the result is wanted, all unless given; keys and
    values are made of all."""
    shift, scale, gate = mods.chunk(3)
    everything, width = slice(0, len(step.h)), step.h.shape[1]
    rows = everything if rows is None else rows
    x = step.modulated(everything, shift, scale, block.into.rounding)
    into, out, attention = block.into, block.out, block.attention
    both = step.empty(rows.stop - rows.start, width + into.widths[3], low=out.is_low)
    of_attention, of_mlp = out.rounding.part(slice(0, width)), out.rounding.part(slice(width, None))
    joint = None
    if step.ops.FUSED_GELU and into.gelu(x[rows], both[:, width:], of_mlp, 3):
        joint = _joint(step, attention, into) if rows == everything else None
        product = into(x[rows], only=slice(0, 3), out=None if joint is None else joint[rows])
    else:
        product = into(x[rows])
        step.ops.gelu(product[:, 3 * width :], into.parts[3], both[:, width:], of_mlp)
        product = product[:, : 3 * width]
    given = [(rows, product, into.parts, block.norms)]
    for others in (slice(0, rows.start), slice(rows.stop, len(step.h))):
        if others.stop > others.start:
            given.append((others, into(x[others], only=slice(1, 3)), into.parts, block.norms))
    if out.is_low and attention.steps is None:
        made = step.empty(len(both), width, low=False)
        _attend(step, attention, given, made, rows, joint)
        step.ops.gelu(made, torch.ones((), device=made.device), both[:, :width], of_attention, activate=False)
    else:
        _attend(step, attention, given, both[:, :width], rows, joint)
    step.pending.append((rows, out(both), gate))


def _activated(step: Step, matrix: Matrix, x: Tensor, out: Tensor, rounding: Rounding) -> None:
    """out = GELU(x @ matrix), rounded."""
    if not (step.ops.FUSED_GELU and matrix.gelu(x, out, rounding)):
        step.ops.gelu(matrix(x), matrix.parts[0], out, rounding)


def _joint(step: Step, attention: Attention, *matrices: Matrix) -> Tensor | None:
    """Room [others, 3 * width] for the queries, keys and values of all tokens, where nothing is done to values:
    attention reads them there."""
    if attention.steps is not None or any(matrix.is_low for matrix in matrices):
        return None
    return step.empty(step.others, 3 * step.h.shape[1], low=False)


def _attend(
    step: Step,
    attention: Attention,
    given: list[tuple[slice, Tensor, Tensor, Tensor]],
    out: Tensor,
    queries: slice,
    joint: Tensor | None = None,
) -> None:
    """Attention of the rows `queries` to all.

    given: (rows, columns of queries, keys and values, their scales, norms) a stream; rows outside `queries` have
    columns of keys and values alone. joint: what the columns lie in, if values are read there.
    """
    dim = given[0][3].shape[1]
    rows, heads = len(step.h), step.h.shape[1] // dim
    dtype = FP8 if attention.steps is not None else step.h.dtype
    q = step.h.new_empty(queries.stop - queries.start, heads, dim, dtype=dtype)
    k = step.h.new_empty(step.others, heads, dim, dtype=dtype)
    v = torch.empty_like(k) if joint is None else joint[:, 2 * heads * dim :].unflatten(1, (heads, dim))
    for where, product, parts, norms in given:
        asks = queries.start <= where.start and where.stop <= queries.stop
        own = q[where.start - queries.start : where.stop - queries.start] if asks else None
        step.ops.heads(
            product, parts[:3], norms, step.cos[where], step.sin[where], attention.steps, attention.mixes,
            own, k[where], v[where] if joint is None else None,
        )  # fmt: skip
    if step.kept is not None:
        for now, kept in zip((k, v), step.kept, strict=True):
            if step.reuse:
                now[rows:].copy_(kept)
            else:
                kept.copy_(now[rows - len(kept) :])
    step.ops.attend(q, k, v, out, attention)
