"""Kernels are held against plain torch before they serve: one double and one single block of the model's own weights.

Triton, cuDNN and cuBLAS each come in many versions, and wrong numbers make pictures that nobody asked for. An engine
gives such a proof once (`core.edit.runtimes.proof`); this one takes a second at every load.
"""

from __future__ import annotations

from types import ModuleType

import torch

from core.edit.native.flux import Flux

LIMIT = 0.3
"""The largest relative error of what a block adds to its input. Rounding in another order makes 0.05 in FP8."""
TEXT, IMAGE = 64, 192
"""Tokens of the blocks' input, which is random."""


@torch.inference_mode()
def disagreement(flux: Flux, ops: ModuleType, reference: ModuleType) -> float:
    """How far what the blocks add by `ops` is from what they add by `reference`, |a - b| / |b|, of the worse one."""
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
        added = []
        for each in (ops, reference):
            blocks = flux.alone(each)
            if name not in blocks:
                break
            added.append(torch.cat(blocks[name](**given), 1).float() - before)
        else:
            made, expected = added
            error = float((made - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))  # NaN is no agreement
    return worst
