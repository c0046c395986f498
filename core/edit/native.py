"""Low-bit arithmetic on the GPU's own kernels: E4M3 products in FP8 tensor cores, attention by cuDNN.

FP8 products take the checkpoint's static scales, so that rounding an input is a few operations that `torch.compile`
puts into whatever made it. NVFP4 has no tensor cores before Blackwell: its weights stay packed in memory and become
BF16 a layer at a time. Attention is BF16, nearer to the exact one than what the checkpoint's scales promise.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.edit import lowbit
from core.edit.quantized import AttentionProcessor, AttentionScales, Emulated, QuantLinear
from core.edit.runtimes import FIRST_WITH_FP8

BLOCKS = ("transformer_blocks", "single_transformer_blocks")
WORTH_COMPILING = 1 << 30
"""Bytes of weights. kontext-tiny's twenty megabytes compile for 17 s, to win 7 ms a step."""
SHAPES = 64
"""Numbers of tokens that a block may be compiled for; kontext-dev has nine."""


class Native(Emulated):
    """Products on FP8 tensor cores where a layer is E4M3; layers in NVFP4 as `Emulated` rounds them."""

    rounds_attention = False

    def product(self, x: Tensor, layer: QuantLinear) -> Tensor:
        if layer.is_fp4:
            return super().product(x, layer)
        # Multiplied, not divided: what a kernel does. At a tie it may round to the other neighbour.
        scaled = (x.float() * layer.input_scale.reciprocal()).clamp(-lowbit.E4M3_MAX, lowbit.E4M3_MAX)
        rounded = scaled.to(torch.float8_e4m3fn).flatten(0, -2)
        y = torch._scaled_mm(
            rounded, layer.weight.t(), scale_a=layer.input_scale, scale_b=layer.weight_scale,
            bias=None if layer.bias is None else layer.bias.to(x.dtype), out_dtype=x.dtype, use_fast_accum=True,
        )  # fmt: skip
        return y.view(*x.shape[:-1], -1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scales: AttentionScales | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def serves(device: torch.device) -> bool:
    """Whether a device has FP8 tensor cores."""
    if device.type != "cuda":
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor >= FIRST_WITH_FP8


def use_own_attention(transformer: Any) -> None:
    """Put our attention into an unquantized transformer: diffusers' is one that compilers break at."""
    for module in transformer.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(AttentionProcessor(Native(), None))


def compile_blocks(transformer: Any) -> None:
    """Compile a transformer's blocks in place: one compilation of a double and one of a single block serve them all.

    Ten to twenty seconds at the first step of each picture shape; torch keeps what it compiled on disk.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for name in BLOCKS:
        for block in getattr(transformer, name):
            block.compile(dynamic=False)


def can_compile() -> bool:
    """Whether blocks are compiled on a GPU: where Triton and a C compiler are, unless KONTEXT_TUI_COMPILE is 0."""
    wanted = os.environ.get("KONTEXT_TUI_COMPILE", "1") != "0"
    return (
        wanted and importlib.util.find_spec("triton") is not None and bool(shutil.which("cc") or shutil.which("gcc"))
    )


def speed_up(transformer: Any) -> None:
    """Make a transformer on a GPU fast, in place. On a CPU it stays what it is, bit for bit."""
    if transformer.device.type != "cuda":
        return
    if not any(isinstance(module, QuantLinear) for module in transformer.modules()):
        use_own_attention(transformer)
    if can_compile() and weight_bytes(transformer) >= WORTH_COMPILING:
        compile_blocks(transformer)


def weight_bytes(transformer: Any) -> int:
    return sum(t.numel() * t.element_size() for t in (*transformer.parameters(), *transformer.buffers()))


@contextmanager
def fastest_attention() -> Iterator[None]:
    """cuDNN's attention first: at 8,704 tokens on an H100 it takes half the time of flash attention."""
    order = [
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
    ]  # fmt: skip
    with sdpa_kernel(order, set_priority=True):
        yield
