"""What each block loses by itself in the `torch` runtime's low precision, at full size over random weights.

    python -m quant.bench_blocks fp8 fp4 [--double 19 --single 38 --heads 24 --tokens 8192] [--json]

Both get the unquantized block's input; the figure is |q - b| / |b| of what comes out, residual included. Scales are
those of the largest values (`quant.random_weights`), worse than a checkpoint's.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from statistics import median

import torch

from core.edit.loading import pick_device
from core.edit.runtimes.native_runtime import NativeRuntime
from quant import random_weights
from quant.bench import PROMPT, make_picture, room
from quant.evaluate import BlockLoss, block_losses
from quant.machine import graphics, machine
from quant.quality_set import Subject
from quant.random_weights import FULL, Size


def losses(precision: str, size: Size, device: torch.device) -> list[BlockLoss]:
    """Of each block in a precision, in the order of the blocks. Needs both transformers on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with room(), torch.inference_mode():
        reference = random_weights.make_transformer(size, device, dtype)
        other = random_weights.make_transformer(size, device, dtype)  # the same numbers: one seed
        random_weights.quantize(other, precision, random_weights.make_samples(1, size, device, dtype)[0])
        blocks = NativeRuntime(other, precision).flux.alone()
        model = random_weights.make_model(size, device, dtype, reference)
        subject = Subject("gradients", make_picture(*model.spec.sizes[0]), PROMPT)
        return block_losses(model, blocks, subject, guidance=model.spec.guidance, seed=1)


def main() -> None:
    parser = ArgumentParser(prog="python -m quant.bench_blocks", description=__doc__.splitlines()[0])
    parser.add_argument("precisions", nargs="+", choices=sorted(random_weights.PACKS))
    parser.add_argument("--json", action="store_true")
    for name, value in vars(FULL).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    size = Size(**{name: getattr(given, name) for name in vars(FULL)})
    found = {each: losses(each, size, pick_device()) for each in given.precisions}
    about = machine("torch", "triton", "diffusers") | graphics()
    if given.json:
        rows = {each: {loss.block: loss.error for loss in of} for each, of in found.items()}
        print(json.dumps({"machine": about, "error": rows}, indent=1))
        return
    for name, value in about.items():
        print(f"{name:20} {value}")
    print(f"\n{'precision':10} {'blocks':8} {'least':>8} {'median':>8} {'most':>8}")
    for precision, of in found.items():
        for kind in ("double", "single"):
            errors = [loss.error for loss in of if loss.block.startswith("single") == (kind == "single")]
            print(f"{precision:10} {kind:8} {min(errors):8.4f} {median(errors):8.4f} {max(errors):8.4f}")


if __name__ == "__main__":
    main()
