"""A quantized transformer: diffusers' FluxTransformer2DModel with low-bit linears and attention, from a checkpoint.

A checkpoint is a folder: `config.json` and the safetensors that ModelOpt's `export_hf_checkpoint` wrote, and
`kontext-tui-quant.json` with what that file format has no place for. Of each quantized linear X the safetensors hold

    X.weight           float8_e4m3fn [out, in], or for NVFP4 uint8 [out, in / 2], two codes a byte
    X.weight_scale     float32 scalar, or for NVFP4 float8_e4m3fn [out, in / 16]
    X.weight_scale_2   NVFP4 only: float32 scalar
    X.input_scale      float32 scalar (E4M3: amax / 448; NVFP4: amax / (6 * 448))
    X.pre_quant_scale  optional [in]: what the input is multiplied by first
    X.svdquant_lora_a  optional [rank, in], X.svdquant_lora_b [out, rank]: added in high precision
    X.bias             optional

and kontext-tui-quant.json: {"recipe": name, "attention": {"<attention module>": {"q": scale, "k": .., "v": ..}}, ..};
with "hadamard": true in it, queries and keys are multiplied by `hadamard_matrices` after the rotary embedding.

What is done with the numbers is left to an `Arithmetic`: `Emulated` computes on any device what the low-bit kernels
would; the ONNX export puts its own in place.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from core.edit import lowbit

if TYPE_CHECKING:
    from core.edit.context import KeptContext

QUANT_FILE = "kontext-tui-quant.json"
SOFTMAX_SCALE = 1.0 / lowbit.E4M3_MAX
"""Of the softmax output, which lies in 0..1: fixed, never calibrated."""


class Arithmetic(Protocol):
    """The operations of quantized layers."""

    def product(self, x: Tensor, layer: QuantLinear) -> Tensor:
        """A linear [..., in] -> [..., out] with its bias, without its low-rank branch."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scales: AttentionScales | None) -> Tensor:
        """[B, heads, tokens, head dim] each -> the same; scales None: not quantized."""
        ...


class AttentionScales(nn.Module):
    """E4M3 scales (float32 scalars) of what enters the two products of one attention.

    hadamard: queries and keys are multiplied by `hadamard_matrices` before they are rounded.
    """

    def __init__(self, q: float, k: float, v: float, *, hadamard: bool = False) -> None:
        super().__init__()
        self.hadamard = hadamard
        self.q: Tensor
        self.k: Tensor
        self.v: Tensor
        for name, scale in (("q", q), ("k", k), ("v", v)):
            self.register_buffer(name, torch.tensor(scale, dtype=torch.float32))


class QuantLinear(nn.Module):
    """A linear with an E4M3 or NVFP4 weight, kept packed."""

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor | None
    input_scale: Tensor
    pre_quant_scale: Tensor | None
    svdquant_lora_a: Tensor | None
    svdquant_lora_b: Tensor | None
    bias: Tensor | None

    NAMES = (
        "weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "svdquant_lora_a",
        "svdquant_lora_b", "bias",
    )  # fmt: skip

    def __init__(self, tensors: dict[str, Tensor], arithmetic: Arithmetic) -> None:
        super().__init__()
        for name in self.NAMES:
            self.register_buffer(name, tensors.get(name))
        self.arithmetic = arithmetic

    @property
    def is_fp4(self) -> bool:
        return self.weight_scale_2 is not None

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1]) * (2 if self.is_fp4 else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale.to(x.dtype)
        y = self.arithmetic.product(x, self)
        if self.svdquant_lora_a is not None and self.svdquant_lora_b is not None:
            y = y + F.linear(F.linear(x, self.svdquant_lora_a.to(x.dtype)), self.svdquant_lora_b.to(x.dtype))
        return y


class Emulated:
    """Rounds to the low-bit formats and computes in the activations' dtype: right numbers anywhere, no speed.

    Dequantized weights are kept as long as they take less than `cache_bytes` together.
    """

    def __init__(self, cache_bytes: int = 0) -> None:
        self.cache_bytes = cache_bytes
        self._weights: WeakKeyDictionary[QuantLinear, Tensor] = WeakKeyDictionary()

    def product(self, x: Tensor, layer: QuantLinear) -> Tensor:
        return F.linear(self.activation(x, layer), self.weight(layer, x), _as(layer.bias, x))

    def activation(self, x: Tensor, layer: QuantLinear) -> Tensor:
        return lowbit.round_nvfp4(x, layer.input_scale) if layer.is_fp4 else lowbit.round_e4m3(x, layer.input_scale)

    def weight(self, layer: QuantLinear, like: Tensor) -> Tensor:
        kept = self._weights.get(layer)
        if kept is not None and (kept.dtype, kept.device) == (like.dtype, like.device):
            return kept
        weight = self._dequantize(layer, like)
        size = weight.numel() * weight.element_size()
        if size <= self.cache_bytes:
            self.cache_bytes -= size
            self._weights[layer] = weight
        return weight

    @staticmethod
    def _dequantize(layer: QuantLinear, like: Tensor) -> Tensor:
        if layer.weight_scale_2 is not None:
            return lowbit.from_nvfp4(layer.weight, layer.weight_scale, layer.weight_scale_2, like.dtype)
        return lowbit.from_e4m3(layer.weight, layer.weight_scale, like.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scales: AttentionScales | None) -> Tensor:
        if scales is None:
            return F.scaled_dot_product_attention(q, k, v)
        q, k, v = (lowbit.round_e4m3(x, scale) for x, scale in ((q, scales.q), (k, scales.k), (v, scales.v)))
        weights = (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return lowbit.round_e4m3(weights, torch.tensor(SOFTMAX_SCALE)).to(v.dtype) @ v


class AttentionProcessor:
    """Flux attention, double and single blocks alike, with the two products handed to an Arithmetic.

    The same computation as diffusers' FluxAttnProcessor. The rotation is written so that tracing keeps the number of
    tokens open (a reshape with the traced number in it would be baked into an exported graph).
    """

    def __init__(self, arithmetic: Arithmetic, scales: AttentionScales | None) -> None:
        self.arithmetic, self.scales = arithmetic, scales
        self.kept: KeptContext | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:  # [B, tokens, heads * dim] -> [B, tokens, heads, dim]
            split: Tensor = x.unflatten(-1, (attn.heads, attn.head_dim))
            return split

        query, key = attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), query], dim=1)
            key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(text))), key], dim=1)
            value = torch.cat([heads(attn.add_v_proj(text)), value], dim=1)
        if image_rotary_emb is not None:
            query, key = rotate(query, *image_rotary_emb), rotate(key, *image_rotary_emb)
        if self.scales is not None and self.scales.hadamard:
            for_query, for_key = hadamard_matrices(attn.head_dim)
            query, key = query @ for_query.to(query), key @ for_key.to(key)
        if self.kept is not None:
            key, value = self.kept.extend(key, value)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        result = self.arithmetic.attention(q, k, v, self.scales).transpose(1, 2).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return result
        text_tokens = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](result[:, text_tokens:]))
        return image, attn.to_add_out(result[:, :text_tokens])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [B, tokens, heads, dim] by [tokens, dim]: neighbours along dim are a complex number."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


@cache
def hadamard_matrices(size: int) -> tuple[Tensor, Tensor]:
    """What queries and keys are multiplied by from the right: float32 [size, size] each, size a power of two.

    Hadamard's matrix over powers of two, so that BF16 holds them exactly and the products of queries and keys stay
    what they were. A few large channels become all middling ones, whose rounding to E4M3 errs less in the products
    (as in QuaRot, https://arxiv.org/abs/2404.00456).
    """
    if size & (size - 1):
        raise ValueError(f"Hadamard's matrix needs a power of two, not a head of {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    power = size.bit_length() - 1
    query, key = matrix / 2 ** (power // 2), matrix / 2 ** (power - power // 2)
    return query, key


def load_transformer(folder: Path, device: torch.device, dtype: torch.dtype, arithmetic: Arithmetic) -> Any:
    """The transformer of a checkpoint, weights packed as they lie there; what is not quantized is in `dtype`.

    Works for an unquantized folder too: then only the attention processors are ours.
    """
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(folder)
    with init_empty_weights():
        model = FluxTransformer2DModel.from_config(config)
    tensors = _read_tensors(folder, device)
    quantized = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    for name in sorted(quantized):
        parts = {part: tensors.pop(f"{name}.{part}") for part in QuantLinear.NAMES if f"{name}.{part}" in tensors}
        _replace(model, name, QuantLinear(parts, arithmetic))
    rest = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(rest, strict=False, assign=True)
    missing = [name for name in missing if name.rpartition(".")[0] not in quantized]
    if missing or unexpected:
        raise ValueError(f"the checkpoint does not fit its config: {[*missing, *unexpected][:3]}")
    about = read_quant_file(folder)
    scales, hadamard = about.get("attention", {}), bool(about.get("hadamard", False))
    for name, module in model.named_modules():
        if hasattr(module, "set_processor"):
            own = AttentionScales(**scales[name], hadamard=hadamard).to(device) if name in scales else None
            module.set_processor(AttentionProcessor(arithmetic, own))
    return model.eval().requires_grad_(False)


def read_quant_file(folder: Path) -> dict[str, Any]:
    """What `kontext-tui-quant.json` says; empty for an unquantized folder."""
    path = folder / QUANT_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _read_tensors(folder: Path, device: torch.device) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=str(device)) as stream:
            tensors.update({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    return tensors


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _as(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like.dtype)


def use_own_attention(transformer: Any) -> None:
    """Put our attention into an unquantized transformer: diffusers' is one that compilers break at."""
    for module in transformer.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(AttentionProcessor(Emulated(), None))
