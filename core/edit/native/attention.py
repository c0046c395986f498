"""Attention on a GPU: cuDNN's, in FP8 or BF16, through NVIDIA's own Python package where it is installed.

cuDNN writes into a slice of a wider tensor, and in FP8 with the scale that the next product wants. Without the
package (`nvidia-cudnn-frontend`, 1.14 or newer) attention is BF16, by torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.edit.native.rounding import Attention

FP8 = torch.float8_e4m3fn
SOFTMAX_SCALE = 448.0
"""Of the softmax's numerators, at most 1, before they are rounded to E4M3."""
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


def has_cudnn() -> bool:
    """Whether cuDNN can be asked directly; only then attention can be FP8."""
    return importlib.util.find_spec("cudnn") is not None


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, attention: Attention) -> None:
    """As `plain.attend`, on a GPU; q and k contiguous, v and out with any distance between tokens."""
    if has_cudnn():
        plan = _plan(q.dtype, *q.shape, len(k), v.stride(0), out.stride(0), q.device.index or 0)
        plan.run(q, k, v, out, attention)
        return
    with sdpa_kernel(BACKENDS, set_priority=True):  # cuDNN first: half the time of flash attention at 8,704 tokens
        made = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        )
    out.unflatten(-1, q.shape[1:]).copy_(made[0].transpose(0, 1))


@dataclass
class _Plan:
    """A compiled cuDNN graph for one shape."""

    graph: Any
    handle: Any
    tensors: dict[str, Any]
    workspace: Tensor
    constants: dict[str, Tensor]

    def run(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, attention: Attention) -> None:
        import cudnn

        cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
        given = {"q": q, "k": k, "v": v, "o": out}
        steps, inverse = attention.steps, attention.out_inverse
        if steps is not None and inverse is not None:
            given |= {"descale_q": steps[0], "descale_k": steps[1], "descale_v": steps[2], "scale_o": inverse}
            given |= self.constants
        pack = {self.tensors[name]: tensor.data_ptr() for name, tensor in given.items()}
        self.graph.execute(pack, self.workspace.data_ptr(), handle=self.handle)


@cache
def _handle(device: int) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _plan(
    dtype: torch.dtype, rows: int, heads: int, width: int, others: int, v_stride: int, out_stride: int, device: int
) -> _Plan:
    import cudnn

    fp8 = dtype == FP8
    kind = cudnn.data_type.FP8_E4M3 if fp8 else cudnn.data_type.BFLOAT16
    real = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=kind, intermediate_data_type=real, compute_data_type=real, handle=_handle(device)
    )

    def operand(name: str, count: int, stride: int) -> Any:  # [tokens, heads, dim] as cuDNN's [B, heads, tokens, dim]
        return graph.tensor(
            name=name, dim=[1, heads, count, width], stride=[count * stride, width, stride, 1], data_type=kind
        )

    def scalar(name: str) -> Any:
        return graph.tensor(name=name, dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=real)

    full = heads * width
    tensors = {"q": operand("q", rows, full), "k": operand("k", others, full), "v": operand("v", others, v_stride)}
    constants: dict[str, Tensor] = {}
    if fp8:
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        scalars = {name: scalar(name) for name in names}
        out, _, amax_s, amax_o = graph.sdpa_fp8(
            **tensors, **scalars, attn_scale=width**-0.5, generate_stats=False, use_causal_mask=False,
            name="attention",
        )  # fmt: skip
        for amax in (amax_s, amax_o):
            amax.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(real)
        tensors |= scalars | {"amax_s": amax_s, "amax_o": amax_o}
        with torch.cuda.device(device):
            constants = {
                "scale_s": torch.tensor([SOFTMAX_SCALE], device="cuda"),
                "descale_s": torch.tensor([1 / SOFTMAX_SCALE], device="cuda"),
                "amax_s": torch.zeros(1, device="cuda"), "amax_o": torch.zeros(1, device="cuda"),
            }  # fmt: skip
    else:
        out, _ = graph.sdpa(
            **tensors, attn_scale=width**-0.5, generate_stats=False, use_causal_mask=False, name="attention"
        )
    out.set_output(True).set_dim([1, heads, rows, width]).set_stride([rows * out_stride, width, out_stride, 1])
    out.set_data_type(kind)
    tensors["o"] = out
    graph.build([cudnn.heur_mode.A])
    workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=f"cuda:{device}")
    return _Plan(graph, _handle(device), tensors, workspace, constants)
