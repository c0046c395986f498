"""Modules that lie in main memory and come to a GPU for the moment they are at work, whole or a layer at a time.

Their weights never change, so what lies in main memory stays there: leaving the GPU copies nothing, it forgets. Both
ways compute on the GPU with the same weights, and give the same bits as modules that stay there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Shelf:
    """The modules' weights and buffers in main memory; from here on the modules themselves lie there too."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.kept: dict[Tensor, Tensor] = {
            tensor: tensor.data.to("cpu")
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        self._put_back(self.kept)

    @contextmanager
    def whole(self, device: torch.device) -> Iterator[None]:
        """All of them on a device for as long as this lasts."""
        try:
            self._bring(self.kept, device)
            yield
        finally:
            self._put_back(self.kept)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # in pieces of their sizes it would serve nobody else

    @contextmanager
    def streamed(self, device: torch.device) -> Iterator[None]:
        """Each layer on a device while it computes. Every call brings all of them once."""
        layers = {
            layer: own
            for module in self.modules
            for layer in module.modules()
            if (own := [*layer.parameters(recurse=False), *layer.buffers(recurse=False)])
        }

        def arrive(layer: nn.Module, args: Any) -> None:
            self._bring(layers[layer], device)

        def leave(layer: nn.Module, args: Any, output: Any) -> None:
            self._put_back(layers[layer])

        hooks = [layer.register_forward_pre_hook(arrive) for layer in layers]
        hooks += [layer.register_forward_hook(leave) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._put_back(self.kept)

    def _bring(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        with torch.inference_mode(mode=False):  # a weight made in that mode could not be changed outside it
            for tensor in tensors:
                tensor.data = self.kept[tensor].to(device, copy=True)

    def _put_back(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = self.kept[tensor]
