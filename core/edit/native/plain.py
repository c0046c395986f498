"""What the fused kernels compute, in plain torch: on a CPU, without Triton, and to test them against.

Activations are rows [tokens, channels]. Outputs are given, and written to: FP8 ones hold value / step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from core.edit import lowbit
from core.edit.native.rounding import Attention, Rounding

FUSED_GELU = False
"""Whether `cublas.product` is there, for GELU in the product before it."""


def modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    out: Tensor,
    rounding: Rounding,
    add: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> None:
    """out = LayerNorm(x) * (1 + scale) + shift, rounded. add: (y, gate), x += y * gate comes first, in place.

    x, y [rows, width]; gate, shift, scale [width]; out [rows, width].
    """
    if add is not None:
        y, gate = add
        x.copy_(x.float() + gate.float() * y.float())
    normal = F.layer_norm(x.float(), x.shape[1:], eps=eps)
    out.copy_(_rounded(normal * (1 + scale.float()) + shift.float(), rounding, out.dtype))


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
    """Queries, keys and values ready for attention, of the product's columns x [rows, 3 * heads * dim].

    parts [3]: what the columns of each are multiplied by; norms [2, dim]: RMSNorm of queries and keys; cos, sin
    [rows, dim / 2] float32; mixes [2, dim, dim]: what rotated queries and keys are multiplied by; steps [3]: E4M3
    scales, None: not rounded. q, k, v [rows, heads, dim] are written. Without q there are no columns for it either;
    without v its columns stay unread.
    """
    _, count, width = k.shape
    first = 0 if q is not None else 1
    by_head = x.unflatten(-1, (3 - first, count, width))
    for index, out in enumerate((q, k, v)):
        if out is None:
            continue
        value = by_head[:, index - first].float() * parts[index]
        if index < 2:
            value = F.rms_norm(value, (width,), norms[index].float(), eps)
            real, imaginary = value[..., ::2], value[..., 1::2]
            c, s = cos[:, None, :], sin[:, None, :]
            value = torch.stack([real * c - imaginary * s, imaginary * c + real * s], -1).flatten(-2)
            if mixes is not None:
                value = value.to(mixes.dtype) @ mixes[index]
        out.copy_(_rounded(value, Rounding(None if steps is None else steps[index]), out.dtype))


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, attention: Attention) -> None:
    """Attention of q [rows, heads, dim] to k, v [others, heads, dim] into out [rows, heads * dim].

    Where they are FP8, by the scales of `attention`, so is the output. The softmax is not rounded.
    """
    dtype = torch.float32 if q.device.type == "cpu" else torch.bfloat16
    given = [q, k, v]
    if attention.steps is not None:
        given = [(x.float() * step).to(dtype) for x, step in zip(given, attention.steps, strict=True)]
    by_head = [x.transpose(0, 1)[None] for x in given]
    made = F.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2])
    out.copy_(_rounded(made[0].transpose(0, 1).flatten(1), Rounding(attention.out_step), out.dtype))


def gelu(x: Tensor, part: Tensor, out: Tensor, rounding: Rounding, *, activate: bool = True) -> None:
    """out = GELU(x * part), tanh's approximation, rounded; without `activate` only rounded. x, out [rows, n]."""
    value = x.float() * part
    if activate:
        value = F.gelu(value, approximate="tanh")
    out.copy_(_rounded(value, rounding, out.dtype))


def unpack_fp4(
    codes: Tensor,
    blocks: Tensor,
    scale: Tensor,
    out: Tensor,
    step: Tensor | None,
    columns: Tensor | None = None,
    low: tuple[Tensor, Tensor] | None = None,
) -> None:
    """An NVFP4 weight (`core.edit.lowbit`) into out [outputs, inputs], E4M3 by `step` or in a higher precision.

    low: ([rank, inputs], [outputs, rank]), whose product is added; columns [inputs]: multiplied with, after it.
    """
    value = lowbit.from_nvfp4(codes, blocks, scale, torch.float32)
    if low is not None:
        value = value + low[1].float() @ low[0].float()
    if columns is not None:
        value = value * columns.float()
    out.copy_(_rounded(value, Rounding(step), out.dtype))


def _rounded(value: Tensor, rounding: Rounding, dtype: torch.dtype) -> Tensor:
    if rounding.smooth is not None:
        value = value * rounding.smooth.float()
    if rounding.step is not None:
        value = (value / rounding.step).clamp(-lowbit.E4M3_MAX, lowbit.E4M3_MAX)
    return value.to(dtype)
