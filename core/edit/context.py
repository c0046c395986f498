"""Context refresh: the conditioning image's keys and values kept between steps, in every attention of a transformer.

From one step to the next the noise tokens change and the context tokens hardly do. A full step runs all tokens and
keeps what attention needs of the context; a step after it runs text and noise tokens alone, whose queries meet their
own keys and values and the kept ones. At FLUX.1 Kontext [dev]'s size that is 4,608 of 8,704 tokens.
`core.edit.refresh` says which steps are full.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.edit import lowbit
from core.edit.quantized import AttentionProcessor, AttentionScales, Emulated


class KeptContext:
    """Keys and values of one attention's context tokens [B, tokens, heads, dim], in buffers that stay where they are.

    With the scales of a quantized attention they lie there in E4M3, one byte each.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, scales: AttentionScales | None) -> None:
        dtype = like.dtype if scales is None else torch.float8_e4m3fn
        self.key, self.value = (torch.empty(shape, dtype=dtype, device=like.device) for _ in "kv")
        self.key_scale: Tensor | None = None if scales is None else scales.k
        self.value_scale: Tensor | None = None if scales is None else scales.v
        self.reuse = False

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, tokens, heads, dim] that this step's queries meet; a full step's are kept too."""
        if self.reuse:
            kept_key = _read(self.key, self.key_scale, key.dtype)
            kept_value = _read(self.value, self.value_scale, value.dtype)
            return torch.cat([key, kept_key], dim=1), torch.cat([value, kept_value], dim=1)
        tokens = self.key.shape[1]
        self.key.copy_(_stored(key[:, -tokens:], self.key_scale))
        self.value.copy_(_stored(value[:, -tokens:], self.value_scale))
        return key, value


class ContextCache:
    """What all attentions of a transformer keep of one edit's context; at first nothing."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self._kept: list[KeptContext] = []
        self._filled = False
        self._replaced: list[tuple[Any, Any]] = []

    def begin(self, context: Tensor) -> None:
        """Make room for the context tokens [B, tokens, C] of an edit; an earlier edit's are overwritten."""
        config = self.transformer.config
        shape = (*context.shape[:2], config.num_attention_heads, config.attention_head_dim)
        self._filled = False
        if self._kept and (self._kept[0].key.shape, self._kept[0].key.device) == (shape, context.device):
            return
        self.end()
        for module in _attentions(self.transformer):
            if not isinstance(module.processor, AttentionProcessor):  # diffusers' own, on a CPU
                self._replaced.append((module, module.processor))
                module.set_processor(AttentionProcessor(Emulated(), None))
            module.processor.kept = KeptContext(shape, context, module.processor.scales)
            self._kept.append(module.processor.kept)

    def end(self) -> None:
        """Give the memory back and leave the transformer as it was found."""
        for module in _attentions(self.transformer):
            if isinstance(module.processor, AttentionProcessor):
                module.processor.kept = None
        for module, processor in self._replaced:
            module.set_processor(processor)
        self._kept, self._replaced, self._filled = [], [], False

    def next_step(self, *, full: bool) -> None:
        """What the next call of the transformer is: with all tokens, or with text and noise tokens alone."""
        if not full and not self._filled:
            raise RuntimeError("the first step of an edit must be a full one: there is no context to reuse yet")
        self._filled = True
        for kept in self._kept:
            kept.reuse = not full

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for kept in self._kept for t in (kept.key, kept.value))


def _attentions(transformer: Any) -> list[Any]:
    return [module for module in transformer.modules() if hasattr(module, "set_processor")]


def _stored(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else lowbit.to_e4m3(x, scale)


def _read(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if scale is None else lowbit.from_e4m3(x, scale, dtype)
