"""Number formats of quantized models, in plain torch: E4M3 per tensor, and NVFP4 (E2M1 in blocks of 16).

They run on any device and say what the arithmetic of a quantized layer is; fast kernels must agree with them.
E4M3 and E2M1: OCP MX specification 1.0. NVFP4: a float32 scale a tensor, an E4M3 scale a block of 16 values.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX = 448.0
E2M1_MAX = 6.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = 16
SMALLEST_BLOCK_SCALE = 2.0**-9
"""The smallest positive E4M3: a block scale of 0 would lose the block."""

# Half way between neighbours. At a tie the code with an even last bit wins, as everywhere in IEEE 754.
_MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def nearest_e4m3(x: Tensor) -> Tensor:
    """float32 x rounded to the nearest E4M3 value, clipped at +-448; the same as a cast and back, and faster."""
    x = x.clamp(-E4M3_MAX, E4M3_MAX)
    exponent = (x.view(torch.int32) & 0x7F800000).clamp_min((127 - 6) << 23)  # below 2**-6 steps no longer shrink
    step = (exponent - (3 << 23)).view(torch.float32)  # three bits of mantissa
    return torch.round(x / step) * step


def nearest_e2m1(x: Tensor) -> Tensor:
    """float32 x rounded to the nearest E2M1 value, clipped at +-6."""
    x = x.clamp(-E2M1_MAX, E2M1_MAX)
    exponent = (x.view(torch.int32) & 0x7F800000).clamp_min(127 << 23)  # below 1 steps no longer shrink
    step = (exponent - (1 << 23)).view(torch.float32)  # one bit of mantissa
    return torch.round(x / step) * step


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale rounded to float8_e4m3fn, clipped at +-448. scale: a scalar, or of a shape that broadcasts."""
    return (x.float() / scale.float()).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def from_e4m3(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float8_e4m3fn values times their scale, in `dtype`."""
    return (x.float() * scale.float()).to(dtype)


def round_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """x as it comes back from E4M3: what a quantizer in a graph does to an activation."""
    return (nearest_e4m3(x.float() / scale.float()) * scale.float()).to(x.dtype)


def to_e2m1(x: Tensor) -> Tensor:
    """Codes 0..15 (uint8; bit 3 is the sign) of the nearest E2M1 values; beyond +-6 the code of +-6."""
    size = x.abs()
    midpoints = _MIDPOINTS.to(device=x.device, dtype=x.dtype)
    code = torch.bucketize(size, midpoints, right=False)
    # bucketize sends a tie down; the upper neighbour has the even code where the lower one is odd.
    tie = size == midpoints[code.clamp(max=len(_MIDPOINTS) - 1)]
    code = code + (tie & (code % 2 == 1)).to(code.dtype)
    return (code + 8 * (x < 0)).to(torch.uint8)


def from_e2m1(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of E2M1 codes."""
    values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device=codes.device, dtype=dtype)
    return values[codes.long()]


def pack_e2m1(codes: Tensor) -> Tensor:
    """Two codes a byte along the last axis, the first in the low half: [..., n] -> [..., n / 2] uint8."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """The inverse of `pack_e2m1`."""
    codes: Tensor = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    return codes


def block_scales(x: Tensor, scale: Tensor) -> Tensor:
    """The E4M3 scale of each block of 16 along the last axis, such that its largest value becomes 6.

    x [..., n] -> [..., n / 16] float8_e4m3fn. scale: the tensor's, float32, amax / (6 * 448) by convention.
    """
    largest: Tensor = x.float().unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    return (largest / E2M1_MAX / scale.float()).clamp(SMALLEST_BLOCK_SCALE, E4M3_MAX).to(torch.float8_e4m3fn)


def to_nvfp4(x: Tensor, scale: Tensor, blocks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes packed two a byte [..., n / 2] and the block scales they belong to (`block_scales` unless given)."""
    blocks = block_scales(x, scale) if blocks is None else blocks
    steps = (blocks.float() * scale.float()).unsqueeze(-1)  # the rounded scales: what a reader multiplies by
    codes = to_e2m1(x.float().unflatten(-1, (-1, BLOCK)) / steps)
    return pack_e2m1(codes.flatten(-2)), blocks


def from_nvfp4(packed: Tensor, blocks: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., n / 2] packed codes, [..., n / 16] block scales and the tensor's scale -> [..., n] values."""
    values = from_e2m1(unpack_e2m1(packed)).unflatten(-1, (-1, BLOCK))
    scaled: Tensor = values * (blocks.float() * scale.float()).unsqueeze(-1)
    return scaled.flatten(-2).to(dtype)


def round_nvfp4(x: Tensor, scale: Tensor) -> Tensor:
    """x as it comes back from NVFP4 with block scales of its own: dynamic quantization of an activation."""
    steps = (block_scales(x, scale).float() * scale.float()).unsqueeze(-1)
    rounded: Tensor = nearest_e2m1(x.float().unflatten(-1, (-1, BLOCK)) / steps) * steps
    return rounded.flatten(-2).to(x.dtype)
