"""The VAE's GroupNorm and SiLU as one, over channels-last pictures.

torch's GroupNorm reads and writes channels first: beside convolutions that want them last, each of the forty norms
transposes twice what is 270 MB at a megapixel, and SiLU passes over it once more. Here it is read twice and written
once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 0.02
"""The largest relative error to torch's own; rounding to BF16 makes 0.003."""
PROGRAMS = 512
"""That sum up a picture, a few for each multiprocessor."""
TILE = 8192
"""Numbers a program has at once."""


class NormThenSiLU(nn.Module):
    """SiLU of a GroupNorm, with its parameters under its names."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.num_groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        here = x.is_cuda and not torch.is_grad_enabled()  # the kernels have no gradients
        if here and x.is_contiguous(memory_format=torch.channels_last):
            return norm_silu(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.silu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


def quicken(vae: Any) -> bool:
    """Put `NormThenSiLU` into diffusers' AutoencoderKL, in place; False, and nothing done, where it does not compute
    what torch does."""
    if not _agrees(vae.decoder.conv_norm_out):
        return False
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D) and isinstance(module.nonlinearity, nn.SiLU):
            module.norm1, module.norm2 = NormThenSiLU(module.norm1), NormThenSiLU(module.norm2)
            module.nonlinearity = nn.Identity()
    for module in (vae.encoder, vae.decoder):
        if isinstance(module.conv_act, nn.SiLU):
            module.conv_norm_out, module.conv_act = NormThenSiLU(module.conv_norm_out), nn.Identity()
    return True


@torch.inference_mode()
def _agrees(norm: nn.GroupNorm) -> bool:
    made = torch.randn(2, norm.num_channels, 37, 29, generator=torch.Generator().manual_seed(0))
    x = made.to(norm.weight.device, norm.weight.dtype).contiguous(memory_format=torch.channels_last)
    expected = F.silu(norm(x)).float()
    try:
        found = norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps).float()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # whatever a compiler raises on a GPU that it does not know
        return False
    return bool((found - expected).norm() <= LIMIT * expected.norm())


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """x [N, C, H, W], channels last, -> the same shape and order."""
    count, channels, height, width = x.shape
    rows = height * width
    block = triton.next_power_of_2(channels)
    tile = max(1, TILE // block)
    programs = min(triton.cdiv(PROGRAMS, count), triton.cdiv(rows, tile))
    sums = torch.empty(count, programs, 2, channels, dtype=torch.float32, device=x.device)
    factors = torch.empty(count, 2, channels, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    size = channels // groups
    with torch.cuda.device_of(x):  # kernels go where torch stands, not where their tensors are
        _sums[(programs, count)](x, sums, rows, channels, programs, ROWS=tile, BLOCK=block)
        _factors[(groups, count)](
            x, sums, weight, bias, factors, rows, channels, size, programs, eps,
            ROWS=64, BLOCK=triton.next_power_of_2(size),
        )  # fmt: skip
        _apply[(triton.cdiv(rows, tile), count)](x, factors, out, rows, channels, ROWS=tile, BLOCK=block)
    return out


@triton.jit
def _sums(x, sums, rows, channels, programs, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of x and of its square by channel, less the first row: means may be far from 0."""
    program = tl.program_id(0)
    x += tl.program_id(1).to(tl.int64) * rows * channels
    sums += (tl.program_id(1) * programs + program) * 2 * channels
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < channels
    pivot = tl.load(x + column, inside, 0.0).to(tl.float32)
    first = tl.zeros((1, BLOCK), tl.float32)
    second = tl.zeros((1, BLOCK), tl.float32)
    start = program * ROWS
    while start < rows:
        row = (start + tl.arange(0, ROWS))[:, None].to(tl.int64)
        here = inside & (row < rows)
        value = tl.load(x + row * channels + column, here, 0.0).to(tl.float32)
        value = tl.where(here, value - pivot, 0.0)
        first += tl.sum(value, 0)[None, :]
        second += tl.sum(value * value, 0)[None, :]
        start += programs * ROWS
    tl.store(sums + column, first, inside)
    tl.store(sums + channels + column, second, inside)


@triton.jit
def _factors(
    x, sums, weight, bias, factors, rows, channels, size, programs, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A channel's factor and summand, of its group's mean and variance."""
    part = tl.arange(0, BLOCK)
    column = tl.program_id(0) * size + part
    x += tl.program_id(1).to(tl.int64) * rows * channels
    sums += tl.program_id(1) * programs * 2 * channels
    factors += tl.program_id(1) * 2 * channels
    inside = part < size
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < programs:
        row = (start + tl.arange(0, ROWS))[:, None]
        here = inside[None, :] & (row < programs)
        first += tl.sum(tl.load(sums + row * 2 * channels + column[None, :], here, 0.0), 0)
        second += tl.sum(tl.load(sums + (row * 2 + 1) * channels + column[None, :], here, 0.0), 0)
        start += ROWS
    pivot = tl.load(x + column, inside, 0.0).to(tl.float32)
    means = tl.where(inside, pivot + first / rows, 0.0)
    mean = tl.sum(means, 0) / size
    away = means - mean
    variances = second / rows - (first / rows) * (first / rows) + away * away
    deviation = tl.sqrt(tl.sum(tl.where(inside, variances, 0.0), 0) / size + eps)
    factor = tl.load(weight + column, inside, 0.0).to(tl.float32) / deviation
    tl.store(factors + column, factor, inside)
    tl.store(factors + channels + column, tl.load(bias + column, inside, 0.0).to(tl.float32) - mean * factor, inside)


@triton.jit
def _apply(x, factors, out, rows, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    here = (column < channels) & (row < rows)
    at = tl.program_id(1).to(tl.int64) * rows * channels + row * channels + column
    factors += tl.program_id(1) * 2 * channels
    factor = tl.load(factors + column, column < channels, 0.0)
    summand = tl.load(factors + channels + column, column < channels, 0.0)
    value = tl.load(x + at, here, 0.0).to(tl.float32) * factor + summand
    value *= tl.sigmoid(value)
    tl.store(out + at, value.to(out.dtype.element_ty), here)
