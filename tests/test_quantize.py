"""Injecting, solving and exporting, with the real ModelOpt on the embedded model and on single linears."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import small_checkpoints as small
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.edit import editor, lowbit, sampling
from core.edit.quantized import QUANT_FILE, Emulated, QuantLinear, hadamard_matrices, load_transformer
from core.errors import UsageError
from quant import quantize, solve
from quant.recipes import RECIPES, find_recipe

pytest.importorskip("modelopt")
CPU = torch.device("cpu")
VALUES = (".to_v", ".add_v_proj")


class Sample:
    """A step of an edit of a small picture: 32 tokens of noise and as many of the context."""

    def __init__(self, tiny: Any) -> None:
        picture = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
        with torch.inference_mode():
            context = editor.encode(tiny, F.interpolate(picture, scale_factor=16, mode="bicubic").clamp(-1, 1))
            given = editor.condition(tiny, context, "Make it night", 2.5)
        noise = sampling.make_noise(5, *context.shape[1:], like=context)
        latents = 0.5 * noise + 0.5 * given.context
        self.given = {
            "hidden_states": torch.cat([latents, given.context], 1), "encoder_hidden_states": given.prompt,
            "pooled_projections": given.pooled, "timestep": torch.tensor([0.5]), "img_ids": given.image_ids,
            "txt_ids": given.text_ids, "guidance": given.guidance, "return_dict": False,
        }  # fmt: skip

    def inputs(self) -> dict[str, Any]:
        return dict(self.given)


@pytest.fixture(params=list(RECIPES))
def injected(request, tiny):
    model = copy.deepcopy(tiny.transformer)
    quantize.inject(model, find_recipe(request.param), [Sample(tiny)], lambda *_: None)
    return request.param, model


class TestInjection:
    def test_every_linear_of_the_blocks_and_nothing_else(self, injected):
        """Format by module as the table in docs/quantization.md says; a LayerNorm never has a live quantizer."""
        precision, model = injected
        formats: Counter[str] = Counter()
        for name, module in model.named_modules():
            live = [
                part
                for part in ("weight_quantizer", "input_quantizer", "output_quantizer")
                if hasattr(module, part) and getattr(module, part).is_enabled
            ]
            inside = isinstance(module, nn.Linear) and "transformer_blocks." in name
            assert live == (["weight_quantizer", "input_quantizer"] if inside else []), name
            if inside:
                wanted = (4, 3) if precision == "fp8" or name.endswith(VALUES) else (2, 1)
                assert module.weight_quantizer.num_bits == module.input_quantizer.num_bits == wanted, name
                formats[str(wanted)] += 1
        assert sum(formats.values()) == small.LINEARS
        assert formats["(4, 3)"] == (small.LINEARS if precision == "fp8" else small.VALUES)

    def test_every_attention_has_its_three_inputs(self, injected):
        _, model = injected
        found = [m for m in model.modules() if hasattr(m, "q_bmm_quantizer")]
        assert len(found) == small.BLOCKS
        for module in found:
            for part in "qkv":
                quantizer = getattr(module, f"{part}_bmm_quantizer")
                assert quantizer.is_enabled
                assert quantizer.num_bits == (4, 3)
                assert float(quantizer.amax) > 0

    def test_exported_it_can_be_loaded_and_computes_nearly_the_same(self, injected, tmp_path, tiny):
        precision, model = injected
        facts = quantize.export(model, find_recipe(precision), tmp_path, {"note": 1}, lambda *_: None)
        assert facts == {"note": 1, "kept": {}}
        about = json.loads((tmp_path / QUANT_FILE).read_text())
        assert about["recipe"] == precision
        assert about["hadamard"] is True
        assert len(about["attention"]) == small.BLOCKS
        loaded = load_transformer(tmp_path, CPU, torch.float32, Emulated())
        packed = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantLinear)}
        assert {n for n, m in packed.items() if not m.is_fp4} == {
            n for n in packed if precision == "fp8" or n.endswith(VALUES)
        }
        given = Sample(tiny).inputs()
        with torch.inference_mode():
            error = relative(loaded(**given)[0], tiny.transformer(**given)[0])
        assert 1e-3 < error < (0.1 if precision == "fp8" else 0.4), "quantized, and no more than that"


def test_nothing_is_quantized_to_an_unknown_precision():
    with pytest.raises(UsageError, match="'fp16'; there is one for fp8, fp4, fp4-svd"):
        find_recipe("fp16")


def test_another_recipe_is_another_key():
    assert len({recipe.digest() for recipe in RECIPES.values()}) == 3


class TestHadamard:
    @pytest.mark.parametrize("size", [1, 32, 64, 128])
    def test_products_stay_what_they_were(self, size):
        """Exactly: the factors are powers of two and their product is the identity, in BF16 too."""
        query, key = hadamard_matrices(size)
        assert torch.equal(query.bfloat16().float(), query)
        assert torch.equal(query @ key.T, torch.eye(size))

    def test_a_large_channel_is_spread(self):
        x = torch.randn(512, 64, generator=torch.Generator().manual_seed(1))
        x[:, 3] *= 30
        query, _ = hadamard_matrices(64)
        assert float((x @ query).abs().amax() / (x @ query).std()) < float(x.abs().amax() / x.std()) / 1.5

    def test_a_head_of_another_size_is_an_error(self):
        with pytest.raises(ValueError, match="power of two, not a head of 96"):
            hadamard_matrices(96)


class TestSolve:
    """One linear on inputs as they are in a transformer: channels that go together, some far larger than others."""

    @pytest.fixture
    def given(self):
        generator = torch.Generator().manual_seed(7)
        mix = torch.randn(128, 128, generator=generator) / 12 + torch.eye(128)
        sizes = torch.exp(torch.randn(128, generator=generator))
        weight = torch.randn(96, 128, generator=generator) / 11
        inputs = [torch.randn(4096, 128, generator=generator) @ mix * sizes + 0.3 for _ in range(2)]
        return weight, torch.zeros(96), *inputs

    @staticmethod
    def solved(given: Any, *, fp4: bool, rank: int) -> tuple[float, float, solve.Solution]:
        """Output errors on inputs that were not solved for: (each value to its nearest by largest values, solved)."""
        weight, bias, seen, unseen = given
        z_amax = seen.abs().amax()
        if fp4:
            scale = z_amax / (6 * 448)
            q, q2 = (lowbit.round_nvfp4(x, scale) for x in (seen, unseen))
            plain = lowbit.round_nvfp4(weight, weight.abs().amax() / (6 * 448))
        else:
            q, q2 = (lowbit.round_e4m3(x, z_amax / 448) for x in (seen, unseen))
            plain = lowbit.round_e4m3(weight, weight.abs().amax() / 448)
        moments = solve.Moments(solve.PAIRS[bool(rank)])
        moments.add(seen, q)
        found = solve.solve(weight, bias, moments, fp4=fp4, rank=rank)
        exact = unseen @ weight.T
        ours = q2 @ found.weight.T + found.bias
        if found.up is not None and found.down is not None:
            ours = ours + unseen @ found.down.T @ found.up.T
        return relative(q2 @ plain.T, exact), relative(ours, exact), found

    def test_fp8_is_nearer_than_rounding(self, given):
        plain, ours, found = self.solved(given, fp4=False, rank=0)
        assert ours < 0.95 * plain  # inputs, which are not ours to choose, make most of it
        step = found.amax / 448
        assert torch.equal(lowbit.nearest_e4m3(found.weight / step) * step, found.weight), "values of the format"

    def test_fp4_is_nearer_than_rounding(self, given):
        plain, ours, found = self.solved(given, fp4=True, rank=0)
        assert ours < 0.85 * plain
        steps = solve.block_steps(found.block_amax, found.amax).repeat_interleave(16, -1)
        assert torch.equal(lowbit.nearest_e2m1(found.weight / steps) * steps, found.weight), "values of the format"

    def test_a_branch_brings_it_nearer_still(self, given):
        _, without, _ = self.solved(given, fp4=True, rank=0)
        _, ours, found = self.solved(given, fp4=True, rank=16)
        assert found.up.shape == (96, 16)
        assert found.down.shape == (16, 128)
        assert ours < 0.9 * without

    def test_reduced_rank_is_the_best_of_its_rank(self):
        """On whitened inputs it is the truncated SVD (Eckart-Young); on others it beats that."""
        generator = torch.Generator().manual_seed(2)
        weight, root = torch.randn(20, 30, generator=generator), torch.randn(30, 30, generator=generator)
        up, down = solve.reduced_rank(weight, torch.eye(30), 5)
        u, s, vh = torch.linalg.svd(weight)
        assert torch.allclose(up @ down, u[:, :5] * s[:5] @ vh[:5], atol=1e-4)
        moment = root @ root.T + 0.1 * torch.eye(30)
        up, down = solve.reduced_rank(weight @ moment, moment, 5)
        factor = torch.linalg.cholesky(moment)

        def loss(approximation: Tensor) -> float:
            return float(((weight - approximation) @ factor).norm())

        assert loss(up @ down) < 0.98 * loss(u[:, :5] * s[:5] @ vh[:5])

    def test_large_matrices_go_another_way_to_the_same(self, monkeypatch):
        generator = torch.Generator().manual_seed(3)
        decay = torch.diag(0.7 ** torch.arange(60.0))
        weight = torch.randn(60, 60, generator=generator) @ decay @ torch.randn(60, 60, generator=generator)
        exact = torch.matmul(*solve.reduced_rank(weight, torch.eye(60), 8))
        monkeypatch.setattr(solve, "EXACT_SVD", 10)
        assert relative(torch.matmul(*solve.reduced_rank(weight, torch.eye(60), 8)), exact) < 1e-2


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
