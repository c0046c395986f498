"""A function of tensors recorded as a CUDA graph at its second call and replayed from then on.

A step of a big model is a thousand kernels, of a small one as many short ones, faster than a processor starts them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

MOST = 6
"""Graphs kept: a full step and one that reuses the context, for three shapes of picture."""


class Graphs:
    """One graph a key, all in one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of the pool: torch counts what lies in it as free, and gives it to nobody."""
        self._pool: Any = None
        self._seen: set[Hashable] = set()
        self._kept: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = OrderedDict()

    def call(self, key: Hashable, function: Callable[[], Tensor]) -> Tensor:
        """What `function` returns. With the same key it must read the same tensors and compute the same.

        The result is overwritten by the next call.
        """
        if key not in self._seen:  # compiles kernels, plans attention: what a graph cannot record
            self._seen.add(key)
            return function()
        if key not in self._kept:
            self._kept[key] = self._record(function)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        graph, result = self._kept[key]
        graph.replay()
        return result

    def _record(self, function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        # Other threads of a worker write files meanwhile: what they do is none of the recording's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()
        self.bytes += max(0, torch.cuda.memory_reserved() - before)
        return graph, result

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()
        self._seen.clear()
        self._pool, self.bytes = None, 0
