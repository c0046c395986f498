"""The road at FLUX.1 Kontext [dev]'s full width with random weights: seconds, peak memory and bytes of every stage.

    python tests/bench_road.py fp8 --double 1 --single 1 --samples 4 --tokens 1024     # a slice, on a processor
    python tests/bench_road.py fp8                                                     # all 11.9 B, on an 80 GB GPU

A slice says what the whole weighs: every block weighs the same, so bytes are counted a block and multiplied, exactly.
Seconds are those of the slice. Random weights say nothing about pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant.machine import machine
from quant.random_weights import FULL, TEXT_TOKENS, Size, make_samples, make_transformer


def call_ms(model: Any, sample: Any) -> float:
    """Of a warm call: a calibration edit makes one a step."""
    import torch

    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(**sample.inputs())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return round(min(times), 1)


@contextmanager
def stage(report: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    facts: dict[str, Any] = {}
    start = time.perf_counter()
    yield facts
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        facts["peak_vram_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    facts["seconds"] = round(time.perf_counter() - start, 1)
    facts.setdefault("peak_ram_gb", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2))
    report[name] = facts
    print(f"{name}: {facts}", file=sys.stderr, flush=True)


def build_engine(graph: Path, precision: str, gpu: str) -> dict[str, Any]:
    """An engine in a process of its own that sees no GPU, as on a machine without: nothing is tuned on one."""
    command = [sys.executable, __file__, precision, "--gpu", gpu, "--build", str(graph)]
    done = subprocess.run(
        command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.PIPE, text=True, check=True
    )
    return {
        "bytes": json.loads(done.stdout)["engine_bytes"],
        "peak_ram_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
    }


def build_here(graph: Path, precision: str, gpu: str) -> dict[str, Any]:
    from quant import engine

    with tempfile.TemporaryDirectory() as name:
        profile = engine.Profile(8084, 8192, 8300, TEXT_TOKENS)
        return engine.build(graph / "model.onnx", Path(name), precision=precision, profile=profile, gpu=gpu)


def bytes_of_whole(folder: Path, double: int, single: int) -> int:
    """What the checkpoint's tensors would weigh with all 19 double and 38 single blocks."""
    total: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                total[name.split(".")[0]] += end - begin
    blocks = {
        "transformer_blocks": FULL.double / max(double, 1),
        "single_transformer_blocks": FULL.single / max(single, 1),
    }
    return round(sum(count * blocks.get(name, 1) for name, count in total.items()))


def bench(
    precision: str, double: int, single: int, samples: int, tokens: int, gpus: list[str], *, refined: bool
) -> dict[str, Any]:
    import torch

    from core.edit.loading import pick_device
    from quant import lint, onnx_export
    from quant.quantize import export, inject
    from quant.recipes import RECIPES
    from quant.refine import refine

    device = pick_device("auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # as models are loaded
    report: dict[str, Any] = {
        **machine("torch", "nvidia-modelopt", "tensorrt-rtx-cu13-libs", "onnx"),
        "precision": precision,
    }
    size = Size(double, single, tokens=tokens)
    report |= {"blocks": f"{double} + {single}", "samples": samples, "tokens": f"{tokens} + {TEXT_TOKENS}"}
    report["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else "none"

    def tell(what: str, done: int, total: int) -> None:
        print(f"\r{what} {done}/{total}   ", end="" if done < total else "\n", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        checkpoint, graph = (Path(name) / part for part in ("checkpoint", "onnx"))
        with stage(report, "load") as facts:
            model = make_transformer(size, device, dtype)
            facts["parameters"] = sum(p.numel() for p in model.parameters())
        with stage(report, "one call of the transformer") as facts:
            facts["ms"] = call_ms(model, make_samples(1, size, device, dtype)[0])
        if precision != "bf16":
            recipe, inputs = RECIPES[precision], make_samples(samples, size, device, dtype)
            with stage(report, "inject and measure"):
                inject(model, recipe, inputs, tell)
            if refined:
                with stage(report, "refine"):
                    refine(model, recipe, inputs, tell)
            del inputs
        with stage(report, "write the checkpoint") as facts:
            checkpoint.mkdir()
            if precision == "bf16":
                model.to(torch.bfloat16).save_pretrained(checkpoint)
            else:
                export(model, recipe, checkpoint, {"model": "random", "calibration": {}}, tell)
            facts["bytes"] = sum(f.stat().st_size for f in checkpoint.glob("*.safetensors"))
            facts["bytes of the whole"] = bytes_of_whole(checkpoint, double, single)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
        with stage(report, "export ONNX") as facts:
            facts["bytes"] = onnx_export.export(checkpoint, graph, precision, TEXT_TOKENS)["data_bytes"]
        with stage(report, "lint") as facts:
            read = lint.lint(graph / "model.onnx", precision, checkpoint)
            facts |= {"problems": read.problems, "gemms": read.gemms, "bmms": read.bmms}
        for gpu in gpus:
            with stage(report, f"engine for {gpu}") as facts:
                facts |= build_engine(graph, precision, gpu)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precision", choices=("bf16", "fp8", "fp4", "fp4-svd"))
    parser.add_argument("--double", type=int, default=FULL.double)
    parser.add_argument("--single", type=int, default=FULL.single)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=8192, help="image and context tokens of a sample")
    parser.add_argument("--gpu", action="append", help="build an engine for it; may be repeated (default sm120)")
    parser.add_argument("--no-refine", action="store_true", help="as `quantize --no-refine`: same bytes, sooner")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="only an engine of this folder's graph")
    asked = parser.parse_args()
    if asked.build:
        print(json.dumps(build_here(asked.build, asked.precision, (asked.gpu or ["sm120"])[0])))
        return
    report = bench(
        asked.precision, asked.double, asked.single, asked.samples, asked.tokens, asked.gpu or ["sm120"],
        refined=not asked.no_refine,
    )  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
