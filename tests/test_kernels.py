"""Triton's kernels, run by its interpreter on a CPU, against what `plain` says they compute.

Outputs are float32 where a GPU has BF16 or E4M3: the interpreter cuts BF16 off instead of rounding, and gets E4M3
wrong where rounding carries into the exponent.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from core.edit import lowbit

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    # Triton reads the variable when a kernel is defined, and torch's own compiler must not see it.
    def test_kernels_in_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

else:
    from torch.nn import functional as F

    from core.edit.native import kernels, plain, vae
    from core.edit.native.rounding import Rounding

    FP8 = torch.float8_e4m3fn

    @pytest.fixture(autouse=True)
    def _seed():
        torch.manual_seed(0)

    def agree(made: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(made, expected, rtol=2e-5, atol=2e-5)

    def outputs(*shape: int) -> list[torch.Tensor]:
        """Poisoned: what a kernel does not write shows."""
        return [torch.full(shape, float("nan")) for _ in range(2)]

    @pytest.mark.parametrize("low", [False, True])
    @pytest.mark.parametrize("smooth", [False, True])
    @pytest.mark.parametrize("add", [False, True])
    @pytest.mark.parametrize("shape", [(5, 48), (3, 256)], ids=str)
    def test_modulate(shape, add, smooth, low):
        rows, width = shape
        x, y = (torch.randn(rows, width) for _ in "xy")
        shift, scale, gate = (torch.randn(width) for _ in range(3))
        rounding = Rounding(torch.tensor(0.01) if low else None, torch.rand(width) + 0.5 if smooth else None)
        found, expected = outputs(*shape)
        xs = [x.clone(), x.clone()]
        for ops, own, out in ((kernels, xs[0], found), (plain, xs[1], expected)):
            ops.modulate(own, shift, scale, out, rounding, (y, gate) if add else None)
        agree(found, expected)
        agree(xs[0], xs[1])
        assert torch.equal(xs[0], x) != add

    def test_modulate_clips_what_calibration_did_not_see():
        found, _ = outputs(2, 32)
        x = torch.randn(2, 32)
        big = torch.full((32,), 1e4)
        kernels.modulate(x, big, big, found, Rounding(torch.tensor(1e-3)))
        assert found.abs().max() == lowbit.E4M3_MAX

    @pytest.mark.parametrize("mixed", [False, True])
    @pytest.mark.parametrize("low", [False, True])
    @pytest.mark.parametrize("wanted", ["qkv", "kv", "qk"])
    def test_heads(wanted, low, mixed):
        rows, count, dim = 7, 6, 32
        columns = (3 if "q" in wanted else 2) * count * dim
        x = torch.randn(rows, columns + 16)[:, :columns]  # columns of a wider product
        norms = torch.rand(2, dim) + 0.5
        angles = torch.rand(rows, dim // 2) * 6
        steps = torch.tensor([0.01, 0.02, 0.03]) if low else None
        mixes = torch.randn(2, dim, dim) / dim**0.5 if mixed else None
        parts = torch.tensor([0.5, 2.0, 1.5])
        made = list(zip(*(outputs(rows, count, dim) for _ in "qkv"), strict=True))
        for ops, three in zip((kernels, plain), made, strict=True):
            given = [out if name in wanted else None for name, out in zip("qkv", three, strict=True)]
            ops.heads(x, parts, norms, angles.cos(), angles.sin(), steps, mixes, *given)
        for name, found, expected in zip("qkv", *made, strict=True):
            if name in wanted:
                agree(found, expected)
            else:
                assert found.isnan().all()

    @pytest.mark.parametrize("activate", [False, True])
    @pytest.mark.parametrize("low", [False, True])
    def test_gelu_into_a_slice(low, activate):
        x = (3 * torch.randn(6, 80))[:, 16:]
        rounding = Rounding(torch.tensor(0.02), torch.rand(64) + 0.5) if low else Rounding()
        wide = outputs(6, 96)
        for ops, out in zip((kernels, plain), wide, strict=True):
            ops.gelu(x, torch.tensor(0.7), out[:, 32:], rounding, activate=activate)
        agree(wide[0][:, 32:], wide[1][:, 32:])
        assert wide[0][:, :32].isnan().all()

    @pytest.mark.parametrize("low", [False, True])
    @pytest.mark.parametrize("columns", [False, True])
    @pytest.mark.parametrize("rank", [0, 16, 24])
    def test_unpack_fp4(rank, columns, low):
        weight = torch.randn(40, 160)
        scale = weight.abs().max() / (lowbit.E4M3_MAX * lowbit.E2M1_MAX)
        codes, blocks = lowbit.to_nvfp4(weight, scale)
        factors = torch.rand(160) + 0.5 if columns else None
        branch = (torch.randn(rank, 160), torch.randn(40, rank)) if rank else None
        found, expected = outputs(40, 160)
        step = torch.tensor(0.05) if low else None
        for ops, out in ((kernels, found), (plain, expected)):
            ops.unpack_fp4(codes, blocks, scale, out, step, factors, branch)
        agree(found, expected)

    def test_all_sixteen_codes():
        codes = torch.arange(16, dtype=torch.uint8).repeat(2)[None]
        packed, blocks = lowbit.pack_e2m1(codes), torch.ones(1, 2).to(FP8)
        out = torch.full((1, 32), float("nan"))
        kernels.unpack_fp4(packed, blocks, torch.tensor(1.0), out, None)
        assert torch.equal(out, lowbit.from_e2m1(codes))

    @pytest.mark.parametrize(
        ("channels", "groups", "size"), [(32, 8, (5, 7)), (48, 16, (64, 40)), (128, 32, (70, 30))]
    )
    def test_norm_and_silu(channels, groups, size):
        x = (5 * torch.randn(3, channels, *size) + 30 * torch.randn(3, channels, 1, 1)).contiguous(
            memory_format=torch.channels_last
        )
        weight, bias = torch.randn(channels), torch.randn(channels)
        found = vae.norm_silu(x, weight, bias, groups, 1e-6)
        expected = F.silu(F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6))
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=5e-5)
