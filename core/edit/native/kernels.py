"""Triton kernels of a step: all that stands between the matrix products, each in one pass over memory.

The same functions as in `core.edit.native.plain`, which says what they compute. A step of FLUX.1 Kontext [dev] at a
megapixel takes 12 ms of an H100 in them; in diffusers what they do takes 120 (docs/benchmarks/h100-log.md).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from core.edit.lowbit import BLOCK as FP4_BLOCK
from core.edit.native import cublas
from core.edit.native.attention import attend
from core.edit.native.rounding import Rounding

__all__ = ["FUSED_GELU", "attend", "gelu", "heads", "modulate", "unpack_fp4"]

FUSED_GELU = cublas.is_installed()
E4M3_MAX: tl.constexpr = tl.constexpr(448.0)

# The fastest on an H100 at 8,704 tokens of 3,072 channels.
MODULATE = (2, 8)
"""Rows and warps of a program."""
HEADS = (64, 8, 4, 3)
"""Tokens, heads, warps and stages of a program."""
GELU = (1, 4096, 8)
"""Rows, columns and warps of a program."""
UNPACK = (64, 64, 4)
"""Rows, columns and warps of a program."""


@triton.jit
def _to_grid(x, inverse):
    return tl.minimum(tl.maximum(x * inverse, -E4M3_MAX), E4M3_MAX)


@triton.jit
def _modulate(
    x, y, gate, shift, scale, out, step, smooth, rows, width, x_stride, y_stride, out_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, ROUND: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)[None, :]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = column < width
    here = inside & (row < rows)
    value = tl.load(x + row * x_stride + column, here, 0.0).to(tl.float32)
    if ADD:
        gating = tl.load(gate + column, inside, 0.0).to(tl.float32)
        value += gating * tl.load(y + row * y_stride + column, here, 0.0).to(tl.float32)
        kept = value.to(x.dtype.element_ty)
        tl.store(x + row * x_stride + column, kept, here)
        value = kept.to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / width)[:, None], 0.0)
    normal = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps))[:, None]
    factor = 1.0 + tl.load(scale + column, inside, 0.0).to(tl.float32)
    result = normal * factor + tl.load(shift + column, inside, 0.0).to(tl.float32)
    if SMOOTH:
        result *= tl.load(smooth + column, inside, 0.0).to(tl.float32)
    if ROUND:
        result = _to_grid(result, 1.0 / tl.load(step))
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), here)


def modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    out: Tensor,
    rounding: Rounding,
    add: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> None:
    rows, width = x.shape
    y, gate = add if add is not None else (x, shift)
    step, smooth = rounding.step, rounding.smooth
    many, warps = MODULATE
    _modulate[(triton.cdiv(rows, many),)](
        x, y, gate, shift, scale, out, x if step is None else step, x if smooth is None else smooth,
        rows, width, x.stride(0), y.stride(0), out.stride(0), eps,
        ROWS=many, BLOCK=triton.next_power_of_2(width), ADD=add is not None, ROUND=step is not None,
        SMOOTH=smooth is not None, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _heads(
    x, parts, norms, cos, sin, mixes, steps, q, k, v, rows, x_stride, heads, eps,
    TILE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, FIRST: tl.constexpr, ROUND: tl.constexpr,
    MIX: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first = tl.program_id(1) * HEADS
    which = tl.program_id(2) + FIRST
    inside = (row < rows)[:, None]
    column = tl.arange(0, DIM)
    part = tl.load(parts + which)
    inverse = 1.0
    if ROUND:
        inverse = 1.0 / tl.load(steps + which)
    at = x + row[:, None] * x_stride + ((which - FIRST) * heads + first) * DIM + column[None, :]
    to = (row[:, None] * heads + first) * DIM + column[None, :]
    if which == 2:
        for _ in range(HEADS):
            value = tl.load(at, inside, 0.0).to(tl.float32) * part
            if ROUND:
                value = _to_grid(value, inverse)
            tl.store(v + to, value.to(v.dtype.element_ty), inside)
            at += DIM
            to += DIM
    else:
        # Angles, norms and what is mixed by are the same for all heads.
        pair = row[:, None] * (DIM // 2) + tl.arange(0, DIM // 2)[None, :]
        c, s = tl.load(cos + pair, inside, 0.0), tl.load(sin + pair, inside, 0.0)
        norm = tl.load(norms + which * DIM + column).to(tl.float32)[None, :]
        if MIX:
            mix = tl.load(mixes + which * DIM * DIM + column[:, None] * DIM + column[None, :])
        for _ in range(HEADS):
            value = tl.load(at, inside, 0.0).to(tl.float32) * part
            value *= (1.0 / tl.sqrt(tl.sum(value * value, 1) / DIM + eps))[:, None] * norm
            real, imaginary = tl.split(tl.reshape(value, (TILE, DIM // 2, 2)))
            value = tl.reshape(tl.join(real * c - imaginary * s, imaginary * c + real * s), (TILE, DIM))
            if MIX:
                value = tl.dot(value.to(mix.dtype), mix)
            if ROUND:
                value = _to_grid(value, inverse)
            if which == 0:
                tl.store(q + to, value.to(q.dtype.element_ty), inside)
            else:
                tl.store(k + to, value.to(k.dtype.element_ty), inside)
            at += DIM
            to += DIM


def heads(
    x: Tensor,
    parts: Tensor,
    norms: Tensor,
    cos: Tensor,
    sin: Tensor,
    steps: Tensor | None,
    mixes: Tensor | None,
    q: Tensor | None,
    k: Tensor,
    v: Tensor | None,
    eps: float = 1e-6,
) -> None:
    rows, (_, count, width) = len(x), k.shape
    tile, together, warps, stages = HEADS
    together = next(n for n in range(min(together, count), 0, -1) if count % n == 0)
    first = 0 if q is not None else 1
    _heads[(triton.cdiv(rows, tile), count // together, (3 if v is not None else 2) - first)](
        x, parts, norms, cos, sin, x if mixes is None else mixes, x if steps is None else steps,
        k if q is None else q, k, k if v is None else v, rows, x.stride(0), count, eps,
        TILE=tile, HEADS=together, DIM=width, FIRST=first, ROUND=steps is not None, MIX=mixes is not None,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


@triton.jit
def _gelu(
    x, part, out, step, smooth, rows, width, x_stride, out_stride,
    TILE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATE: tl.constexpr, ROUND: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    value = tl.load(x + row * x_stride + column, inside, 0.0).to(tl.float32) * tl.load(part)
    if ACTIVATE:  # x * sigmoid(2 y) is x / 2 * (1 + tanh(y))
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    if SMOOTH:
        value *= tl.load(smooth + column, column < width, 0.0).to(tl.float32)
    if ROUND:
        value = _to_grid(value, 1.0 / tl.load(step))
    tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), inside)


def gelu(x: Tensor, part: Tensor, out: Tensor, rounding: Rounding, *, activate: bool = True) -> None:
    rows, width = x.shape
    step, smooth = rounding.step, rounding.smooth
    tile, block, warps = GELU
    block = min(block, triton.next_power_of_2(width))
    _gelu[(triton.cdiv(rows, tile), triton.cdiv(width, block))](
        x, part, out, x if step is None else step, x if smooth is None else smooth,
        rows, width, x.stride(0), out.stride(0),
        TILE=tile, BLOCK=block, ACTIVATE=activate, ROUND=step is not None, SMOOTH=smooth is not None, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _e2m1(code):
    """E2M1 codes 0..15 divided by 2**14: as float16, whose sign and ends of exponent and mantissa their bits are."""
    bits = ((code & 7).to(tl.int16) << 9) | ((code & 8).to(tl.int16) << 12)
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _unpack_fp4(
    codes, blocks, scale, columns, low_a, low_b, out, step, outputs, inputs, rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FP4_BLOCK: tl.constexpr, RANK: tl.constexpr,
    LOW: tl.constexpr, SCALE_COLUMNS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    first = tl.program_id(1) * COLUMNS
    byte = first // 2 + tl.arange(0, COLUMNS // 2)[None, :]
    packed = tl.load(codes + row * (inputs // 2) + byte, (row < outputs) & (byte < inputs // 2), 0)
    value = tl.reshape(tl.join(_e2m1(packed & 15), _e2m1(packed >> 4)), (ROWS, COLUMNS))
    block = first // FP4_BLOCK + tl.arange(0, COLUMNS // FP4_BLOCK)[None, :]
    per_block = tl.load(
        blocks + row * (inputs // FP4_BLOCK) + block, (row < outputs) & (block < inputs // FP4_BLOCK), 0.0
    ).to(tl.float32) * (tl.load(scale) * 16384.0)
    value = tl.reshape(
        tl.reshape(value, (ROWS, COLUMNS // FP4_BLOCK, FP4_BLOCK)) * per_block[:, :, None], (ROWS, COLUMNS)
    )
    column = first + tl.arange(0, COLUMNS)[None, :]
    if LOW:
        of_rank = tl.arange(0, RANK)
        b = tl.load(low_b + row * rank + of_rank[None, :], (row < outputs) & (of_rank[None, :] < rank), 0.0)
        a = tl.load(low_a + of_rank[:, None] * inputs + column, (of_rank[:, None] < rank) & (column < inputs), 0.0)
        value += tl.dot(b, a)
    if SCALE_COLUMNS:
        value *= tl.load(columns + column, column < inputs, 0.0).to(tl.float32)
    if ROUND:
        value = _to_grid(value, 1.0 / tl.load(step))
    tl.store(out + row * inputs + column, value.to(out.dtype.element_ty), (row < outputs) & (column < inputs))


def unpack_fp4(
    codes: Tensor,
    blocks: Tensor,
    scale: Tensor,
    out: Tensor,
    step: Tensor | None,
    columns: Tensor | None = None,
    low: tuple[Tensor, Tensor] | None = None,
) -> None:
    outputs, inputs = out.shape
    low_a, low_b = low if low is not None else (codes, codes)
    rank = len(low_a) if low is not None else 0
    tile, width, warps = UNPACK
    _unpack_fp4[(triton.cdiv(outputs, tile), triton.cdiv(inputs, width))](
        codes, blocks, scale, codes if columns is None else columns, low_a, low_b, out,
        scale if step is None else step, outputs, inputs, rank,
        ROWS=tile, COLUMNS=width, FP4_BLOCK=FP4_BLOCK, RANK=max(16, triton.next_power_of_2(max(1, rank))),
        LOW=low is not None, SCALE_COLUMNS=columns is not None, ROUND=step is not None, num_warps=warps,
    )  # fmt: skip
