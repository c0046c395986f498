"""Recipes: which module of a FLUX transformer runs in which format, as ModelOpt configurations.

| recipe  | linears inside the blocks                       | attention (Q, K, V into the products) | the rest |
|---------|-------------------------------------------------|---------------------------------------|----------|
| fp8     | E4M3 per tensor, weights and inputs             | E4M3 per tensor                       | BF16     |
| fp4     | NVFP4 (blocks of 16), weights and inputs        | E4M3 per tensor                       | BF16     |
| fp4-svd | NVFP4 of what rank 32 in BF16 leaves of a weight | E4M3 per tensor                      | BF16     |

The rest: `x_embedder`, `context_embedder`, `time_text_embed`, `norm_out`, the final `proj_out`, every norm. The
softmax itself is float32; its output, in 0..1, is quantized at the fixed scale 1/448 and has no quantizer here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.errors import UsageError

VERSION = 2
"""Of the calibration and refinement; raise it when they change what comes out."""
BLOCKS = ("transformer_blocks", "single_transformer_blocks")
ATTENTION_INPUTS = ("q", "k", "v")

E4M3: dict[str, Any] = {"num_bits": (4, 3), "axis": None}
NVFP4: dict[str, Any] = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}


@dataclass(frozen=True)
class Recipe:
    """How a transformer is quantized: ModelOpt's formats of linears, and what the refinement may do.

    `linear`: the `cfg` of weight and input quantizers. `rank`: of the high-precision branch beside each NVFP4 linear,
    0 for none. `eight`: attention linears that run in E4M3 instead; `keep`: parts of names of linears that stay
    BF16, each with the measured reason. `hadamard`: queries and keys are mixed before they are rounded
    (`core.edit.quantized.hadamard_matrices`).
    """

    name: str
    linear: dict[str, Any]
    rank: int = 0
    eight: dict[str, str] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    hadamard: bool = False

    @property
    def is_fp4(self) -> bool:
        return bool(self.linear["num_bits"] == (2, 1))

    def digest(self) -> str:
        """Changes whenever what the recipe does may change: part of a checkpoint's key."""
        return hashlib.sha256(f"{VERSION} {self!r}".encode()).hexdigest()[:16]

    def quant_cfg(self) -> list[dict[str, Any]]:
        """ModelOpt 0.47's list of rules, later ones winning. Only `nn.Linear` inside blocks and attention inputs:
        a bare `*weight_quantizer` would also reach LayerNorms, which ModelOpt knows how to quantize since 0.44."""
        return list(self._rules())

    def _rules(self) -> Iterator[dict[str, Any]]:
        yield {"quantizer_name": "*", "enable": False}
        for blocks in BLOCKS:
            for quantizer in ("weight_quantizer", "input_quantizer"):
                name = f"{blocks}.*{quantizer}"
                yield {"quantizer_name": name, "parent_class": "nn.Linear", "cfg": dict(self.linear)}
            for part in ATTENTION_INPUTS:
                yield {"quantizer_name": f"{blocks}.*.attn.{part}_bmm_quantizer", "cfg": dict(E4M3)}
        for part in self.eight:
            for quantizer in ("weight_quantizer", "input_quantizer"):
                yield {"quantizer_name": f"*.attn.{part}.{quantizer}", "cfg": dict(E4M3)}
        for part in self.keep:
            yield {"quantizer_name": f"*{part}*", "enable": False}

    def config(self) -> dict[str, Any]:
        """What `modelopt.torch.quantization.quantize` takes. The maxima it calibrates are where refinement begins."""
        return {"quant_cfg": self.quant_cfg(), "algorithm": "max"}


VALUES = dict.fromkeys(("to_v", "add_v_proj"), "6 % of the weights, 2.3 dB of the hardest edit")
"""No softmax stands between a value's error and the attention's output, as it does for queries and keys."""

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp8", E4M3, hadamard=True),
        Recipe("fp4", NVFP4, eight=VALUES, hadamard=True),
        Recipe("fp4-svd", NVFP4, rank=32, eight=VALUES, hadamard=True),
    )
}


def find_recipe(name: str) -> Recipe:
    """Raises UsageError for a precision that nothing is quantized to."""
    if name not in RECIPES:
        raise UsageError(f"there is no recipe for precision {name!r}; there is one for {', '.join(RECIPES)}")
    return RECIPES[name]
