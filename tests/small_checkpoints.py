"""Quantized checkpoints of the embedded model made with nothing but `core.edit.lowbit`, scaled by largest values."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.edit import lowbit
from core.edit.models import MODELS
from core.edit.quantized import QUANT_FILE, Emulated, load_transformer

TINY = MODELS["kontext-tiny"].folder / "transformer"  # type: ignore[operator]
CONFIG = json.loads((TINY / "config.json").read_text())
DOUBLE, SINGLE = CONFIG["num_layers"], CONFIG["num_single_layers"]
BLOCKS = DOUBLE + SINGLE
LINEARS = 14 * DOUBLE + 6 * SINGLE
"""Of the blocks, modulations among them; the model has ten more."""
VALUES = 2 * DOUBLE + SINGLE
"""Those that project to values; as many project to keys, and to queries."""
RANK = 32
TEXT_TOKENS = 48


def make_checkpoint(folder: Path, precision: str) -> Path:
    """A checkpoint of kontext-tiny as `core.edit.quantized` describes it: "fp8", "fp4" or "fp4-svd"."""
    folder.mkdir(parents=True)
    largest = largest_values()
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(TINY / "diffusion_pytorch_model.safetensors").items():
        linear = name.removesuffix(".weight")
        if "transformer_blocks." in name and name.endswith(".weight") and ".norm_" not in name:
            parts = pack(tensor.float(), precision)
            inputs = largest[linear] * parts.get("pre_quant_scale", torch.ones(1)).float()
            parts["input_scale"] = inputs.amax() / lowbit.E4M3_MAX / (1.0 if precision == "fp8" else lowbit.E2M1_MAX)
            made |= {f"{linear}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            made[name] = tensor.to(torch.bfloat16)
    save_file(made, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text((TINY / "config.json").read_text())
    scales: dict[str, dict[str, float]] = {}
    for name, value in largest.items():
        attention, _, part = name.rpartition(".")
        if part in ("q", "k", "v"):
            scales.setdefault(attention, {})[part] = float(value) / lowbit.E4M3_MAX
    (folder / QUANT_FILE).write_text(json.dumps({"recipe": precision, "attention": scales, "kept": {}}))
    return folder


@cache
def largest_values() -> dict[str, Tensor]:
    """Of each channel of each linear's input, and of "<attention>.q", ".k" and ".v"; over a few random inputs."""
    model = load_transformer(TINY, torch.device("cpu"), torch.float32, Emulated())
    seen: dict[str, Tensor] = {}

    def see(name: str, largest: Tensor) -> None:
        seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

    class Watched(Emulated):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def attention(self, q: Tensor, k: Tensor, v: Tensor, scales: Any) -> Tensor:
            for part, x in (("q", q), ("k", k), ("v", v)):
                see(f"{self.name}.{part}", x.abs().amax())
            return super().attention(q, k, v, scales)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: see(name, args[0].flatten(0, -2).abs().amax(0))
            )
        elif hasattr(module, "set_processor"):
            module.processor.arithmetic = Watched(name)
    for seed in range(4):
        with torch.inference_mode():
            model(**random_inputs(128, 100 + seed), return_dict=False)
    return seen


@cache
def graph(precision: str) -> Path:
    """A folder with the exported graph of kontext-tiny, made once a run."""
    from quant.onnx_export import export

    folder = Path(tempfile.mkdtemp(prefix=f"kontext-tui-{precision}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export(source(precision), folder, precision, TEXT_TOKENS)
    return folder


@cache
def source(precision: str) -> Path:
    """What `graph` is exported from."""
    if precision == "bf16":
        return TINY
    folder = Path(tempfile.mkdtemp(prefix=f"kontext-tui-{precision}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_checkpoint(folder / "checkpoint", precision)


def pack(weight: Tensor, precision: str) -> dict[str, Tensor]:
    """What a checkpoint holds of a weight [out, in]; fp4-svd with a smoothed input and its rank-32 branch."""
    if precision == "fp8":
        scale = weight.abs().amax() / lowbit.E4M3_MAX
        return {"weight": lowbit.to_e4m3(weight, scale), "weight_scale": scale}
    extra: dict[str, Tensor] = {}
    if precision == "fp4-svd":
        smooth = (weight.abs().amax(0).clamp(min=1e-4) ** 0.25).bfloat16()
        weight = weight / smooth.float()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        up, down = (left[:, :RANK] * values[:RANK]).bfloat16(), right[:RANK].contiguous().bfloat16()
        weight = weight - up.float() @ down.float()
        extra = {"pre_quant_scale": smooth, "svdquant_lora_a": down, "svdquant_lora_b": up}
    scale = weight.abs().amax() / (lowbit.E2M1_MAX * lowbit.E4M3_MAX)
    codes, blocks = lowbit.to_nvfp4(weight, scale)
    return {"weight": codes, "weight_scale": blocks, "weight_scale_2": scale, **extra}


def random_inputs(tokens: int, seed: int, text_tokens: int = TEXT_TOKENS) -> dict[str, Any]:
    """Arguments of the transformer [float32], with positions of a picture and its context."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    ids = torch.zeros(tokens, 3)
    ids[:, 0], ids[:, 1], ids[:, 2] = (
        torch.arange(tokens) * 2 // tokens,
        torch.arange(tokens) // 8,
        torch.arange(tokens) % 8,
    )
    return {
        "hidden_states": normal(1, tokens, 64),
        "encoder_hidden_states": normal(1, text_tokens, 128),
        "pooled_projections": 0.37 * normal(1, 64),  # as CLIP's are; the others vary by about 1
        "timestep": torch.rand(1, generator=generator),
        "img_ids": ids,
        "txt_ids": torch.zeros(text_tokens, 3),
        "guidance": torch.tensor([2.5]),
    }
