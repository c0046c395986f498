"""A training state on disk: exact, and in as many safetensors files as it takes to keep each below a size.

Weights, their moving average and the optimizers' moments, all float32; a run that goes on from it computes the same
bits as one that was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

MIB = 1 << 20
INFO = "state.json"


def flatten(net: nn.Module, average: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """All tensors of a state under one name each: weight/, average/, and moments by the parameter's number."""
    found = {f"weight/{name}": tensor for name, tensor in net.named_parameters()}
    found |= {f"average/{name}": tensor for name, tensor in average.items()}
    for label, optimizer in optimizers.items():
        for number, moments in optimizer.state_dict()["state"].items():
            found |= {f"{label}/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    return found


def restore(
    tensors: Mapping[str, Tensor], net: nn.Module, average: dict[str, Tensor], optimizers: Mapping[str, Optimizer]
) -> None:
    """Put a state back, in place. Raises ValueError where it is of another model."""
    for name, parameter in net.named_parameters():
        for group, place in (("weight", parameter.data), ("average", average[name])):
            stored = tensors.get(f"{group}/{name}")
            if stored is None or stored.shape != place.shape:
                raise ValueError(f"the state's {group} of {name} does not fit the model it should go on with")
            place.copy_(stored)
    for label, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(label + "/"):
                _, number, name = key.split("/")
                state.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save(
    folder: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any], split_mib: float | None = None
) -> None:
    """Write a state beside the last one and then in its place: a run that dies while saving loses nothing."""
    fresh = folder.with_name(folder.name + ".new")
    fresh.mkdir(parents=True, exist_ok=True)
    for old in fresh.iterdir():
        old.unlink()
    parts = list(split(tensors, None if split_mib is None else int(split_mib * MIB)))
    for number, part in enumerate(parts):
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in part.items()},
            fresh / f"state-{number + 1:02d}-of-{len(parts):02d}.safetensors",
        )
    (fresh / INFO).write_text(json.dumps({**info, "parts": len(parts)}, indent=1))
    gone = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.replace(gone)
    fresh.replace(folder)
    if gone.exists():
        for old in gone.iterdir():
            old.unlink()
        gone.rmdir()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state and its info, of however many files. Raises ValueError where one is missing."""
    info: dict[str, Any] = json.loads((folder / INFO).read_text())
    files = sorted(folder.glob("state-*.safetensors"))
    if len(files) != info["parts"]:
        raise ValueError(f"{folder} holds {len(files)} of the {info['parts']} files of its state")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return tensors, info


def split(tensors: Mapping[str, Tensor], limit: int | None) -> Iterable[dict[str, Tensor]]:
    """Tensors in groups of at most `limit` bytes; one tensor that is larger stands alone."""
    room = (limit or 1 << 62) - 64 * 1024  # a file's header
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if group and size + nbytes > room:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += nbytes
    yield group
