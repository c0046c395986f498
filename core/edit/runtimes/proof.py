"""The proof an engine gives before it serves: one step of it against the same step of the unquantized model.

TensorRT has been seen to fall back to other precisions silently, and to compute wrong numbers on new GPUs; neither
shows in a build's log. So every engine is compared once on each GPU and driver, and the outcome is kept in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.edit import sampling
from core.edit.artifacts import Artifact
from core.edit.loading import Model
from core.edit.models import locate
from core.edit.runtimes import Runtime
from core.edit.runtimes.trt_api import Gpu, squarest
from core.edit.runtimes.verdicts import Verdict, engine_hash, keep
from core.edit.sampling import Conditioning

LIMITS = {"bf16": 5e-2, "fp8": 5e-2, "fp4": 2e-1, "fp4-svd": 2e-1}
"""The largest relative error of a step's velocity. BF16 arithmetic alone makes 1.4e-2 in kontext-tiny."""
PROMPT = "Make it a watercolour painting"
SIGMA = 0.5  # of the step compared: the picture shows through the noise, and BF16 holds the number exactly


@dataclass(frozen=True)
class Probe:
    """One step that every runtime of a model can compute."""

    conditioning: Conditioning
    latents: Tensor  # [1, tokens, C]
    timestep: Tensor  # [1], sigma x 1000


@torch.inference_mode()
def make_probe(model: Model) -> Probe:
    """A step in the middle of editing a drawn picture at the model's squarest size; the same on every machine."""
    from core.edit.editor import condition, encode

    width, height = squarest(model.spec.sizes)
    across, down = torch.linspace(-1, 1, width)[None, :], torch.linspace(-1, 1, height)[:, None]
    disc = ((across**2 + down**2) < 0.3).float()
    drawn = torch.stack([across.expand(height, width), down.expand(height, width), disc * 2 - 1])
    context = encode(model, drawn[None].to(device=model.device, dtype=model.dtype))
    _, channels, rows, columns = context.shape
    noise = sampling.make_noise(0, channels, rows, columns, like=context)
    latents = SIGMA * noise + (1 - SIGMA) * sampling.pack(context)
    return Probe(
        condition(model, context, PROMPT, model.spec.guidance),
        latents,
        torch.full([1], SIGMA * 1000, device=latents.device, dtype=latents.dtype),
    )


@torch.inference_mode()
def one_step(runtime: Runtime, probe: Probe) -> Tensor:
    """The velocity [tokens, C] that a runtime predicts for the probe, float32 on the CPU."""
    velocity = runtime.begin(probe.conditioning)(probe.latents, probe.timestep, True)
    return velocity[0].float().cpu()


def reference_step(model: Model, probe: Probe) -> Tensor:
    """The same from the unquantized transformer; loaded for it, and freed again, where `model` has none.

    In float32 where that takes less than half of the GPU's free memory: rounding to BF16 would count as the engine's
    error. Where not even BF16 fits (23.8 GB), the weights pass through the GPU block by block.
    """
    from core.edit.runtimes.torch_runtime import TorchRuntime

    if model.transformer is not None:
        return one_step(TorchRuntime(model.transformer), probe)
    transformer = _load_transformer(model)
    try:
        return one_step(TorchRuntime(transformer), _cast(probe, transformer.dtype))
    finally:
        del transformer
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """||got - wanted|| / ||wanted||; NaN where `got` holds one."""
    return float((got - wanted).norm() / wanted.norm())


def judge(artifact: Artifact, gpu: Gpu, got: Tensor, wanted: Tensor) -> Verdict:
    """The verdict on an engine, kept in the store."""
    precision = str(artifact.parts["precision"])
    error = relative_error(got, wanted)
    verdict = Verdict(engine_hash(artifact), gpu.name, gpu.driver, precision, error, LIMITS[precision])
    keep(artifact, gpu, verdict)
    return verdict


def _cast(probe: Probe, dtype: torch.dtype) -> Probe:
    c = probe.conditioning
    conditioning = replace(c, context=c.context.to(dtype), prompt=c.prompt.to(dtype), pooled=c.pooled.to(dtype))
    return Probe(conditioning, probe.latents.to(dtype), probe.timestep.to(dtype))


def _load_transformer(model: Model) -> Any:
    from diffusers import FluxTransformer2DModel

    folder = locate(model.spec) / "transformer"
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # bytes, BF16 as published
    free = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else None
    dtype = torch.float32 if free is None or 2 * stored < free / 2 else model.dtype
    transformer = FluxTransformer2DModel.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    transformer.eval().requires_grad_(False)
    if free is not None and dtype != torch.float32 and stored * 1.15 > free:
        from accelerate import cpu_offload

        cpu_offload(transformer, model.device)
        return transformer
    return transformer.to(model.device)
