"""FLUX.1 Kontext [dev] with random weights, made on the device: its shapes, speed and memory without a download.

Pictures it makes are noise. `Size` makes a slice of it where the whole does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant.recipes import BLOCKS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.edit.loading import Model
    from core.edit.models import ModelSpec
    from quant.calibration import Sample

TEXT_TOKENS = 512
HEAD = 128
SVD_RANK = 32


@dataclass(frozen=True)
class Size:
    """What of the model there is: double and single blocks, heads of 128, image and context tokens together."""

    double: int = 19
    single: int = 38
    heads: int = 24
    tokens: int = 8192

    @property
    def side(self) -> int:
        """Tokens along an edge of the square picture."""
        return int((self.tokens // 2) ** 0.5)

    @property
    def joint(self) -> int:
        """Width of T5: 4096 of the whole."""
        return max(64, 4096 * self.heads // 24 // 64 * 64)

    @property
    def pooled(self) -> int:
        """Width of CLIP: 768 of the whole."""
        return 32 * self.heads


FULL = Size()


def make_transformer(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' own class; linears N(0, 1/in), so that activations keep their size through the blocks."""
    import torch
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with _making(device, dtype):
        model = FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=size.double, num_single_layers=size.single,
            attention_head_dim=HEAD, num_attention_heads=size.heads, joint_attention_dim=size.joint,
            pooled_projection_dim=size.pooled, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
        )  # fmt: skip
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model.eval().requires_grad_(False)


def make_model(size: Size, device: torch.device, dtype: torch.dtype, transformer: Any) -> Model:
    """The pipeline around a transformer, as `core.edit.loading.load` gives it; tokenizers are kontext-tiny's."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from core.edit.loading import Model, fast_vae
    from core.edit.models import MODELS

    whole = size.heads == FULL.heads
    part = (size.double + size.single) / (FULL.double + FULL.single)
    layers = max(1, round(24 * part))
    tiny = MODELS["kontext-tiny"].folder
    assert tiny is not None
    torch.manual_seed(0)
    with _making(device, dtype):
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=16, layers_per_block=2, norm_num_groups=32,
            block_out_channels=(128, 256, 512, 512) if whole else (32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=size.pooled, intermediate_size=4 * size.pooled,
                num_hidden_layers=max(1, round(12 * part)), num_attention_heads=max(1, size.pooled // 64),
            )
        )  # fmt: skip
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=32128, d_model=size.joint, d_kv=64, num_heads=size.joint // 64, d_ff=size.joint * 5 // 2,
                num_layers=layers, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
    return Model(
        spec=make_spec(size),
        device=device,
        dtype=dtype,
        transformer=transformer,
        guidance_embeds=True,
        vae=fast_vae(vae.eval().requires_grad_(False), device),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0,
            use_dynamic_shifting=True,
        ),
        tokenizer=AutoTokenizer.from_pretrained(tiny / "tokenizer", local_files_only=True),
        text_encoder=clip.eval().requires_grad_(False),
        tokenizer_2=AutoTokenizer.from_pretrained(tiny / "tokenizer_2", local_files_only=True),
        text_encoder_2=t5.eval().requires_grad_(False),
    )  # fmt: skip


def make_spec(size: Size) -> ModelSpec:
    from core.edit.models import ModelSpec

    pixels = 16 * size.side
    return ModelSpec("random-weights", sizes=((pixels, pixels),), text_tokens=TEXT_TOKENS)


def make_samples(count: int, size: Size, device: torch.device, dtype: torch.dtype) -> list[Sample]:
    """Random latents, context and text; half of the tokens are the conditioning image's."""
    import torch

    from core.edit import sampling
    from core.edit.sampling import Conditioning
    from quant.calibration import Sample

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    side, like = size.side, random(1)
    ids = [sampling.token_ids(2 * side, 2 * side, context=context, like=like) for context in (False, True)]
    text_ids = torch.zeros(TEXT_TOKENS, 3, device=device, dtype=dtype)
    made = []
    for index in range(count):
        conditioning = Conditioning(
            random(1, side * side, 64), random(1, TEXT_TOKENS, size.joint), random(1, size.pooled),
            torch.cat(ids), text_ids, torch.full((1,), 2.5, device=device),
        )  # fmt: skip
        sigma = torch.full((1,), 1000 * (index + 1) / count, device=device, dtype=dtype)
        made.append(Sample(conditioning, random(1, side * side, 64), sigma))
    return made


def quantize(transformer: Any, precision: str, sample: Sample) -> None:
    """Replace the linears inside the blocks by low-bit ones, in place; input scales from the largest value of a call.

    No rounding is chosen well, as `quantize` would: for speed and memory alone. Attention gets E4M3 scales of one.
    """
    import torch

    from core.edit import lowbit
    from core.edit.quantized import AttentionProcessor, AttentionScales, Emulated, QuantLinear

    device = transformer.device
    arithmetic = Emulated(4 << 30)
    linears = {
        f"{name}.{part}": module
        for name in BLOCKS
        for part, module in getattr(transformer, name).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    largest: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: largest.update({name: args[0].abs().amax().float()})
        )
        for name, module in linears.items()
    ]
    with torch.inference_mode():
        transformer(**sample.inputs())
    for hook in hooks:
        hook.remove()
    pack = PACKS[precision]
    for name, module in linears.items():
        tensors = pack(module.weight)
        limit = lowbit.E4M3_MAX * (lowbit.E2M1_MAX if "weight_scale_2" in tensors else 1)
        tensors["input_scale"] = largest[name].clone() / limit
        if module.bias is not None:
            tensors["bias"] = module.bias
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, QuantLinear(tensors, arithmetic))
        module.weight = None  # type: ignore[assignment]  # a whole model would not fit twice
    for module in transformer.modules():
        if hasattr(module, "set_processor"):
            scales = AttentionScales(*[8.0 / lowbit.E4M3_MAX] * 3, hadamard=True).to(device)
            module.set_processor(AttentionProcessor(arithmetic, scales))


def pack_fp8(weight: Tensor) -> dict[str, Tensor]:
    from core.edit import lowbit

    scale = weight.abs().amax().float() / lowbit.E4M3_MAX
    return {"weight": lowbit.to_e4m3(weight, scale), "weight_scale": scale}


def pack_fp4(weight: Tensor) -> dict[str, Tensor]:
    from core.edit import lowbit

    scale = weight.abs().amax().float() / (lowbit.E4M3_MAX * lowbit.E2M1_MAX)
    codes, blocks = lowbit.to_nvfp4(weight, scale)
    return {"weight": codes, "weight_scale": blocks, "weight_scale_2": scale}


def pack_fp4_svd(weight: Tensor) -> dict[str, Tensor]:
    """With a low-rank branch of small random numbers: an SVD of it would cost the same to run."""
    import torch

    def branch(*shape: int) -> Tensor:
        return torch.randn(*shape, device=weight.device).mul_(1e-3).to(torch.bfloat16)

    outputs, inputs = weight.shape
    low = {"svdquant_lora_a": branch(SVD_RANK, inputs), "svdquant_lora_b": branch(outputs, SVD_RANK)}
    return {**pack_fp4(weight), **low, "pre_quant_scale": torch.ones(inputs, device=weight.device)}


PACKS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "fp8": pack_fp8, "fp4": pack_fp4, "fp4-svd": pack_fp4_svd,
}  # fmt: skip


@contextmanager
def _making(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside lie on a device in a dtype from the start."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
