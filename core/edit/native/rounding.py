"""How values are rounded on their way into a product or into attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    """What a matrix asks of its input. step: its E4M3 scale (float32 scalar), None where it is not rounded, and its
    inverse; smooth: [in], what each channel is multiplied by before."""

    step: Tensor | None = None
    smooth: Tensor | None = None
    inverse: Tensor | None = None

    def part(self, channels: slice) -> Rounding:
        """The same for some of the channels."""
        return self if self.smooth is None else Rounding(self.step, self.smooth[channels], self.inverse)


@dataclass(frozen=True)
class Attention:
    """Scales of one attention; all None where it is computed in BF16.

    steps [3]: E4M3's of queries, keys and values; mixes [2, dim, dim]: what rotated queries and keys are multiplied
    by before; out_step: E4M3's of the output (float32 scalar), and its inverse.
    """

    steps: Tensor | None = None
    mixes: Tensor | None = None
    out_step: Tensor | None = None
    out_inverse: Tensor | None = None
