"""Shifts, scales and gates of all blocks, for all steps of an edit at once.

They depend on the timestep, the guidance and the pooled text alone, and a quarter of FLUX's weights are there to make
them: 6.4 GB in BF16, read at every step for a single row. With the timesteps known beforehand they are read once an
edit; FP4 weights are unpacked once, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.edit.native.rounding import Rounding
from core.edit.native.weights import FP8, Matrix


class Modulations:
    """The matrices that modulations come from, in the order in which a step uses them; `last` is of the output."""

    def __init__(self, matrices: Sequence[Matrix], last: nn.Linear) -> None:
        self.matrices, self.last = list(matrices), last
        self.widths = [matrix.outputs for matrix in self.matrices] + [last.out_features]
        known: dict[float, Rounding] = {}  # most see the same input by the same scale: it is rounded once
        for matrix in self.matrices:
            step = matrix.rounding.step
            if step is not None and matrix.rounding.smooth is None:
                matrix.rounding = known.setdefault(float(step), matrix.rounding)

    def table(self, ops: ModuleType, emb: Tensor) -> Tensor:
        """emb [timesteps, width], of time, guidance and pooled text, -> [timesteps, all columns]."""
        emb = F.silu(emb)
        out = emb.new_empty(len(emb), sum(self.widths))
        places = out.split(self.widths, 1)
        rounded: dict[int, Tensor] = {}
        for matrix, place in zip(self.matrices, places, strict=False):
            key = id(matrix.rounding)
            if key not in rounded:
                rounded[key] = round_rows(ops, emb, matrix.rounding)
            place.copy_(matrix(rounded[key]))
        places[-1].copy_(self.last(emb))
        return out

    def of(self, row: Tensor) -> list[Tensor]:
        """A row of the table by matrix; the output's comes last."""
        return list(row.split(self.widths))


def round_rows(ops: ModuleType, x: Tensor, rounding: Rounding) -> Tensor:
    """x [rows, n] as a product wants it: smoothed and in E4M3, or as it is."""
    if rounding.step is None:
        return x
    out = torch.empty_like(x, dtype=FP8)
    ops.gelu(x, torch.ones((), device=x.device), out, rounding, activate=False)
    return out
