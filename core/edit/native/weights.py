"""Weights of a transformer's linears, put together and kept packed, and the products with them.

Linears that see the same input become one `Matrix`: queries, keys and values, and in single blocks what goes into the
MLP too. Their E4M3 weights keep a scale each: the product leaves it out, and whoever reads the columns next
multiplies.

A GPU before Blackwell has no FP4 products. An NVFP4 weight, low-rank branch and all, is unpacked into E4M3 right
before its product, into room that all layers share: inputs are then E4M3 too, finer than the checkpoint asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from core.edit import lowbit
from core.edit.native import cublas
from core.edit.native.rounding import Rounding
from core.edit.quantized import QuantLinear

FP8 = torch.float8_e4m3fn


class Unsupported(ValueError):
    """A checkpoint that mixes formats in a way that only the emulation computes."""


class Unpack(Protocol):
    """`plain.unpack_fp4` or the kernel of that name."""

    def __call__(
        self,
        codes: Tensor,
        blocks: Tensor,
        scale: Tensor,
        out: Tensor,
        step: Tensor | None,
        columns: Tensor | None = None,
        low: tuple[Tensor, Tensor] | None = None,
    ) -> None: ...


class Room:
    """Memory that one unpacked weight at a time lies in."""

    def __init__(self) -> None:
        self._bytes: Tensor | None = None

    def view(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        count = shape[0] * shape[1]
        if self._bytes is None or self._bytes.numel() < count:
            self._bytes = torch.empty(count, dtype=torch.uint8, device=device)
        return self._bytes[:count].view(FP8).view(shape)

    @property
    def bytes(self) -> int:
        return 0 if self._bytes is None else self._bytes.numel()


class Matrix:
    """What rows are multiplied by: [outputs, inputs] of one or several linears one after the other.

    rounding: what the rows must have gone through; parts [linears]: what each linear's columns of the product are
    multiplied by next; attention_step: the scale of the inputs that attention writes, where they are E4M3.
    """

    def __init__(
        self,
        linears: Sequence[Any],
        unpack: Unpack,
        room: Room,
        *,
        after_attention: tuple[int, Tensor | None] | None = None,
    ) -> None:
        """after_attention: how many inputs attention writes, and the scale of its values where it is FP8."""
        check(linears)
        self.unpack, self.room = unpack, room
        self.widths = [int(linear.weight.shape[0]) for linear in linears]
        device = linears[0].weight.device
        self.bias: Tensor | None = None
        self.whole_bias: Tensor | None = None
        self.rounding = Rounding()
        self.attention_step: Tensor | None = None
        self.scale = torch.ones((), device=device)
        self.parts = torch.ones(len(linears), device=device)
        self.scales: list[Tensor] = []
        self.packed: list[QuantLinear] = []
        self.columns: list[Tensor | None] = []
        self.weight: Tensor | None = None
        if isinstance(linears[0], QuantLinear):
            self._take_low(list(linears), after_attention)
        else:
            self.weight = _stacked([linear.weight.detach() for linear in linears])
            if linears[0].bias is not None:
                self.bias = self.whole_bias = _stacked([linear.bias.detach() for linear in linears])

    def _take_low(self, linears: list[QuantLinear], after_attention: tuple[int, Tensor | None] | None) -> None:
        first = linears[0]
        step = torch.stack([_input_step(linear) for linear in linears]).amax()
        smooth = first.pre_quant_scale
        columns: list[Tensor | None] = [_ratio(linear.pre_quant_scale, smooth) for linear in linears]
        self.attention_step = step
        width, of_values = after_attention or (0, None)
        if smooth is not None and of_values is not None:
            # cuDNN knows nothing of smoothing: the weight takes it, and values' own scale bounds their averages.
            self.attention_step = of_values
            if width == first.in_features:
                step, columns, smooth = of_values, [smooth.float()], None
            else:
                factor = torch.ones_like(smooth, dtype=torch.float32)
                factor[:width] = smooth[:width].float() * (of_values / step)
                columns, smooth = [factor], torch.cat([torch.ones_like(smooth[:width]), smooth[width:]])
        self.rounding = Rounding(step, smooth, step.reciprocal())
        if all(_is_ready(linear, column) for linear, column in zip(linears, columns, strict=True)):
            scales = [linear.weight_scale.float() for linear in linears]
            self.weight = _stacked([linear.weight for linear in linears])
        else:
            self.packed, self.columns = linears, columns
            scales = [self._step_of(linear, column) for linear, column in zip(linears, columns, strict=True)]
            self.room.view((sum(self.widths), linears[0].in_features), linears[0].weight.device)
        self.scales = [scale.clone() for scale in scales]  # each in a place of its own: cuBLAS wants them aligned
        if first.bias is not None:
            biases = [linear.bias.float() for linear in linears]  # type: ignore[union-attr]
            self.whole_bias = torch.cat(biases).to(torch.bfloat16)
            self.bias = self.whole_bias
        if len(linears) == 1:
            self.scale = self.scales[0]
            return
        self.parts = torch.stack(self.scales)
        if first.bias is not None:
            scaled = [bias / scale for bias, scale in zip(biases, scales, strict=True)]
            self.bias = torch.cat(scaled).to(torch.bfloat16)

    def _step_of(self, linear: QuantLinear, columns: Tensor | None) -> Tensor:
        """The E4M3 scale of a weight once it is unpacked: what its largest value asks for, or the one it has."""
        if _is_ready(linear, columns):
            return linear.weight_scale.float()
        out = torch.empty(linear.weight.shape[0], linear.in_features, device=linear.weight.device)
        self._unpack(linear, columns, out, None)
        return (out.abs().amax() / lowbit.E4M3_MAX).clamp_min(1e-12)

    def _unpack(self, linear: QuantLinear, columns: Tensor | None, out: Tensor, step: Tensor | None) -> None:
        if _is_ready(linear, columns):
            out.copy_(linear.weight)
            return
        a, b = linear.svdquant_lora_a, linear.svdquant_lora_b
        low = (a, b) if a is not None and b is not None else None
        if linear.weight_scale_2 is None:
            value = lowbit.from_e4m3(linear.weight, linear.weight_scale, torch.float32)
            value = value if low is None else value + low[1].float() @ low[0].float()
            value = value if columns is None else value * columns
            out.copy_(value if step is None else lowbit.to_e4m3(value, step))
            return
        self.unpack(linear.weight, linear.weight_scale, linear.weight_scale_2, out, step, columns, low)

    @property
    def outputs(self) -> int:
        return sum(self.widths)

    @property
    def is_low(self) -> bool:
        """Whether rows must come rounded to E4M3."""
        return self.rounding.step is not None

    def __call__(
        self, x: Tensor, step: Tensor | None = None, *, only: slice = slice(None), out: Tensor | None = None
    ) -> Tensor:
        """Rows [tokens, inputs] -> [tokens, outputs].

        step: the scale that the rows have, unless `rounding`'s; only: of these linears; out: contiguous, to write to.
        """
        rows = self._rows(only)
        bias = None if self.bias is None else self.bias[rows]
        weight = self._weight(only)
        scale = self.rounding.step if step is None else step
        if scale is None:
            return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
        y: Tensor = torch._scaled_mm(
            x, weight.t(), scale_a=scale, scale_b=self.scale, bias=bias,
            out_dtype=torch.bfloat16, use_fast_accum=True, out=out,
        )  # fmt: skip
        return y

    def gelu(self, x: Tensor, out: Tensor, rounding: Rounding, linear: int = 0) -> bool:
        """out = GELU of one linear's columns, rounded, all in the product.

        False where there is no such product: cuBLAS smooths nothing, and rounds only what was rounded already.
        """
        if rounding.smooth is not None or (rounding.step is not None and not self.is_low):
            return False
        low = self.is_low
        bias = None if self.whole_bias is None else self.whole_bias[self._rows(slice(linear, linear + 1))]
        return cublas.product(
            x, self._weight(slice(linear, linear + 1)), out, bias, gelu=True,
            scale_x=self.rounding.step if low else None, scale_weight=self.scales[linear] if low else None,
            out_inverse=rounding.inverse,
        )  # fmt: skip

    def _rows(self, only: slice) -> slice:
        first, last, _ = only.indices(len(self.widths))
        return slice(sum(self.widths[:first]), sum(self.widths[:last]))

    def _weight(self, only: slice) -> Tensor:
        """[outputs of these linears, inputs]; what is packed is unpacked into the room, over what was there."""
        rows = self._rows(only)
        if self.weight is not None:
            return self.weight[rows]
        weight = self.room.view((rows.stop - rows.start, self.packed[0].in_features), self.packed[0].weight.device)
        first = 0
        for index in range(*only.indices(len(self.packed))):
            last = first + self.widths[index]
            self._unpack(self.packed[index], self.columns[index], weight[first:last], self.scales[index])
            first = last
        return weight

    @property
    def bytes(self) -> int:
        own = [self.weight, self.bias, self.whole_bias, *self.columns]
        kept = [t for linear in self.packed for t in linear.buffers()]
        return sum(t.numel() * t.element_size() for t in (*own, *kept) if t is not None)


def check(linears: Sequence[Any]) -> None:
    """Raises Unsupported for linears that cannot be put together."""
    low = [linear for linear in linears if isinstance(linear, QuantLinear)]
    if len(low) not in (0, len(linears)):
        raise Unsupported("of the linears that share an input some are quantized and some are not")
    if len({linear.pre_quant_scale is None for linear in low}) > 1:
        raise Unsupported("of the linears that share an input some are smoothed and some are not")


def _is_ready(linear: QuantLinear, columns: Tensor | None) -> bool:
    """Whether a weight is multiplied by as it lies there: E4M3, and nothing to add or to scale."""
    return not linear.is_fp4 and linear.svdquant_lora_a is None and columns is None


def _input_step(linear: QuantLinear) -> Tensor:
    """E4M3's scale for the same largest value: NVFP4's is by 6 finer, for the scales of its blocks."""
    return linear.input_scale.float() * (lowbit.E2M1_MAX if linear.is_fp4 else 1.0)


def _ratio(own: Tensor | None, common: Tensor | None) -> Tensor | None:
    """What a weight's columns take so that its input may be smoothed by `common` instead of its own."""
    if own is None or common is None or torch.equal(own, common):
        return None
    return own.float() / common.float()


def _stacked(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype == FP8:
        return torch.cat([part.view(torch.uint8) for part in parts]).view(FP8)
    return torch.cat(parts)
