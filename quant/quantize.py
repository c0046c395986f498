"""From a BF16 transformer to a quantized checkpoint: inject quantizers, calibrate, refine, export.

ModelOpt injects, measures maxima and writes the file; `quant.refine` chooses better numbers in between. A model of
23.8 GB and one packed copy are the most that is held: the exporter packs layer by layer and frees what it packed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.edit import lowbit
from core.edit.loading import Model
from core.edit.quantized import QUANT_FILE, hadamard_matrices
from core.errors import UnavailableError
from quant import fp4_cpu
from quant.calibration import OnProgress, Sample, record, thin
from quant.pairs import PairSet
from quant.recipes import ATTENTION_INPUTS, Recipe
from quant.refine import refine

SAMPLES = 96
"""Transformer calls that maxima and refinement look at, of those the calibration edits made."""


def quantize(
    model: Model,
    recipe: Recipe,
    pairs: PairSet,
    out: Path,
    *,
    model_hash: str,
    steps: int,
    refined: bool = True,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Write the quantized checkpoint of a loaded model into the folder `out`; returns facts for a manifest.

    refined: False leaves ModelOpt's own maxima and rounding, to compare with.

    The model's transformer is used up: it ends as what was written. Nothing but `out` is written to.
    """
    samples = thin(record(model, pairs.pairs, steps=steps, on_progress=on_progress), len(pairs.pairs), SAMPLES)
    inject(model.transformer, recipe, samples, on_progress)
    if refined:
        refine(model.transformer, recipe, samples, on_progress)
    calibration = {"pairs": len(pairs.pairs), "digest": pairs.digest, "steps": steps, "samples": len(samples)}
    return export(model.transformer, recipe, out, {"model": model_hash, "calibration": calibration}, on_progress)


def inject(transformer: Any, recipe: Recipe, samples: Sequence[Sample], on_progress: OnProgress) -> None:
    """Put ModelOpt's quantizers in place and give each the largest value it sees."""
    mtq = modelopt_quantization()

    @torch.inference_mode()
    def replay(network: nn.Module) -> None:
        if recipe.hadamard:
            _mix_heads(network)
        for index, sample in enumerate(samples):
            network(**sample.inputs())
            on_progress("measuring ranges", index + 1, len(samples))

    with _quiet():
        mtq.quantize(transformer, recipe.config(), forward_loop=replay)
        if recipe.rank:
            from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly

            create_and_replace_svdquant_linear_on_the_fly(transformer)


def export(
    transformer: Any, recipe: Recipe, out: Path, facts: Mapping[str, Any], on_progress: OnProgress
) -> dict[str, Any]:
    """Write the checkpoint of an injected and calibrated transformer."""
    from modelopt.torch.export import export_hf_checkpoint

    on_progress("writing the checkpoint", 0, 1)
    attention = _take_attention_scales(transformer)
    kept = {name: why for name in _linears(transformer) for part, why in recipe.keep.items() if part in name}
    for module in transformer.modules():  # what stays high is stored as it came; scales stay float32
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
    for module in transformer.modules():
        if hasattr(module, "weight_quantizer") and hasattr(module.weight_quantizer, "_amax"):
            module.weight_quantizer.enable()  # `refine` turned them off: its weights are rounded already
        quantizer = getattr(module, "weight_quantizer", None)
        for part in ("svdquant_lora_a", "svdquant_lora_b"):
            if (factor := getattr(quantizer, part, None)) is not None:  # its setter copies into the old float32
                setattr(quantizer, f"_{part}", factor.to(torch.bfloat16))
    hook = transformer.register_forward_pre_hook(_refuse)
    with _quiet():
        export_hf_checkpoint(transformer, dtype=torch.bfloat16, export_dir=out)
    hook.remove()
    about = {"recipe": recipe.name, **facts, "kept": kept, "attention": attention, "hadamard": recipe.hadamard}
    (out / QUANT_FILE).write_text(json.dumps(about, indent=1) + "\n")
    on_progress("writing the checkpoint", 1, 1)
    return {**facts, "kept": kept}


def _refuse(module: nn.Module, args: Any) -> None:
    """Keeps the exporter from giving queries, keys and values one scale: it runs the model to find who shares an
    input, and goes on without where that fails. Theirs were chosen one by one, and values have another format."""
    raise RuntimeError("not while exporting")


def modelopt_quantization() -> Any:
    """`modelopt.torch.quantization`, able to round to NVFP4 on a CPU. Raises UnavailableError where it is missing."""
    try:
        with _quiet():
            import modelopt.torch.quantization as mtq
    except ImportError as error:
        raise UnavailableError(
            f"quantizing needs NVIDIA ModelOpt ({error}): pip install 'kontext-tui[quant]'"
        ) from None
    fp4_cpu.install()
    return mtq


def _take_attention_scales(transformer: Any) -> dict[str, dict[str, float]]:
    """E4M3 scales of each attention's inputs; their quantizers go, since the exporter would store them as weights."""
    scales: dict[str, dict[str, float]] = {}
    for name, module in transformer.named_modules():
        if hasattr(module, "q_bmm_quantizer"):
            quantizers = {part: getattr(module, f"{part}_bmm_quantizer") for part in ATTENTION_INPUTS}
            scales[name] = {part: float(q.amax) / lowbit.E4M3_MAX for part, q in quantizers.items()}
            for quantizer in quantizers.values():
                quantizer.reset_amax()
                quantizer.disable()
    return scales


def _mix_heads(transformer: Any) -> None:
    """Let attention quantizers see queries and keys times Hadamard's matrix: their products stay what they are."""
    for module in transformer.modules():
        if hasattr(module, "q_bmm_quantizer"):
            quantizers = (module.q_bmm_quantizer, module.k_bmm_quantizer)
            for quantizer, factor in zip(quantizers, hadamard_matrices(module.head_dim), strict=True):
                factor = factor.to(module.to_q.weight)
                quantizer.register_forward_pre_hook(lambda _, args, factor=factor: (args[0] @ factor,))


def _linears(transformer: Any) -> list[str]:
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


@contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt prints and warns about itself; stdout is ours."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
