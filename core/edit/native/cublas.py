"""Products by cuBLASLt through NVIDIA's own Python bindings (`nvmath-python`), where they are installed.

torch asks cuBLASLt for the same products, but not for GELU and a rounded output in one, nor for one that is written
into a slice of a wider tensor. In a step of FLUX.1 Kontext [dev] that saves a pass over 12,288 channels a block.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORKSPACE_BYTES = 32 << 20
"""As much as NVIDIA advises for Hopper, and torch takes."""
ALIGNMENT = 256
"""Of pointers in bytes, that cuBLAS takes for granted unless it is told otherwise."""


@cache
def is_installed() -> bool:
    return importlib.util.find_spec("nvmath") is not None


def product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None,
    *,
    gelu: bool = False,
    scale_x: Tensor | None = None,
    scale_weight: Tensor | None = None,
    out_inverse: Tensor | None = None,
) -> bool:
    """out = x @ weight.T + bias, then GELU (tanh's approximation), on a GPU. False where cuBLAS has no such product.

    x [rows, inputs], weight [outputs, inputs], out [rows, outputs], each with any distance between rows; bias
    [outputs] BF16. E4M3 operands are multiplied by their scales (float32 scalars), an E4M3 output by `out_inverse`.
    """
    operands = [t for t in (x, weight, out, bias) if t is not None]
    shape = (
        *x.shape, len(weight), x.stride(0), weight.stride(0), out.stride(0), x.dtype, out.dtype, bias is not None,
        gelu, all(t.data_ptr() % ALIGNMENT == 0 for t in operands), x.device.index or 0,
    )  # fmt: skip
    if shape not in _plans:
        _plans[shape] = _plan(*shape)
    plan = _plans[shape]
    if plan is None:
        return False
    pointers = {
        "A_SCALE_POINTER": scale_weight, "B_SCALE_POINTER": scale_x, "D_SCALE_POINTER": out_inverse,
        "BIAS_POINTER": bias,
    }  # fmt: skip
    from nvmath.bindings import cublasLt

    try:
        plan.run(x, weight, out, pointers)
    except cublasLt.cuBLASLtError:  # found by the heuristics, and refused: versions differ in what they can
        if plan.ran:
            raise
        _plans[shape] = None
        return False
    plan.ran = True
    return True


_plans: dict[Any, _Plan | None] = {}


@dataclass
class _Plan:
    """A described product of one shape and the algorithm that cuBLAS' heuristics name first: always the same bits."""

    handle: int
    description: int
    layouts: tuple[int, int, int, int]
    algorithm: Any
    workspace: Tensor
    one: Any
    zero: Any
    ran: bool = False

    def run(self, x: Tensor, weight: Tensor, out: Tensor, pointers: dict[str, Tensor | None]) -> None:
        from nvmath.bindings import cublasLt

        for name, tensor in pointers.items():
            if tensor is not None:
                _set(self.description, name, tensor.data_ptr(), np.int64)
        a, b, c, d = self.layouts
        unread = 0 if out.dtype == torch.float8_e4m3fn else out.data_ptr()  # it would be of another type than out
        cublasLt.matmul(
            self.handle, self.description, self.one.ctypes.data, weight.data_ptr(), a, x.data_ptr(), b,
            self.zero.ctypes.data, unread, c, out.data_ptr(), d, self.algorithm.ctypes.data,
            self.workspace.data_ptr(), self.workspace.numel(), torch.cuda.current_stream(x.device).cuda_stream,
        )  # fmt: skip


@cache
def _handle(device: int) -> tuple[int, Tensor]:
    from nvmath.bindings import cublasLt

    with torch.cuda.device(device):
        return cublasLt.create(), torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


def _set(description: int, name: str, value: int, kind: Any) -> None:
    from nvmath.bindings import cublasLt

    held = np.array([value], dtype=kind)
    attribute = cublasLt.MatmulDescAttribute[name]
    cublasLt.matmul_desc_set_attribute(description, attribute, held.ctypes.data, held.nbytes)


def _plan(
    rows: int, inputs: int, outputs: int, x_stride: int, weight_stride: int, out_stride: int, dtype: torch.dtype,
    out_dtype: torch.dtype, has_bias: bool, gelu: bool, aligned: bool, device: int,
) -> _Plan | None:  # fmt: skip
    """cuBLAS counts by columns: what is computed is out's transpose, weight times x's transpose."""
    from nvmath import CudaDataType
    from nvmath.bindings import cublasLt
    from nvmath.bindings.cublas import ComputeType

    kinds = {torch.bfloat16: CudaDataType.CUDA_R_16BF, torch.float8_e4m3fn: CudaDataType.CUDA_R_8F_E4M3}
    kind, bf16 = kinds[dtype], CudaDataType.CUDA_R_16BF
    handle, workspace = _handle(device)
    description = cublasLt.matmul_desc_create(ComputeType.COMPUTE_32F, CudaDataType.CUDA_R_32F)
    _set(description, "TRANSA", 1, np.int32)
    _set(description, "FAST_ACCUM", int(dtype == torch.float8_e4m3fn), np.int8)
    epilogue = {
        (False, False): cublasLt.Epilogue.DEFAULT, (True, False): cublasLt.Epilogue.BIAS,
        (False, True): cublasLt.Epilogue.GELU, (True, True): cublasLt.Epilogue.GELU_BIAS,
    }[has_bias, gelu]  # fmt: skip
    _set(description, "EPILOGUE", epilogue, np.int32)
    # The heuristics ask for pointers that are not null, and for nothing else of them.
    if has_bias:
        _set(description, "BIAS_DATA_TYPE", bf16, np.int32)
        _set(description, "BIAS_POINTER", workspace.data_ptr(), np.int64)
    for name, scaled in (("A_SCALE_POINTER", dtype), ("B_SCALE_POINTER", dtype), ("D_SCALE_POINTER", out_dtype)):
        if scaled == torch.float8_e4m3fn:
            _set(description, name, workspace.data_ptr(), np.int64)
    layouts = (
        cublasLt.matrix_layout_create(kind, inputs, outputs, weight_stride),
        cublasLt.matrix_layout_create(kind, inputs, rows, x_stride),
        cublasLt.matrix_layout_create(bf16, outputs, rows, out_stride),
        cublasLt.matrix_layout_create(kinds[out_dtype], outputs, rows, out_stride),
    )
    preference = cublasLt.matmul_preference_create()
    limits: dict[str, tuple[int, Any]] = {"MAX_WORKSPACE_BYTES": (workspace.numel(), np.uint64)}
    if not aligned:
        limits |= {f"MIN_ALIGNMENT_{operand}_BYTES": (16, np.uint32) for operand in "ABCD"}
    for name, (value, kind_of) in limits.items():
        held = np.array([value], dtype=kind_of)
        attribute = cublasLt.MatmulPreferenceAttribute[name]
        cublasLt.matmul_preference_set_attribute(preference, attribute, held.ctypes.data, held.nbytes)
    found = np.zeros(1, dtype=cublasLt.matmul_heuristic_result_dtype)
    count = np.zeros(1, dtype=np.int32)
    with suppress(cublasLt.cuBLASLtError):  # "not supported"
        cublasLt.matmul_algo_get_heuristic(
            handle, description, *layouts, preference, 1, found.ctypes.data, count.ctypes.data
        )
    cublasLt.matmul_preference_destroy(preference)
    if not count[0]:
        return None
    one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
    return _Plan(handle, description, layouts, found["algo"].copy(), workspace, one, zero)
