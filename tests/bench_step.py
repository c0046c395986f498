"""A step of FLUX.1 Kontext [dev] at full size on this GPU: milliseconds, memory, and which kernels they go to.

    python tests/bench_step.py                # 11.9 B random weights, made on the GPU; nothing is downloaded
    python tests/bench_step.py --double 1 --single 1 --tokens 128     # a slice, anywhere

Random weights say nothing about pictures; speed, memory and the error of one step against BF16 are the real ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from bench_road import DOUBLE, SINGLE, make_samples, make_transformer
from machine import machine
from torch import nn

from core.edit import lowbit, native
from core.edit.quantized import QuantLinear

STEPS = 12
"""Timed after three to warm up."""
KINDS = {
    "attention": ("sdpa", "flash", "fmha", "attention", "cudnn_generated"),
    "gemm": ("gemm", "nvjet", "cutlass", "xmma", "mm_", "cublas"),
}  # fmt: skip
"""Parts of kernels' names; all others are elementwise, norms and rounding."""


def call(model: Any, sample: Any) -> torch.Tensor:
    with native.fastest_attention():
        found: torch.Tensor = model(**sample.inputs())[0]
    return found


def times(run: Callable[[], Any]) -> dict[str, float]:
    for _ in range(3):
        run()
    measured = []
    for _ in range(STEPS):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        measured.append(1000 * (time.perf_counter() - start))
    low, high = quantiles(measured, n=10)[0], quantiles(measured, n=10)[-1]
    return {"ms": round(median(measured), 1), "p10": round(low, 1), "p90": round(high, 1)}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernels(run: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of one call by kind of kernel, and the largest kernels by name."""
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        synchronize()
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for event in seen.key_averages():
        ms = event.self_device_time_total / 1000
        kind = next((k for k, parts in KINDS.items() if any(p in event.key.lower() for p in parts)), "other")
        kinds[kind] += ms
        names[f"{event.key[:70]} x{event.count}"] += ms
    return {
        **{kind: round(ms, 1) for kind, ms in kinds.items()},
        "largest": {name: round(ms, 1) for name, ms in names.most_common(12)},
    }


def quantize(model: Any, sample: Any, pack: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Replace every linear inside the blocks, its input scale from the largest value of one call."""
    linears = {
        f"{name}.{part}": module
        for name in native.BLOCKS
        for part, module in getattr(model, name).named_modules()
        if isinstance(module, nn.Linear)
    }
    largest: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: largest.update({name: args[0].abs().amax().float()})
        )
        for name, module in linears.items()
    ]
    call(model, sample)
    for hook in hooks:
        hook.remove()
    arithmetic = native.Native()
    for name, module in linears.items():
        tensors = pack(module.weight)
        limit = lowbit.E4M3_MAX * (lowbit.E2M1_MAX if "weight_scale_2" in tensors else 1)
        tensors["input_scale"] = largest[name] / limit
        if module.bias is not None:
            tensors["bias"] = module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantLinear(tensors, arithmetic))
        module.weight = None


def pack_fp8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax().float() / lowbit.E4M3_MAX
    return {"weight": lowbit.to_e4m3(weight, scale), "weight_scale": scale}


def pack_fp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax().float() / (lowbit.E4M3_MAX * lowbit.E2M1_MAX)
    codes, blocks = lowbit.to_nvfp4(weight, scale)
    return {"weight": codes, "weight_scale": blocks, "weight_scale_2": scale}


PACKS = {"fp8": pack_fp8, "fp4": pack_fp4}


def measure(name: str, double: int, single: int, tokens: int, exact: torch.Tensor | None) -> tuple[Any, torch.Tensor]:
    """name: `diffusers`, `bf16`, `fp8` or `fp4`. Returns facts and one call's output."""
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    if cuda:
        torch.cuda.empty_cache()
    model = make_transformer(double, single, device, dtype)
    torch.manual_seed(1)
    sample = make_samples(1, tokens, device, dtype)[0]
    facts: dict[str, Any] = {}
    if name != "diffusers":
        native.use_own_attention(model)
    if name in PACKS:
        quantize(model, sample, PACKS[name])
    if name != "diffusers":
        torch._dynamo.reset()
        native.compile_blocks(model)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        facts["weights_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
    start = time.perf_counter()
    found = call(model, sample)
    synchronize()
    facts["first_call_s"] = round(time.perf_counter() - start, 1)
    if exact is not None:
        facts["error"] = round(float((found.float() - exact.float()).norm() / exact.float().norm()), 4)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    facts |= times(lambda: call(model, sample))
    if cuda:
        facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    facts["kernels"] = kernels(lambda: call(model, sample))
    print(f"{name}: {json.dumps(facts)}", file=sys.stderr, flush=True)
    return facts, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--double", type=int, default=DOUBLE)
    parser.add_argument("--single", type=int, default=SINGLE)
    parser.add_argument("--tokens", type=int, default=8192, help="image and context tokens")
    parser.add_argument("--only", action="append", choices=("diffusers", "bf16", *PACKS))
    asked = parser.parse_args()
    report: dict[str, Any] = machine("torch", "triton", "diffusers")
    report["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    exact = None
    with torch.inference_mode():
        for name in asked.only or ("diffusers", "bf16", *PACKS):
            report[name], found = measure(name, asked.double, asked.single, asked.tokens, exact)
            exact = found if exact is None else exact
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
