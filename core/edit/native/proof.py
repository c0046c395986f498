"""Kernels are held against plain torch before they serve: one double and one single block of the model's own weights.

Triton, cuDNN and cuBLAS each come in many versions, and wrong numbers make pictures that nobody asked for. An engine
gives such a proof once (`core.edit.runtimes.proof`); this one takes a second at every load.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from core.edit.native.flux import Flux

LIMIT = 0.3
"""The largest relative error of what a block adds to its input. Rounding in another order makes 0.05 in FP8."""
TEXT, IMAGE = 64, 192
"""Tokens of the blocks' input, which is random."""


@torch.inference_mode()
def disagreement(flux: Flux, ops: ModuleType, reference: ModuleType) -> float:
    """How far what the blocks add by `ops` is from what they add by `reference`, |a - b| / |b|, of the worse one;
    and so are their queries, keys and attention, of which a block's sum may tell little when tokens are random."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(flux.device, flux.dtype)

    angles = 6 * torch.rand(TEXT + IMAGE, flux.dim // 2, generator=generator).to(flux.device)
    text, image = normal(1, TEXT, flux.width), normal(1, IMAGE, flux.width)
    given = {
        "hidden_states": image, "encoder_hidden_states": text, "temb": normal(1, flux.width),
        "image_rotary_emb": tuple(each.repeat_interleave(2, 1) for each in (angles.cos(), angles.sin())),
    }  # fmt: skip
    before = torch.cat([text, image], 1).float()
    worst = 0.0
    for name in ("transformer_blocks.0", "single_transformer_blocks.0"):
        found = []
        for each in (ops, reference):
            seen: list[torch.Tensor] = []
            blocks = flux.alone(_watched(each, seen))
            if name not in blocks:
                break
            added = torch.cat(blocks[name](**given), 1).float() - before
            found.append([added, *seen])
        else:
            for made, expected in zip(*found, strict=True):
                error = float((made - expected).norm() / expected.norm())
                worst = max(worst, error if error == error else float("inf"))  # NaN is no agreement
    return worst


def _watched(ops: ModuleType, seen: list[torch.Tensor]) -> ModuleType:
    """The same operations, which leave a copy of the queries and keys, and of what attention makes of them."""
    watched = ModuleType(ops.__name__)
    vars(watched).update(vars(ops))

    def heads(
        x: Any, parts: Any, norms: Any, cos: Any, sin: Any, steps: Any, mixes: Any, q: Any, k: Any, v: Any,
        *rest: Any,
    ) -> None:  # fmt: skip
        ops.heads(x, parts, norms, cos, sin, steps, mixes, q, k, v, *rest)
        seen.extend(each.float() for each in (q, k) if each is not None)

    def attend(q: Any, k: Any, v: Any, out: torch.Tensor, attention: Any) -> None:
        ops.attend(q, k, v, out, attention)
        seen.append(out.float())

    vars(watched).update(heads=heads, attend=attend)
    return watched
