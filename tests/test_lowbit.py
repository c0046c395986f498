"""The low-bit number formats, held against ml_dtypes' (every code) and ModelOpt's own rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.edit import lowbit

ml_dtypes = pytest.importorskip("ml_dtypes")


def values(kind: str) -> torch.Tensor:
    """All finite values of a format, ascending, zero once."""
    codes = np.arange(16 if kind == "float4_e2m1fn" else 256, dtype=np.uint8)
    found = codes.view(getattr(ml_dtypes, kind)).astype(np.float32)
    return torch.from_numpy(np.unique(found[np.isfinite(found)] + 0.0))


@pytest.mark.parametrize(
    ("kind", "nearest"), [("float8_e4m3fn", lowbit.nearest_e4m3), ("float4_e2m1fn", lowbit.nearest_e2m1)]
)
class TestNearest:
    def test_every_value_is_itself(self, kind, nearest):
        every = values(kind)
        assert torch.equal(nearest(every), every)

    def test_everything_between_goes_to_the_nearer_and_ties_to_even(self, kind, nearest):
        every = values(kind)
        low, high = every[:-1], every[1:]
        for share in (0.01, 0.25, 0.49, 0.5, 0.51, 0.75, 0.99):
            x = low + (high - low) * share
            theirs = x.numpy().astype(getattr(ml_dtypes, kind)).astype(np.float32)
            assert np.array_equal(nearest(x).numpy(), theirs), share

    def test_it_clips(self, kind, nearest):
        largest = float(values(kind).max())
        assert nearest(torch.tensor([1e6, -1e6, largest * 1.5])).tolist() == [largest, -largest, largest]

    def test_random_numbers(self, kind, nearest):
        x = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 3
        largest = float(values(kind).max())
        theirs = x.clamp(-largest, largest).numpy().astype(getattr(ml_dtypes, kind)).astype(np.float32)
        assert np.array_equal(nearest(x).numpy(), theirs)


def test_codes_are_those_of_the_standard():
    codes = torch.arange(16, dtype=torch.uint8)
    theirs = codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(lowbit.from_e2m1(codes).numpy(), theirs)
    assert np.array_equal(np.abs(lowbit.from_e2m1(lowbit.to_e2m1(lowbit.from_e2m1(codes))).numpy()), np.abs(theirs))


def test_packing_is_undone():
    codes = torch.randint(0, 16, (5, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    packed = lowbit.pack_e2m1(codes)
    assert packed.shape == (5, 32)
    assert torch.equal(packed[:, 0], codes[:, 0] | codes[:, 1] << 4)  # the first code in the low half
    assert torch.equal(lowbit.unpack_e2m1(packed), codes)


class TestNvfp4:
    def test_what_it_can_say_it_says_exactly(self):
        """Blocks of E2M1 values times an E4M3 number, the largest of each block being 6."""
        generator = torch.Generator().manual_seed(3)
        grid = lowbit.from_e2m1(torch.randint(0, 16, (8, 4, 16), generator=generator, dtype=torch.uint8))
        grid[..., 0] = 6.0
        x = (grid * torch.tensor([0.5, 1.0, 20.0, 448.0])[:, None]).flatten(1)
        assert torch.equal(lowbit.round_nvfp4(x, torch.tensor(1.0)), x)

    def test_a_block_of_zeros_stays_zero(self):
        assert torch.equal(lowbit.round_nvfp4(torch.zeros(2, 32), torch.tensor(1e-3)), torch.zeros(2, 32))

    def test_the_error_is_the_formats(self):
        """Normal numbers in blocks of 16: 9 to 10 % of their norm, as for any E2M1 with exact enough block scales."""
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
        back = lowbit.round_nvfp4(x, x.abs().amax() / (6 * 448))
        assert 0.08 < float((back - x).norm() / x.norm()) < 0.105

    def test_blocks_are_their_own(self):
        """A large value spoils its own block of 16 and no other."""
        x = torch.full((1, 32), 0.01)
        x[0, 0] = 100.0
        back = lowbit.round_nvfp4(x, torch.tensor(100.0 / (6 * 448)))
        assert back[0, 1] == 0
        assert back[0, 16:] == pytest.approx(0.01, rel=0.2)

    def test_modelopt_rounds_alike(self):
        """Weights as ModelOpt packs them, unpacked by us."""
        pytest.importorskip("modelopt")
        from modelopt.torch.quantization.qtensor import NVFP4QTensor

        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(5))
        theirs, blocks, scale = NVFP4QTensor.quantize(x, 16)
        packed, own_blocks = lowbit.to_nvfp4(x, scale.float())
        assert torch.equal(own_blocks.float(), blocks.float())
        same = lowbit.unpack_e2m1(packed) == lowbit.unpack_e2m1(theirs._quantized_data)
        assert float(same.float().mean()) > 0.999  # ties between two codes are broken either way
