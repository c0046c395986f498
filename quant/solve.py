"""The numbers of one quantized linear: scales, rounding and the low-rank branch that keep its output near the exact.

A linear should give W z + b. Quantized it gives V q + B A z + c, with q the rounded input and V of few values. From
the second moments of z and q over the calibration inputs:

1. W' = W E[z q'] E[q q']^-1, the exact matrix for the rounded input (ridge regression);
2. V: W' rounded column by column, each column's error carried into those not yet rounded (GPTQ,
   https://arxiv.org/abs/2210.17323), on scales chosen by the squared error they leave. NVFP4 blocks may map their
   largest value to 6 or to 4 (four over six, https://arxiv.org/abs/2512.02010) or clip it;
3. B A: reduced-rank regression of what V leaves on z (after SVDQuant, https://arxiv.org/abs/2411.05007), in turns
   with V;
4. c: what makes the mean of the output exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from core.edit import lowbit

DAMPING = 0.3
"""Of its own diagonal, and a hundredth of that of the mean one, added to a second moment before it is inverted.

Measured: 0.1 mends more of what it sees, less of what it does not (fp4: 2.5 dB of its worst edit); 1 too little.
"""
PAIRS = {False: (("z", "q"), ("q", "q")), True: (("z", "q"), ("q", "q"), ("z", "z"))}
"""Which second moments a linear with and without a low-rank branch is solved from."""
HEADROOM = 1.75
"""NVFP4 block scales may be this much above what maps the tensor's largest value to 6: room for 4 instead."""
FP4_SHRINK = (1.0, 1.5, 0.95, 0.9, 0.85, 0.8, 1.1, 1.2, 1.3)
"""A block's scale relative to the one that maps its largest value to 6; 1.5 maps it to 4."""
ROUNDS = 2
"""Turns between V and the low-rank branch."""
EXACT_SVD = 1536
"""Matrices with a side up to this are decomposed exactly, larger ones by a randomized method."""
COLUMNS = 128
"""GPTQ rounds this many columns before it updates the rest at once."""


@dataclass
class Moments:
    """Second moments of a linear's inputs as sums over tokens, float32: [in, in], and [in] of themselves."""

    pairs: Sequence[tuple[str, str]]
    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, z: Tensor, q: Tensor) -> None:
        """z, q: [tokens, in]: the input, and the same rounded."""
        self.count += len(z)
        given = {"z": z, "q": q}
        for name, value in given.items():
            self._sum(name, value.float().sum(0))
        for left, right in self.pairs:
            self._sum(left + right, _products(given[left], given[right]))

    def mean(self, name: str) -> Tensor:
        return self.sums[name] / self.count

    def moment(self, left: str, right: str) -> Tensor:
        """[in, in]. Not centred: means differ from edit to edit, and a bias that mends one spoils another."""
        return self.sums[left + right] / self.count

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


def _products(left: Tensor, right: Tensor) -> Tensor:
    """left' right in float32: [tokens, in] twice -> [in, in]. On a GPU from BF16 as it is, ten times as fast."""
    if left.is_cuda and left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.float().T @ right.float()


@dataclass
class Solution:
    """A linear's new numbers. `weight` [out, in] holds values of the format exactly; `block_amax` [out, in / 16] and
    `amax` are what ModelOpt derives its scales from; `down` [rank, in] and `up` [out, rank] the branch beside it."""

    weight: Tensor
    amax: Tensor
    bias: Tensor | None
    block_amax: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None


def solve(weight: Tensor, bias: Tensor | None, moments: Moments, *, fp4: bool, rank: int) -> Solution:
    """weight [out, in], bias [out] -> the quantized linear."""
    exact = weight.float()
    c_qq = moments.moment("q", "q")
    ridge = damping(c_qq)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(c_qq + ridge))
    known = (moments.moment("z", "q") + ridge) @ inverse  # z as q tells it; the ridge pulls towards z = q
    target = exact @ known
    c_qq = c_qq + ridge
    if not rank:
        found = _round(target, c_qq, fp4=fp4)
        return _with_bias(found, exact, bias, moments)
    c_zz = moments.moment("z", "z")
    c_zz = c_zz + damping(c_zz)
    branch = reduced_rank(exact @ c_zz, c_zz, rank)
    for _ in range(ROUNDS):
        up, down = (part.to(torch.bfloat16).float() for part in branch)
        found = _round(target - up @ (down @ known), c_qq, fp4=fp4)
        left = exact @ c_zz - found.weight @ (moments.moment("z", "q") + ridge).T
        branch = reduced_rank(left, c_zz, rank)
    found.up, found.down = (part.to(torch.bfloat16).float() for part in branch)
    return _with_bias(found, exact, bias, moments)


def damping(moment: Tensor) -> Tensor:
    diagonal = moment.diagonal()
    return torch.diag(DAMPING * (diagonal + 0.01 * diagonal.mean().clamp_min(1e-10)))


def reduced_rank(cross: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The map up @ down of a rank that minimises E|y - up down z|^2; cross = E[y z'] [out, in], moment = E[z z']."""
    root = torch.linalg.cholesky(moment)
    whitened = torch.linalg.solve_triangular(root.T, cross, upper=True, left=False)  # cross @ root^-T
    if min(cross.shape) <= EXACT_SVD:
        u, s, vh = torch.linalg.svd(whitened, full_matrices=False)
    else:
        with torch.random.fork_rng([cross.device] if cross.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(whitened, q=rank + 16, niter=4)
            vh = v.T
    size = s[:rank].sqrt()
    down = torch.linalg.solve_triangular(root, size[:, None] * vh[:rank], upper=False, left=False)
    return u[:, :rank] * size, down


def _with_bias(found: Solution, exact: Tensor, bias: Tensor | None, moments: Moments) -> Solution:
    if bias is not None:
        shift = exact @ moments.mean("z") - found.weight @ moments.mean("q")
        if found.up is not None and found.down is not None:
            shift = shift - found.up @ (found.down @ moments.mean("z"))
        found.bias = bias.float() + shift
    return found


def _round(target: Tensor, moment: Tensor, *, fp4: bool) -> Solution:
    """`target` rounded to a format, such that (target - V) q is small; moment: E[q q']."""
    importance = moment.diagonal()
    if fp4:
        amax, blocks = block_amaxes(target, importance)
        steps = block_steps(blocks, amax).repeat_interleave(lowbit.BLOCK, -1)
        return Solution(gptq(target, moment, steps, fp4=True), amax, None, blocks)
    amax = tensor_amax(target, importance)
    steps = (amax / lowbit.E4M3_MAX).expand_as(target)
    return Solution(gptq(target, moment, steps, fp4=False), amax, None)


def nearest(scaled: Tensor, *, fp4: bool) -> Tensor:
    return lowbit.nearest_e2m1(scaled) if fp4 else lowbit.nearest_e4m3(scaled)


def gptq(weight: Tensor, moment: Tensor, steps: Tensor, *, fp4: bool) -> Tensor:
    """weight [out, in] rounded to multiples `steps` [out, in] of the format's values. moment [in, in], positive."""
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    left, rounded = weight.clone(), torch.empty_like(weight)
    rows, columns = weight.shape
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        whole = weight.is_cuda and end - start == COLUMNS
        round_columns = _graphed(rows, weight.device, fp4) if whole else _round_columns
        values, errors = round_columns(left[:, start:end], steps[:, start:end], factor[start:end, start:end], fp4)
        rounded[:, start:end] = values
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded


def _round_columns(part: Tensor, steps: Tensor, square: Tensor, fp4: bool) -> tuple[Tensor, Tensor]:
    """GPTQ within some columns: part, steps [out, n], square [n, n] -> values, and errors for the columns behind.

    `part` is used up."""
    values, errors = torch.empty_like(part), torch.empty_like(part)
    for i in range(part.shape[1]):
        step = steps[:, i]
        value = nearest(part[:, i] / step, fp4=fp4) * step
        values[:, i] = value
        errors[:, i] = (part[:, i] - value) / square[i, i]
        part[:, i + 1 :] -= torch.outer(errors[:, i], square[i, i + 1 :])
    return values, errors


@cache
def _graphed(rows: int, device: torch.device, fp4: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """`_round_columns` of COLUMNS columns as a CUDA graph: launched one by one, its 1400 kernels take three times as
    long as they run. What it returns is overwritten by the next call."""
    with torch.inference_mode(False), torch.no_grad():
        part, steps = torch.ones(2, rows, COLUMNS, device=device)
        square = torch.eye(COLUMNS, device=device)
        stream = torch.cuda.Stream(device)  # warmed up apart, as torch.cuda.graph asks for
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            _round_columns(part, steps, square, fp4)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            values, errors = _round_columns(part, steps, square, fp4)

    def replay(*given: Tensor | bool) -> tuple[Tensor, Tensor]:
        for buffer, value in zip((part, steps, square), given, strict=False):
            buffer.copy_(value)
        graph.replay()
        return values, errors

    return replay


def block_steps(block_amax: Tensor, amax: Tensor) -> Tensor:
    """What a code of 1 is worth in each block [out, in / 16]: the E4M3 block scale times the tensor's scale."""
    scale = amax.float() / (lowbit.E2M1_MAX * lowbit.E4M3_MAX)
    blocks = (block_amax / lowbit.E2M1_MAX / scale).clamp(lowbit.SMALLEST_BLOCK_SCALE, lowbit.E4M3_MAX)
    return blocks.to(torch.float8_e4m3fn).float() * scale


def block_amaxes(weight: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor's amax, and of each block [out, in / 16] the one with the least squared error weighted by column."""
    grouped = weight.unflatten(-1, (-1, lowbit.BLOCK))
    columns = importance.unflatten(-1, (-1, lowbit.BLOCK))
    largest = grouped.abs().amax(-1).clamp_min(1e-12)
    amax = largest.amax() * HEADROOM
    best, least = largest, torch.full_like(largest, torch.inf)
    for shrink in FP4_SHRINK:
        blocks = (largest * shrink).clamp_max(amax)
        steps = block_steps(blocks, amax).unsqueeze(-1)
        error = ((nearest(grouped / steps, fp4=True) * steps - grouped).square() * columns).sum(-1)
        best, least = torch.where(error < least, blocks, best), torch.minimum(error, least)
    return amax, best


def tensor_amax(weight: Tensor, importance: Tensor) -> Tensor:
    """The amax of an E4M3 tensor with the least squared error weighted by column, over an octave and a half."""
    largest = weight.abs().amax().clamp_min(1e-12)
    candidates = [largest * 2.0 ** (-i / 8) for i in range(-8, 5)]
    errors = []
    for amax in candidates:
        step = amax / lowbit.E4M3_MAX
        errors.append(((nearest(weight / step, fp4=False) * step - weight).square() * importance).sum())
    best: Tensor = candidates[int(torch.stack(errors).argmin())]
    return best
