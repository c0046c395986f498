"""The replay buffer: pairs as latents, each used several times before a new one takes its place.

Compositing and encoding a pair costs as much as a few training steps on it. Which pairs lie where is a function of
the seed and the step alone, so a resumed run makes the same buffer again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.edit.loading import Model
from examples.tiny import plans
from examples.tiny.bank import Index, Pixels
from examples.tiny.compose import compose
from examples.tiny.edits import WEIGHTS
from examples.tiny.model import through_vae, to_tokens, token_ids
from examples.tiny.plans import SIZES, Plan, Recipe

KINDS = tuple(WEIGHTS)
CHUNK = 256  # pairs composited and encoded at once
TRIPS = ((0.04, 3), (0.1, 2), (0.25, 1))
"""Share of inputs (cumulative) that went this often through the VAE, as those of a second turn have."""
CHANGED_WEIGHT, WHOLE_WEIGHT, WHOLE = 5.0, 1.5, 0.6
"""Weight in the loss of a token that must change; of every token where more than `WHOLE` of them must."""


@dataclass(frozen=True)
class Batch:
    """Training samples of one size: tokens [N, T, 64], weights [N, T], ids [N, TEXT_TOKENS], kinds [N]."""

    size: tuple[int, int]
    source: Tensor
    target: Tensor
    weight: Tensor
    clip: Tensor
    t5: Tensor
    kind: Tensor


@dataclass(frozen=True)
class Schedule:
    """How many plans have been made by a step: `prefill` before the first, then quickly until the buffer holds
    `capacity` of them, then one whenever `reuse` uses are over."""

    pairs: int = 256
    batch: int = 256
    capacity: int = 128
    prefill: int = 32
    reuse: int = 6

    def made(self, step: int) -> int:
        filling = 2 * (self.capacity - self.prefill)
        late = max(0, step - filling) * self.batch // (self.reuse * self.pairs)
        return self.prefill + min(step, filling) // 2 + late


@dataclass
class Ring:
    """The pairs of one size, the oldest overwritten first."""

    capacity: int
    size: tuple[int, int]
    made: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def filled(self) -> int:
        return min(self.made, self.capacity)

    def put(self, batch: dict[str, Tensor]) -> None:
        count = len(batch["kind"])
        at = self.made % self.capacity
        for name, values in batch.items():
            if name not in self.parts:
                self.parts[name] = torch.empty(
                    self.capacity, *values.shape[1:], dtype=values.dtype, device=values.device
                )
            self.parts[name][at : at + count] = values
        self.made += count

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(self.filled, (count,), generator=generator, device=generator.device)
        parts = {name: values[rows] for name, values in self.parts.items()}
        return Batch(
            size=self.size, **{k: v.float() if v.is_floating_point() else v.long() for k, v in parts.items()}
        )


class Plans(Dataset[tuple[Plan, Tensor, Tensor]]):
    """Plans with their prompts' ids, by number; worker processes make them ahead."""

    def __init__(self, index: Index, recipe: Recipe, seed: int, pairs: int, model: Model) -> None:
        self.index, self.recipe, self.seed, self.pairs = index, recipe, seed, pairs
        self.ids = model

    def __getitem__(self, number: int) -> tuple[Plan, Tensor, Tensor]:
        plan = plans.make_plan(self.index, self.recipe, self.seed, number, self.pairs)
        return plan, *token_ids(self.ids, plan.prompts)


class Replay:
    """Rings of all sizes, kept as full as the schedule says."""

    def __init__(
        self, model: Model, index: Index, pixels: Pixels, recipe: Recipe, seed: int, schedule: Schedule,
        step: int = 0, workers: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.pixels, self.recipe, self.seed, self.schedule = model, pixels, recipe, seed, schedule
        total = sum(recipe.sizes.values())
        self.rings = {
            name: Ring(max(2, round(schedule.capacity * weight / total)) * schedule.pairs, SIZES[name])
            for name, weight in recipe.sizes.items()
        }
        made = schedule.made(step)
        wanted = self._still_there(made)
        dataset = Plans(index, recipe, seed, schedule.pairs, _tokenizers_only(model))
        loader: Any = DataLoader(
            dataset, batch_size=None, sampler=itertools.chain(wanted, itertools.count(made)), num_workers=workers,
            prefetch_factor=4 if workers else None, persistent_workers=bool(workers),
        )  # fmt: skip
        self._plans: Iterator[tuple[Plan, Tensor, Tensor]] = iter(loader)
        self._numbers = itertools.chain(wanted, itertools.count(made))
        for _ in wanted:
            self._fill()
        self.made = made

    def _still_there(self, made: int) -> list[int]:
        """The numbers of the plans that the rings hold after `made`; the others only move the rings on."""
        names = [plans.size_of(self.recipe, self.seed, number) for number in range(made)]
        wanted = []
        for name, ring in self.rings.items():
            numbers = [number for number, other in enumerate(names) if other == name]
            kept = numbers[-(ring.capacity // self.schedule.pairs) :]
            ring.made = (len(numbers) - len(kept)) * self.schedule.pairs
            wanted += kept
        return sorted(wanted)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """The samples of a step, after making the pairs that are due."""
        while self.made < self.schedule.made(step):
            self._fill()
            self.made += 1
        sizes = {name: self.recipe.sizes[name] for name, ring in self.rings.items() if ring.filled}
        size = random.Random(f"{self.seed}/step {step}").choices(list(sizes), list(sizes.values()))[0]
        return self.rings[size].draw(self.schedule.batch, generator)

    def _fill(self) -> None:
        plan, clip, t5 = next(self._plans)
        number = next(self._numbers)
        device = self.model.device
        name = next(name for name, size in SIZES.items() if size == plan.size)
        source, target, weight = encode_pairs(self.model, self.pixels, plan, f"{self.seed}/{number}")
        kinds = torch.tensor([KINDS.index(kind) for kind in plan.kinds], dtype=torch.int16)
        self.rings[name].put(
            {
                "source": source.to(torch.bfloat16), "target": target.to(torch.bfloat16), "weight": weight,
                "clip": clip.short().to(device), "t5": t5.short().to(device), "kind": kinds.to(device),
            }
        )  # fmt: skip


@torch.no_grad()
def encode_pairs(model: Model, pixels: Pixels, plan: Plan, seed: str) -> tuple[Tensor, Tensor, Tensor]:
    """A plan's pairs as tokens, [N, T, 64] each, and the weight of each token in the loss, [N, T]."""
    rng = random.Random(f"trips {seed}")
    found = []
    for start in range(0, len(plan.kinds), CHUNK):
        rows = slice(start, start + CHUNK)
        part = compose(pixels, plans.part(plan, rows))
        context = part.source.clone()
        trips = [_trips(rng, kind) for kind in plan.kinds[rows]]
        for trip in range(1, 4):
            again = [row for row, count in enumerate(trips) if count >= trip]
            if again:
                context[again] = through_vae(model, context[again])
        changed = (F.avg_pool2d(part.mask, 16).flatten(1) > 0.02).float()
        whole = changed.mean(1, keepdim=True) > WHOLE
        weight = torch.where(whole, WHOLE_WEIGHT, 1 + (CHANGED_WEIGHT - 1) * changed)
        found.append((to_tokens(model, context), to_tokens(model, part.target), weight))
    source, target, weights = (torch.cat(each) for each in zip(*found, strict=True))
    return source, target, weights


def _trips(rng: random.Random, kind: str) -> int:
    chance = rng.random() * (0.35 if kind == "nothing" else 1)
    return next((count for share, count in TRIPS if chance < share), 0)


def _tokenizers_only(model: Model) -> Any:
    """What token_ids needs of a model, without weights: this goes to other processes."""
    from types import SimpleNamespace

    return SimpleNamespace(tokenizer=model.tokenizer, tokenizer_2=model.tokenizer_2)
