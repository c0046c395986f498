"""How many bytes a model takes on a GPU, told by its files' headers and configs: no weights are read, no torch.

Activations are estimates, made for FLUX.1 Kontext's shapes and scaled by a config's own; `docs/memory.md` says what
was measured beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from core.edit.models import ModelSpec, weight_files, whole_header
from core.edit.placement import TILE, Parts, Transformer
from core.errors import UnavailableError

WIDTH = 2
"""Bytes of a number on a GPU: BF16."""
STEP_FACTOR = 18
"""A step's activations, in [tokens, hidden] BF16 tensors: 0.96 GB of kontext-dev, of which 0.87 were measured."""
VAE_FACTOR = 8
"""The VAE's activations, in tensors of the whole picture at its fewest channels: its last block holds 6.5 at once,
its convolutions take room beside."""
TEXT_FACTOR = 16
"""A text encoder's activations, in [text tokens, feed-forward] tensors."""
EMULATED_CACHE = 4 << 30
"""Dequantized weights that emulation keeps at most."""


def parts_of(folder: Path, spec: ModelSpec) -> Parts:
    """What surrounds the transformer. Raises UnavailableError where the model is not whole."""
    encoders = [list(_sizes(folder / name)) for name in ("text_encoder", "text_encoder_2")]
    t5 = _config(folder / "text_encoder_2")
    pixels = max(width * height for width, height in spec.sizes)
    channels = min(_config(folder / "vae").get("block_out_channels") or [128])
    decode = VAE_FACTOR * WIDTH * channels * pixels
    tiled = VAE_FACTOR * WIDTH * channels * TILE * TILE + 4 * 3 * WIDTH * pixels
    return Parts(
        encoders=sum(map(sum, encoders)),
        vae=sum(_sizes(folder / "vae")),
        encode=TEXT_FACTOR * WIDTH * spec.text_tokens * int(t5.get("d_ff", 10240)),
        layer=max(max(sizes, default=0) for sizes in encoders),
        decode=decode,
        decode_tiled=min(decode, tiled),
    )


def unquantized(folder: Path, spec: ModelSpec, *, keep_context: bool) -> Transformer:
    """The model's own transformer in BF16."""
    return Transformer(sum(_sizes(folder / "transformer")), _step(folder, spec, keep_context=keep_context))


def quantized(folder: Path, spec: ModelSpec, weights: int, *, keep_context: bool, native: bool) -> Transformer:
    """A checkpoint or an engine of so many bytes. native: False where its rounding is emulated, which keeps weights
    that it has dequantized, and writes all of attention's products down in float32."""
    step = _step(folder, spec, keep_context=keep_context)
    if not native:
        heads = int(_config(folder / "transformer").get("num_attention_heads", 24))
        step += min(EMULATED_CACHE, 4 * weights) + 3 * 4 * heads * _tokens(spec) ** 2
    return Transformer(weights, step)


def _step(folder: Path, spec: ModelSpec, *, keep_context: bool) -> int:
    config = _config(folder / "transformer")
    hidden = int(config.get("num_attention_heads", 24)) * int(config.get("attention_head_dim", 128))
    blocks = int(config.get("num_layers", 19)) + int(config.get("num_single_layers", 38))
    kept = 2 * WIDTH * blocks * hidden * (_tokens(spec) - spec.text_tokens) // 2 if keep_context else 0
    return STEP_FACTOR * WIDTH * hidden * _tokens(spec) + kept


def _tokens(spec: ModelSpec) -> int:
    """Text, image and context: a token is 16 pixels a side."""
    return spec.text_tokens + 2 * max((width // 16) * (height // 16) for width, height in spec.sizes)


def _sizes(part: Path) -> Iterator[int]:
    """Bytes of each tensor of a component as it lies on the GPU, where floating-point numbers are BF16."""
    for file in weight_files(part):
        header = whole_header(file) if file.is_file() else None
        if header is None:
            raise UnavailableError(f"{file} is missing or cut short; download the model again")
        for tensor in header.values():
            start, end = tensor["data_offsets"]
            floating = str(tensor["dtype"]) in ("F64", "F32", "F16", "BF16")
            yield prod(tensor["shape"]) * WIDTH if floating else end - start


def _config(part: Path) -> dict[str, Any]:
    try:
        config = json.loads((part / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
