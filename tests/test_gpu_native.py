"""What only a GPU shows of its step: kernels, products, attention against plain torch; recorded steps against not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_checkpoints as small
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from core.edit import lowbit, native
from core.edit.native import plain
from core.edit.native.rounding import Attention, Rounding
from core.edit.quantized import Emulated, hadamard_matrices, load_transformer
from core.edit.runtimes.native_runtime import NativeRuntime
from core.edit.sampling import Conditioning

GPU = torch.device("cuda:0")
FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not native.serves(GPU) or not native.can_compile(),
    reason="no GPU with FP8, or nothing to compile with",
)


def error(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made.float() - expected.float()).norm() / expected.float().norm())


def randn(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(*shape, device=GPU).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), device=GPU).to(dtype)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [FP8, BF16])
@pytest.mark.parametrize("width", [256, 3072])
def test_modulate(width, dtype):
    from core.edit.native import kernels

    x, y = randn(333, width), randn(333, width)
    shift, scale, gate = (randn(width) for _ in range(3))
    rounding = Rounding(torch.tensor(0.02, device=GPU)) if dtype == FP8 else Rounding()
    made = []
    for ops in (kernels, plain):
        own, out = x.clone(), poisoned(333, width, dtype=dtype)
        ops.modulate(own, shift, scale, out, rounding, (y, gate))
        made.append((own, out))
    assert torch.equal(made[0][0], made[1][0])
    assert error(made[0][1], made[1][1]) < 2e-3


@pytest.mark.parametrize("dtype", [FP8, BF16])
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (24, 128)])
def test_heads(heads, dim, dtype):
    from core.edit.native import kernels

    rows, low = 333, dtype == FP8
    x = randn(rows, 7 * heads * dim)[:, : 3 * heads * dim]
    angles = torch.rand(rows, dim // 2, device=GPU) * 6
    given = (
        x, torch.tensor([1.0, 0.5, 2.0], device=GPU), randn(2, dim), angles.cos(), angles.sin(),
        torch.full((3,), 0.02, device=GPU) if low else None,
        torch.stack(hadamard_matrices(dim)).to(GPU, BF16) if low else None,
    )  # fmt: skip
    made = [[poisoned(rows, heads, dim, dtype=dtype) for _ in "qkv"] for _ in "ab"]
    kernels.heads(*given, *made[0])
    plain.heads(*given, *made[1])
    for found, expected in zip(*made, strict=True):  # plain torch rounds what is mixed to BF16 before E4M3
        assert error(found, expected) < (0.02 if low else 5e-3)
    q, k = (poisoned(rows, heads, dim, dtype=dtype) for _ in "qk")
    kernels.heads(*given, q, k, None)  # values stay where the product wrote them
    assert torch.equal(q.view(torch.uint8), made[0][0].view(torch.uint8))
    assert torch.equal(k.view(torch.uint8), made[0][1].view(torch.uint8))


def test_unpack_fp4():
    from core.edit.native import kernels

    weight = randn(768, 3072, dtype=torch.float32)
    scale = weight.abs().max() / (lowbit.E4M3_MAX * lowbit.E2M1_MAX)
    codes, blocks = lowbit.to_nvfp4(weight, scale)
    low = (randn(32, 3072), randn(768, 32) / 8)
    found, expected = (poisoned(768, 3072, dtype=FP8) for _ in "ab")
    kernels.unpack_fp4(codes, blocks, scale, found, torch.tensor(0.1, device=GPU), None, low)
    plain.unpack_fp4(codes, blocks, scale, expected, torch.tensor(0.1, device=GPU), None, low)
    assert error(found, expected) < 5e-3


@pytest.mark.parametrize("shape", [(1, 128, 1024, 1024), (1, 512, 130, 77), (5, 64, 33, 31)], ids=str)
def test_norm_and_silu(shape):
    from core.edit.native import vae

    x = (randn(*shape) * 3 + 20 * randn(shape[0], shape[1], 1, 1)).contiguous(memory_format=torch.channels_last)
    weight, bias = randn(shape[1]), randn(shape[1])
    found = vae.norm_silu(x, weight, bias, 32, 1e-6)
    expected = F.silu(F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-6))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, expected) < 5e-3


def test_the_vae_keeps_its_pictures_in_one_order():
    """Every norm but attention's is the fused one, and the picture is torch's own."""
    from core.edit import loading
    from core.edit.models import find_spec, locate
    from core.edit.native.vae import NormThenSiLU

    spec = find_spec("kontext-tiny")
    model = loading.load(spec, locate(spec), GPU)
    norms = [type(m) for m in model.vae.modules() if isinstance(m, (torch.nn.GroupNorm, NormThenSiLU))]
    assert norms.count(NormThenSiLU) > 20
    pixels = torch.rand(1, 3, 256, 192, device=GPU).to(model.dtype) * 2 - 1
    own = AutoencoderKL.from_pretrained(locate(spec) / "vae", torch_dtype=torch.float32).to(GPU)
    with torch.inference_mode():
        latents = own.encode(pixels.float()).latent_dist.mode()
        assert error(model.vae.encode(pixels).latent_dist.mode(), latents) < 0.03
        assert error(model.vae.decode(latents.to(model.dtype)).sample, own.decode(latents).sample) < 0.03
    model.vae.requires_grad_(True)
    model.vae.encode(pixels).latent_dist.mode().float().sum().backward()  # and it can still be trained
    assert model.vae.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("others", [512, 777])
@pytest.mark.parametrize("dtype", [FP8, BF16])
def test_attention_into_a_slice(dtype, others):
    """cuDNN rounds the softmax to E4M3 too: three bits of mantissa."""
    from core.edit.native import attention

    if dtype == FP8 and not attention.has_cudnn():
        pytest.skip("nvidia-cudnn-frontend is not installed")
    heads, dim, rows = 4, 64, 512
    low = dtype == FP8
    step = torch.tensor(0.02, device=GPU)
    scales = Attention(torch.full((3,), 0.02, device=GPU), None, step / 4, 4 / step) if low else Attention()
    q, k, v = (randn(n, heads, dim, dtype=torch.float32) for n in (rows, others, others))
    q, k, v = ((x / step if low else x).to(dtype) for x in (q, k, v))
    found, expected = (torch.zeros(rows, 2 * heads * dim, device=GPU).to(dtype) for _ in "ab")
    wide = torch.cat([x.flatten(1).view(torch.uint8) for x in (v, v, v)], 1).view(dtype)  # a product's columns
    v = wide[:, 2 * heads * dim :].unflatten(1, (heads, dim))
    attention.attend(q, k, v, found[:, heads * dim :], scales)
    plain.attend(q, k, v, expected[:, heads * dim :], scales)
    assert error(found[:, heads * dim :], expected[:, heads * dim :]) < (0.06 if low else 5e-3)
    assert not found[:, : heads * dim].float().any()


@pytest.mark.parametrize("dtype", [FP8, BF16])
@pytest.mark.parametrize("rows", [48, 1024])
def test_gelu_in_the_product(rows, dtype):
    from core.edit.native import cublas

    if not cublas.is_installed():
        pytest.skip("nvmath-python is not installed")
    low = dtype == FP8
    x, weight, bias = randn(rows, 512), randn(2048, 512) / 23, randn(2048)
    step = torch.tensor(0.02, device=GPU)
    exact = torch.nn.functional.gelu(x.float() @ weight.float().t() + bias.float(), approximate="tanh")
    out = torch.zeros(rows, 2560, device=GPU).to(dtype)
    more = {"scale_x": step, "scale_weight": step / 20, "out_inverse": 1 / step} if low else {}
    given = ((x / step).to(dtype), (weight / step * 20).to(dtype)) if low else (x, weight)
    assert cublas.product(*given, out[:, 512:], bias, gelu=True, **more)
    assert error(out[:, 512:].float() * (step if low else 1), exact) < (0.06 if low else 5e-3)
    assert not out[:, :512].float().any()


@pytest.fixture(scope="module")
def case() -> tuple[Conditioning, torch.Tensor]:
    def on(name: str, seed: int) -> torch.Tensor:
        return small.random_inputs(128, seed=seed)[name].to(GPU, BF16)

    names = ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    rest = [on(name, 1) for name in names]
    return Conditioning(on("hidden_states", 1)[:, 64:], *rest, torch.tensor([2.5], device=GPU)), on(
        "hidden_states", 2
    )[:, :64]


def transformer(precision: str):
    folder = small.TINY if precision == "bf16" else small.source(precision)
    return load_transformer(folder, GPU, BF16, Emulated())


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp4", "fp4-svd"])
def test_a_step_is_the_plain_one_and_a_recorded_one_the_same_bits(precision, case):
    conditioning, latents = case
    timestep = torch.tensor([500.0], device=GPU, dtype=BF16)
    expected = NativeRuntime(transformer(precision), precision, ops=plain).begin(conditioning)(
        latents, timestep, True
    )
    run = NativeRuntime(transformer(precision), precision)
    predict = run.begin(conditioning)
    first, recorded, replayed = (predict(latents, timestep, True) for _ in range(3))
    assert error(first, expected) < (0.02 if precision == "bf16" else 0.15)
    assert torch.equal(first, recorded)
    assert torch.equal(first, replayed)
    predict = run.begin(conditioning, keep_context=True)
    steps = [predict(latents, timestep, full) for full in (True, False, True, False, True, False)]
    assert torch.equal(steps[0], first)
    assert all(torch.equal(each, steps[1]) for each in steps[3::2])
    assert error(steps[1], first) < 0.05
    run.release()
    assert torch.equal(run.begin(conditioning)(latents, timestep, True), first)
    known = replace(conditioning, timesteps=torch.cat([timestep - 100, timestep, timestep + 100]))
    predict = run.begin(known)
    made = [predict(latents, timestep, True) for _ in range(3)]
    assert error(made[0], first) < (0.005 if precision == "bf16" else 0.05)  # products of three rows, not of one
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
