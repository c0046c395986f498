"""Other ways to run the same transformer, for the same call on the same device: diffusers, and torchao's FP8."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.edit import native
from core.edit.runtimes.torch_runtime import TorchRuntime
from quant.bench import peak, reset_peak, room, times
from quant.random_weights import Size, make_samples, make_transformer
from quant.recipes import BLOCKS

PEERS = ("diffusers, eager", "diffusers, compiled", "torchao FP8, compiled")


def missing(name: str, device: torch.device) -> str:
    """Why a peer cannot run here; empty where it can."""
    if "torchao" in name:
        if importlib.util.find_spec("torchao") is None:
            return "torchao is not installed: pip install torchao"
        if not native.serves(device):
            return "needs a GPU with FP8 tensor cores"
    if "compiled" in name and (device.type != "cuda" or not native.can_compile()):
        return "needs a GPU, Triton and a C compiler"
    return ""


def measure(name: str, make: Callable[[], Any], sample: Any, device: torch.device, calls: int) -> dict[str, Any]:
    """Milliseconds and memory of one call. make: diffusers' transformer as it comes; sample: what it is given."""
    with room(), torch.inference_mode():
        transformer = make()
        if "torchao" in name:
            _torchao(transformer)
        if "compiled" in name:
            transformer.set_attention_backend("_native_cudnn")
            for blocks in BLOCKS:
                for block in getattr(transformer, blocks):
                    block.compile(dynamic=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        weights = (
            torch.cuda.memory_allocated(device) if device.type == "cuda" else TorchRuntime(transformer).weight_bytes
        )

        def call() -> None:
            transformer(**sample.inputs())

        call()
        reset_peak(device)
        return {
            "name": name, "ms": times(call, calls, device), "weights_bytes": weights, "step_peak_bytes": peak(device),
        }  # fmt: skip


def _torchao(transformer: Any) -> None:
    """flux-fast's recipe: activations scaled by their own largest value; adaLN and all outside blocks in BF16."""
    torchao = importlib.import_module("torchao.quantization")

    def wanted(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and "transformer_blocks." in name and ".norm" not in name

    torchao.quantize_(transformer, torchao.Float8DynamicActivationFloat8WeightConfig(), filter_fn=wanted)


def random(size: Size, device: torch.device) -> tuple[Callable[[], Any], Any]:
    """The transformer of `--random-weights`, and a call of its shapes."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return lambda: make_transformer(size, device, dtype), make_samples(1, size, device, dtype)[0]


def loaded(folder: Path, tokens: Mapping[str, int], device: torch.device) -> tuple[Callable[[], Any], Any]:
    """A model's transformer, and a call with random numbers of these numbers of tokens (image, context, text)."""
    from diffusers import FluxTransformer2DModel

    from core.edit import sampling
    from core.edit.sampling import Conditioning
    from quant.calibration import Sample

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def make() -> Any:
        return FluxTransformer2DModel.from_pretrained(
            folder / "transformer", local_files_only=True, torch_dtype=dtype
        ).to(device).eval().requires_grad_(False)  # fmt: skip

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    config = FluxTransformer2DModel.load_config(folder / "transformer")
    image, context, text = tokens["image"], tokens["context"], tokens["text"]
    ids = [
        sampling.token_ids(2, 2 * count, context=of, like=draw(1)) for count, of in ((image, False), (context, True))
    ]
    conditioning = Conditioning(
        draw(1, context, config["in_channels"]), draw(1, text, config["joint_attention_dim"]),
        draw(1, config["pooled_projection_dim"]), torch.cat(ids), torch.zeros(text, 3, device=device, dtype=dtype),
        torch.full((1,), 2.5, device=device) if config["guidance_embeds"] else None,
    )  # fmt: skip
    return make, Sample(conditioning, draw(1, image, config["in_channels"]), torch.full((1,), 500.0).to(draw(1)))
