"""Better numbers than the maxima that ModelOpt calibrates: block after block, each linear solved on real inputs.

A linear is solved (`quant.solve`) on the inputs that the transformer quantized so far gives it. It mends its own
rounding only: made to mend what the layers before it lost too, the linears of a block each mend the same thing, and
overshoot (measured: the output's error grew by 6 dB). Only one block's second moments are held besides the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quant.calibration import OnProgress, Sample
from quant.recipes import BLOCKS, Recipe
from quant.solve import PAIRS, Moments, Solution, solve

ROWS = 8
"""Input rows gathered of a linear are about this many times its inputs: enough for its second moments."""
FEWEST_ROWS = 6144
SIGMAS = 15
"""Of each sample's prompt, spread over 0..1, that the modulation linears are solved for besides its own."""


@dataclass
class Stream:
    """What lies between two blocks for one sample: image and text tokens, [1, tokens, width] each."""

    hidden: Tensor
    text: Tensor


@torch.inference_mode()
def refine(
    transformer: Any, recipe: Recipe, samples: Sequence[Sample], on_progress: OnProgress = lambda *_: None
) -> None:
    """Give an injected, calibrated transformer better weights, scales and biases, in place.

    Afterwards its weights hold values of their format, and its weight quantizers what the exporter packs them by.
    """
    calls = [_first_call(transformer, sample) for sample in samples]
    streams = [Stream(call["hidden_states"], call["encoder_hidden_states"]) for call in calls]
    conditions = modulation_inputs(transformer, samples)
    blocks = [block for name in BLOCKS for block in getattr(transformer, name)]
    for index, block in enumerate(blocks):
        on_progress("choosing weights and scales", index, len(blocks))
        linears = {name: module for name, module in block.named_modules() if is_quantized(module)}
        for module in linears.values():
            module.weight_quantizer.disable()
        moments, shared = _gather(block, linears, calls, streams, conditions, PAIRS[bool(recipe.rank)])
        for name, module in linears.items():
            fp4 = is_fp4(module)
            rank = recipe.rank if fp4 else 0
            found = solve(module.weight, module.bias, moments[shared[name]], fp4=fp4, rank=rank)
            install(module, found)
        del moments
        if index + 1 < len(blocks):
            streams = [_run(block, call, stream) for call, stream in zip(calls, streams, strict=True)]
    on_progress("choosing weights and scales", len(blocks), len(blocks))


def is_quantized(module: nn.Module) -> bool:
    quantizer: Any = getattr(module, "weight_quantizer", None)
    return isinstance(module, nn.Linear) and quantizer is not None and bool(quantizer.is_enabled)


def is_fp4(module: Any) -> bool:
    return bool(module.weight_quantizer.num_bits == (2, 1))


def install(module: Any, found: Solution) -> None:
    """Put a solution into ModelOpt's linear: its weight quantizer passes the weight on as it is from now."""
    quantizer = module.weight_quantizer
    module.weight = nn.Parameter(found.weight.to(module.weight.dtype), requires_grad=False)
    if found.bias is not None:
        module.bias = nn.Parameter(found.bias.to(module.bias.dtype), requires_grad=False)
    if found.block_amax is None:
        quantizer.amax = found.amax
    else:
        quantizer._amax = found.block_amax
        quantizer.global_amax = found.amax
    if found.up is not None and found.down is not None:
        quantizer.svdquant_lora_a, quantizer.svdquant_lora_b = (
            part.to(module.weight.dtype) for part in (found.down, found.up)
        )
    quantizer.disable()


def _gather(
    block: nn.Module, linears: dict[str, Any], calls: Sequence[dict[str, Any]], streams: Sequence[Stream],
    conditions: Tensor, pairs: Sequence[tuple[str, str]],
) -> tuple[dict[str, Moments], dict[str, str]]:  # fmt: skip
    """Second moments of the linears' inputs, and which linear's each may use (those of one input share them).

    Modulation linears (input [B, width], no tokens) see `conditions` instead, which no block changes.
    """
    moments: dict[str, Moments] = {}
    shared: dict[str, str] = {}
    for index, call in enumerate(calls):
        with _watching(linears) as met:
            _run(block, call, streams[index])
        owners: dict[tuple[int, bool], str] = {}  # one input rounded to two formats is two inputs
        for name, module in linears.items():
            shared[name] = owners.setdefault((id(met[name]), is_fp4(module)), name)
            if shared[name] != name:
                continue
            if met[name].ndim == 2:
                if name not in moments:
                    moments[name] = Moments(pairs)
                    moments[name].add(conditions, module.input_quantizer(conditions))
                continue
            z = met[name].flatten(0, -2)
            stride = max(1, len(calls) * len(z) // max(FEWEST_ROWS, ROWS * z.shape[-1]))
            z = z[index % stride :: stride]
            moments.setdefault(name, Moments(pairs)).add(z, module.input_quantizer(z))
    return moments, shared


def modulation_inputs(transformer: Any, samples: Sequence[Sample]) -> Tensor:
    """Inputs [n, width] of the adaLN linears: each sample's prompt at sigmas all over 0..1, not the sampled alone.

    They are made of timestep, guidance and pooled prompt only, so that many cost nothing.
    """
    rows = []
    for index, sample in enumerate(samples):
        given = sample.conditioning
        spread = (torch.arange(SIGMAS, device=given.pooled.device) + (index * 0.618) % 1) / SIGMAS * 1000
        times = torch.cat([sample.timestep, spread.to(sample.timestep)])
        pooled = given.pooled.expand(len(times), -1)
        guidance = () if given.guidance is None else ((given.guidance * 1000).to(times).expand(len(times)),)
        rows.append(F.silu(transformer.time_text_embed(times, *guidance, pooled)))
    return torch.cat(rows)


def _first_call(transformer: Any, sample: Sample) -> dict[str, Any]:
    """What the first block is called with: the rest of the transformer does not run."""
    block = next(block for name in BLOCKS for block in getattr(transformer, name))
    caught: dict[str, Any] = {}

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)
        raise _Caught

    hook = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        transformer(**sample.inputs())
    except _Caught:
        pass
    finally:
        hook.remove()
    return caught


class _Caught(Exception):
    """The first block was reached."""


def _run(block: nn.Module, call: dict[str, Any], stream: Stream) -> Stream:
    text, hidden = block(**{**call, "hidden_states": stream.hidden, "encoder_hidden_states": stream.text})
    return Stream(hidden, text)


@contextmanager
def _watching(linears: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The inputs of linears, by name."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[name] = args[0]

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in linears.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
