"""The GPU's step in plain torch, as far as a CPU goes: the same numbers as diffusers' modules and the emulation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
import small_checkpoints as small
import torch
from test_context import CPU, TOKENS, conditioning, error, latents, plain, steps

from core.edit import editor, lowbit
from core.edit.loading import load
from core.edit.models import find_spec, locate
from core.edit.native import plain as ops
from core.edit.native.flux import MOST_KNOWN
from core.edit.native.weights import Matrix, Room, Unsupported
from core.edit.quantized import Emulated, QuantLinear, load_transformer
from core.edit.runtimes import opening
from core.edit.runtimes.native_runtime import NativeRuntime
from core.edit.runtimes.torch_runtime import TorchRuntime

__all__ = ["conditioning", "latents"]  # fixtures

PRECISIONS = ("fp8", "fp4", "fp4-svd")


def transformer(precision: str, dtype: torch.dtype = torch.float32):
    folder = small.TINY if precision == "fp32" else small.source(precision)
    return load_transformer(folder, CPU, dtype, Emulated())


@pytest.fixture(scope="module")
def exact(conditioning, latents) -> torch.Tensor:
    return plain(TorchRuntime(transformer("fp32")), conditioning, latents)


def test_an_unquantized_step_is_diffusers_own(conditioning, latents, exact):
    assert error(plain(NativeRuntime(transformer("fp32"), "bf16"), conditioning, latents), exact) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_step_errs_no_more_than_the_emulated_one(precision, conditioning, latents, exact):
    """FP8 rounds the same values; FP4 has its inputs in E4M3, which is finer than the emulated NVFP4."""
    emulated = plain(TorchRuntime(transformer(precision), precision), conditioning, latents)
    made = plain(NativeRuntime(transformer(precision), precision), conditioning, latents)
    assert error(made, exact) < 1.05 * error(emulated, exact)
    if precision == "fp8":
        assert error(made, emulated) < error(emulated, exact)


@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_kept_keys_and_values_stand_in_for_the_context(precision, conditioning, latents):
    run = NativeRuntime(transformer(precision), precision)
    full, partial = steps(run, conditioning, latents, True, False)
    assert error(full, plain(run, conditioning, latents)) < 1e-6
    run = NativeRuntime(transformer(precision), precision)
    full, partial = steps(run, conditioning, latents, True, False)
    assert error(partial, full) < (1e-5 if precision == "fp32" else 2e-3)
    size = 4 if precision == "fp32" else 1
    assert run.kept_bytes == small.BLOCKS * 2 * TOKENS * 4 * 64 * size
    other = replace(conditioning, context=torch.roll(conditioning.context, 1, dims=1))
    with torch.inference_mode():  # what is kept matters
        predict = run.begin(other, keep_context=True)
        predict(latents, torch.tensor([500.0]), True)
        assert error(predict(latents, torch.tensor([500.0]), False), full) > 2e-2
    plain(run, conditioning, latents)
    assert run.kept_bytes == 0


def test_a_step_without_context_before_a_full_one_is_an_error(conditioning, latents):
    run = NativeRuntime(transformer("fp32"), "bf16")
    with pytest.raises(RuntimeError, match="first step"):
        steps(run, conditioning, latents, False)


def test_edits_of_two_shapes_take_turns(conditioning, latents):
    """Each shape has its tensors in one place; what an earlier edit left there does not show."""
    run = NativeRuntime(transformer("fp32"), "bf16")
    half = replace(
        conditioning, context=conditioning.context[:, ::2],
        image_ids=torch.cat([conditioning.image_ids[:TOKENS:2], conditioning.image_ids[TOKENS::2]]),
    )  # fmt: skip
    other = replace(conditioning, context=-conditioning.context, pooled=-conditioning.pooled)
    first = plain(run, conditioning, latents)
    expected = plain(NativeRuntime(transformer("fp32"), "bf16"), half, latents[:, ::2])
    assert error(plain(run, half, latents[:, ::2]), expected) < 1e-6
    assert error(plain(run, other, latents), first) > 1e-2
    assert torch.equal(plain(run, conditioning, latents), first)
    run.release()
    assert torch.equal(plain(run, conditioning, latents), first)


@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_steps_that_are_known_beforehand_are_the_same(precision, conditioning, latents):
    """What depends on the timestep alone is computed at once for all; and an edit of fewer steps takes the place."""
    run = NativeRuntime(transformer(precision), precision)
    given = [torch.tensor([each]) for each in (900.0, 500.0, 100.0)]
    with torch.inference_mode():
        expected = [run.begin(conditioning)(latents, each, True) for each in given]
        assert error(expected[0], expected[1]) > 0.02
        for count in (3, 2, 3):
            known = replace(conditioning, timesteps=torch.cat(given[:count]))
            predict = run.begin(known)
            for timestep, wanted in reversed(list(zip(given[:count], expected, strict=False))):
                assert error(predict(latents, timestep, True), wanted) < (1e-5 if precision == "fp32" else 2e-2)
        assert predict(latents, torch.tensor([900.5]), True).isnan().all()  # not another step's picture
        many = run.begin(replace(conditioning, timesteps=torch.linspace(1000, 1, MOST_KNOWN + 1)))
        assert torch.equal(many(latents, given[0], True), expected[0])  # too many to keep: step by step


def test_an_edit_tells_its_timesteps(monkeypatch):
    model = load(find_spec("kontext-tiny"), locate(find_spec("kontext-tiny")), CPU)
    run, asked = NativeRuntime(transformer("fp32"), "bf16"), []
    begin = run.begin
    monkeypatch.setattr(run, "begin", lambda conditioning, **more: asked.append(conditioning) or begin(conditioning))
    how = {"seed": 1, "steps": 4, "guidance": 2.5}
    made, _ = editor.edit_latents(model, run, torch.zeros(1, 3, 64, 64), "make it night", **how)
    wanted, _ = editor.edit_latents(
        model, TorchRuntime(model.transformer), torch.zeros(1, 3, 64, 64), "make it night", **how
    )
    assert asked[0].timesteps.shape == (4,)
    assert error(made, wanted) < 1e-4


def test_no_mode_of_torch_is_asked_for(conditioning, latents):
    """Edits begin outside of inference mode, and denoise in it."""
    run = NativeRuntime(transformer("fp32"), "bf16")
    first = run.begin(conditioning)(latents, torch.tensor([500.0]), True)
    predict = run.begin(conditioning)
    with torch.inference_mode():
        assert torch.equal(predict(latents, torch.tensor([500.0]), True), first)
    assert torch.equal(run.begin(conditioning)(latents, torch.tensor([500.0]), True), first)


@pytest.mark.parametrize("precision", ["fp32", "fp8", "fp4-svd"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gelu", lambda *a, **k: (ops.gelu(*a, **k), a[2].copy_((a[2].float() * 0.5).to(a[2].dtype)))),
        ("modulate", lambda x, shift, scale, out, *a: ops.modulate(x, scale, shift, out, *a)),
        ("attend", lambda q, k, v, out, attention: ops.attend(k, k, v, out, attention)),
        ("heads", lambda x, p, n, cos, sin, *a: ops.heads(x, p, n, torch.ones_like(cos), torch.zeros_like(sin), *a)),
        ("heads", lambda *a, **k: None),
        ("heads", lambda *a, **k: 1 / 0),
    ],
    ids=["half of it", "exchanged", "keys twice", "no places", "nothing written", "cannot run"],
)
def test_kernels_that_compute_something_else_are_left_out(precision, name, wrong, conditioning, latents):
    broken = ModuleType("broken")
    vars(broken).update({each: getattr(ops, each) for each in dir(ops)} | {name: wrong})
    run = NativeRuntime(transformer(precision), precision, ops=broken)
    assert "compiled kernels cannot be used here" in run.caveat
    assert error(plain(run, conditioning, latents), plain(sound(precision), conditioning, latents)) < 1e-6


@cache
def sound(precision: str) -> NativeRuntime:
    same = ModuleType("same")
    vars(same).update({each: getattr(ops, each) for each in dir(ops)})
    run = NativeRuntime(transformer(precision), precision, ops=same)
    assert run.caveat == ""
    return run


def test_a_batch_is_refused(conditioning, latents):
    run = NativeRuntime(transformer("fp32"), "bf16")
    with pytest.raises(ValueError, match="of one edit, not of 2"):
        run.begin(replace(conditioning, context=conditioning.context.repeat(2, 1, 1)))


def test_a_checkpoint_of_mixed_formats_is_left_as_it_is():
    model = transformer("fp8")
    attention = model.single_transformer_blocks[3].attn
    attention.to_k = torch.nn.Linear(256, 256)
    with pytest.raises(Unsupported, match="share an input"):
        NativeRuntime(model, "fp8")
    assert model.single_transformer_blocks[0].attn.to_k.weight.shape == (256, 256)
    assert isinstance(opening.open_transformer(model, "fp8"), TorchRuntime)


def test_weights_stay_packed():
    """A byte a weight in FP8, half of one and a sixteenth in FP4, with room to unpack the largest."""
    sizes = {each: NativeRuntime(transformer(each, torch.bfloat16), each).weight_bytes for each in ("fp8", "fp4")}
    packed = sum(m.weight.numel() for m in transformer("fp8").modules() if isinstance(m, QuantLinear))
    outside = sizes["fp8"] - packed
    largest = (3 * 256 + 4 * 256) * 256  # what goes into a single block
    assert 0 < outside < 0.3 * packed
    assert sizes["fp4"] - outside - largest == pytest.approx(packed * 9 / 16, rel=0.06)


# ---------------------------------------------------------------- products


def e4m3(outputs: int, inputs: int = 64, *, bias: bool = True, largest: float = 4.0, rank: int = 0) -> QuantLinear:
    weight = torch.randn(outputs, inputs)
    scale = weight.abs().max() / lowbit.E4M3_MAX
    tensors = {
        "weight": lowbit.to_e4m3(weight, scale), "weight_scale": scale,
        "input_scale": torch.tensor(largest / lowbit.E4M3_MAX),
    }  # fmt: skip
    if rank:
        tensors |= {"svdquant_lora_a": torch.randn(rank, inputs), "svdquant_lora_b": torch.randn(outputs, rank) / 8}
    return QuantLinear(tensors | ({"bias": torch.randn(outputs)} if bias else {}), Emulated())


def nvfp4(outputs: int, inputs: int = 64, *, smooth: torch.Tensor | None = None, rank: int = 0) -> QuantLinear:
    weight = torch.randn(outputs, inputs)
    scale = weight.abs().max() / (lowbit.E4M3_MAX * lowbit.E2M1_MAX)
    codes, blocks = lowbit.to_nvfp4(weight, scale)
    tensors = {
        "weight": codes, "weight_scale": blocks, "weight_scale_2": scale,
        "input_scale": torch.tensor(4.0 / lowbit.E4M3_MAX / lowbit.E2M1_MAX), "bias": torch.randn(outputs),
    }  # fmt: skip
    if smooth is not None:
        tensors |= {"pre_quant_scale": smooth, "input_scale": tensors["input_scale"] * smooth.max()}
    if rank:
        tensors |= {"svdquant_lora_a": torch.randn(rank, inputs), "svdquant_lora_b": torch.randn(outputs, rank) / 8}
    return QuantLinear(tensors, Emulated())


def exactly(linear: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """The product with the weights as they are stored and inputs that are not rounded, in float32."""
    scale = linear.pre_quant_scale
    x = x.float() if scale is None else x.float() * scale.float()
    weight = linear.arithmetic.weight(linear, x)
    if linear.svdquant_lora_a is not None:
        weight = weight + linear.svdquant_lora_b.float() @ linear.svdquant_lora_a.float()
    y = x @ weight.t()
    return y if linear.bias is None else y + linear.bias.float()


def rounded(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
    ops.gelu(x, torch.ones(()), out, matrix.rounding, activate=False)
    return out


def columns(matrix: Matrix, product: torch.Tensor) -> list[torch.Tensor]:
    """Of each linear, with what its reader multiplies by."""
    return [y.float() * part for y, part in zip(product.split(matrix.widths, 1), matrix.parts, strict=True)]


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(40, 64).clamp(-4, 4)


@pytest.mark.parametrize("bias", [True, False])
def test_one_e4m3_linear_is_the_emulated_one(x, bias):
    linear = e4m3(48, bias=bias)
    matrix = Matrix([linear], ops.unpack_fp4, Room())
    # BF16 holds 8 bits of the result; a value at a tie may go to the other neighbour.
    assert error(matrix(rounded(matrix, x)), linear(x)) < 1e-2


@pytest.mark.parametrize(
    "linears",
    [
        lambda: [e4m3(32), e4m3(48), e4m3(16)],
        lambda: [nvfp4(32), nvfp4(48), e4m3(16)],
        lambda: [nvfp4(32, rank=8), nvfp4(48, rank=8)],
        lambda: [e4m3(32, rank=8), nvfp4(48)],
        lambda: [nvfp4(32, smooth=torch.rand(64) + 0.5, rank=8), nvfp4(16, smooth=torch.rand(64) + 0.5, rank=8)],
    ],
    ids=["e4m3", "fp4 and e4m3", "low rank", "low rank beside e4m3", "smoothed apart"],
)
def test_linears_put_together_are_each_their_own(x, linears):
    made = linears()
    matrix = Matrix(made, ops.unpack_fp4, Room())
    x8 = rounded(matrix, x)
    for linear, y in zip(made, columns(matrix, matrix(x8)), strict=True):
        assert error(y, exactly(linear, x)) < 0.06  # E4M3's own error, of inputs and of unpacked weights
    for index, linear in enumerate(made):
        some = matrix(x8, only=slice(index, index + 1))
        assert error(some.float() * matrix.parts[index], exactly(linear, x)) < 0.06


def test_an_e4m3_weight_among_packed_ones_is_not_rounded_again(x):
    values = e4m3(48)
    values.weight_scale = values.weight_scale * 1.7  # as a refinement leaves it: its largest value is not 448
    values.weight = (values.weight.float() / 1.7).to(torch.float8_e4m3fn)
    matrix = Matrix([nvfp4(32), values], ops.unpack_fp4, Room())
    x8 = rounded(matrix, x)
    exact = (x8.float() * matrix.rounding.step) @ (values.weight.float() * values.weight_scale).t() + values.bias
    assert error(columns(matrix, matrix(x8))[1], exact) < 5e-3


@pytest.mark.parametrize("width", [64, 32], ids=["all", "half"])
def test_smoothing_after_attention_moves_into_the_weight(x, width):
    """Attention writes value / its own scale, and smooths nothing."""
    linear = nvfp4(48, smooth=torch.rand(64) * 3 + 0.1, rank=8)
    of_values = torch.tensor(5.0 / lowbit.E4M3_MAX)
    matrix = Matrix([linear], ops.unpack_fp4, Room(), after_attention=(width, of_values))
    assert torch.equal(matrix.attention_step, of_values)
    x8 = rounded(matrix, x)
    x8[:, :width] = lowbit.to_e4m3(x[:, :width], of_values)
    assert error(matrix(x8), exactly(linear, x)) < 0.06


def test_the_room_is_shared_and_grows():
    room = Room()
    small_one, large = Matrix([nvfp4(16)], ops.unpack_fp4, room), Matrix([nvfp4(80)], ops.unpack_fp4, room)
    assert room.bytes == 80 * 64
    x = torch.randn(8, 64)
    first = small_one(rounded(small_one, x))
    large(rounded(large, x))
    assert torch.equal(small_one(rounded(small_one, x)), first)


def test_a_product_clips_what_calibration_did_not_see():
    matrix = Matrix([e4m3(16, bias=False)], ops.unpack_fp4, Room())
    assert matrix(rounded(matrix, torch.full((1, 64), 1e6))).isfinite().all()
