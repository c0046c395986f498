"""FP8 products on the hardware's kernels, here a CPU's, against the emulated ones; compiled blocks against plain."""

from __future__ import annotations

import pytest
import torch
from small_checkpoints import TINY

from core.edit import lowbit
from core.edit.native import Native, compile_blocks, fastest_attention, use_own_attention
from core.edit.quantized import Emulated, QuantLinear, load_transformer

CPU = torch.device("cpu")


def e4m3_layer(arithmetic, *, inputs: int, outputs: int, bias: bool) -> QuantLinear:
    weight = torch.randn(outputs, inputs)
    scale = weight.abs().max() / lowbit.E4M3_MAX
    tensors = {
        "weight": lowbit.to_e4m3(weight, scale), "weight_scale": scale, "input_scale": torch.tensor(4.0 / 448),
    }  # fmt: skip
    return QuantLinear(tensors | ({"bias": torch.randn(outputs)} if bias else {}), arithmetic)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (2, 7), (3,)], ids=str)
def test_a_product_of_fp8_kernels_is_the_emulated_one(shape, bias):
    torch.manual_seed(0)
    layer = e4m3_layer(Native(), inputs=64, outputs=48, bias=bias)
    x = torch.randn(*shape, 64, dtype=torch.bfloat16)
    made = layer(x)
    layer.arithmetic = Emulated()
    expected = layer(x.float())
    assert made.shape == (*shape, 48)
    assert made.dtype == torch.bfloat16
    # BF16 holds 8 bits of the result; a value at a tie may go to the other neighbour.
    assert (made.float() - expected).norm() / expected.norm() < 1e-2


def test_a_product_clips_what_calibration_did_not_see():
    layer = e4m3_layer(Native(), inputs=16, outputs=16, bias=False)
    assert layer(torch.full((1, 16), 1e6, dtype=torch.bfloat16)).isfinite().all()


def test_own_attention_and_compiled_blocks_change_nothing():
    """One compilation serves all blocks of a kind: dynamo gives up after eight."""
    torch.manual_seed(0)
    plain = load_transformer(TINY, CPU, torch.float32, Emulated())
    inputs = {
        "hidden_states": torch.randn(1, 32, plain.config.in_channels),
        "encoder_hidden_states": torch.randn(1, 8, plain.config.joint_attention_dim),
        "pooled_projections": torch.randn(1, plain.config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]), "guidance": torch.tensor([2.5]),
        "img_ids": torch.zeros(32, 3), "txt_ids": torch.zeros(8, 3), "return_dict": False,
    }  # fmt: skip
    with torch.inference_mode():
        expected = plain(**inputs)[0]
        use_own_attention(plain)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compile_blocks(plain)
        with fastest_attention():
            found = plain(**inputs)[0]
    assert (found - expected).norm() / expected.norm() < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
