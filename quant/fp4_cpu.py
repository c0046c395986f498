"""ModelOpt's dynamic block quantization (NVFP4) where its CUDA kernel is not: on a CPU, in plain torch.

ModelOpt 0.47 asserts a CUDA tensor there. The arithmetic is `core.edit.lowbit`'s: E2M1 values, an E4M3 scale a block
of 16, a float32 scale a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.edit import lowbit

_NVFP4 = (16, 4, 2, 8, 4)
"""block size, bits and exponent bits of a value, bits and exponent bits of a block's scale"""


def fake_nvfp4(x: Tensor, amax: Tensor) -> Tensor:
    """x rounded to NVFP4 and back; amax: of the tensor, float32 scalar. In slices, to bound the memory it takes."""
    scale = amax.float().amax() / (lowbit.E2M1_MAX * lowbit.E4M3_MAX)
    rows = x.reshape(-1, x.shape[-1])
    parts = [lowbit.round_nvfp4(part, scale) for part in rows.split(max(1, 2**24 // max(1, x.shape[-1])))]
    return torch.cat(parts).view_as(x) if parts else x


def install() -> None:
    """Give ModelOpt a CPU form of the op; tensors on a GPU and other formats go on to its own."""
    from modelopt.torch.quantization import tensor_quant

    own: Callable[..., Tensor] = tensor_quant.dynamic_block_quantize_op
    if getattr(own, "on_cpu", False):
        return

    def quantize(inputs: Tensor, block_size: int, amax: Tensor | None, *formats: Any) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return inputs  # float8 tensors break the tracer; the graph gets its nodes from the op's symbolic
        if inputs.is_cuda or amax is None or (block_size, *formats) != _NVFP4:
            return own(inputs, block_size, amax, *formats)
        return fake_nvfp4(inputs, amax)

    quantize.on_cpu = True  # type: ignore[attr-defined]
    tensor_quant.dynamic_block_quantize_op = quantize
