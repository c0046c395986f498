"""What is on a pair of pictures before any pixel is drawn: which things where, what changes, and the sentence for it.

Plans are plain Python and numpy, made from a seed and a number, so that worker processes can make them ahead and any
of them can be made again. `compose` turns them into pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from examples.tiny import words
from examples.tiny.bank import Index
from examples.tiny.edits import EDITS, WEIGHTS, Draft

SIZES = {
    "1:1": (256, 256), "3:2": (320, 208), "2:3": (208, 320), "16:9": (336, 192), "9:16": (192, 336),
    "384": (384, 384),
}  # fmt: skip
"""Working sizes (width, height) in pixels. The first five have 252 to 260 tokens of 16 x 16 pixels; the last 576."""
SIZE_WEIGHTS = {"1:1": 0.7, "3:2": 0.07, "2:3": 0.07, "16:9": 0.06, "9:16": 0.06, "384": 0.04}

LAYER_FIELDS = ("sprite", "cx", "cy", "w", "h", "flip", "turn", "colour", "colour_after", "before", "after")
COMPOUND_FIRST = {"add": 0.2, "remove": 0.25, "replace": 0.2, "recolour": 0.25, "background plain": 0.1}


@dataclass(frozen=True)
class Plan:
    """A batch of pairs of one size, as arrays.

    layers: [entries, LAYER_FIELDS] float32, ordered by `depth`; `pair` and `depth`: [entries] int64. backdrops
    [pairs, 2]: before and after. crops [pairs, 2, 5]: scale, centre x and y, mirrored, gamma; gains [pairs, 2, 3].
    plain [pairs, 2, 3]: a single colour, or NaN. behind: what else is done to the background ("", "blur", "grey").
    effects: what is done to the whole picture (a key of EFFECTS, or ""), `tints` [pairs] its colour.
    """

    size: tuple[int, int]
    kinds: tuple[str, ...]
    prompts: tuple[str, ...]
    plain_prompts: tuple[str, ...]
    layers: np.ndarray
    pair: np.ndarray
    depth: np.ndarray
    backdrops: np.ndarray
    crops: np.ndarray
    gains: np.ndarray
    plain: np.ndarray
    behind: tuple[str, ...]
    effects: tuple[str, ...]
    tints: np.ndarray
    wanted: np.ndarray
    """[pairs]: the colour asked for by a recolour, or -1."""


@dataclass(frozen=True)
class Recipe:
    """What plans are made of: kinds and their weights, sizes and theirs, which half of the bank, and whose words."""

    kinds: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    sizes: dict[str, float] = field(default_factory=lambda: dict(SIZE_WEIGHTS))
    held_out: bool = False
    plain_words: float = 0.12
    """Share of prompts in the plainest words."""


def make_plan(index: Index, recipe: Recipe, seed: int, number: int, pairs: int) -> Plan:
    """Plan number `number` of a stream: the same for the same seed, whatever was made before."""
    rng = random.Random(f"{seed}/{number}/{'held out' if recipe.held_out else 'train'}")
    size = rng.choices(list(recipe.sizes), list(recipe.sizes.values()))[0]
    kinds = rng.choices(list(recipe.kinds), list(recipe.kinds.values()), k=pairs)
    return plan_kinds(index, kinds, SIZES[size], rng, held_out=recipe.held_out, plain_words=recipe.plain_words)


def size_of(recipe: Recipe, seed: int, number: int) -> str:
    """The name of the size of a plan, without making it."""
    rng = random.Random(f"{seed}/{number}/{'held out' if recipe.held_out else 'train'}")
    return rng.choices(list(recipe.sizes), list(recipe.sizes.values()))[0]


def plan_kinds(
    index: Index,
    kinds: Sequence[str],
    size: tuple[int, int],
    rng: random.Random,
    *,
    held_out: bool,
    plain_words: float = 0.0,
    people: float = 0.1,
) -> Plan:
    """A plan of these kinds, one pair each."""
    drafts = [draft_pair(index, kind, size, rng, held_out=held_out, people=people) for kind in kinds]
    return plan_drafts(drafts, kinds, rng, rough=not held_out, plain_words=plain_words)


def plan_drafts(
    drafts: Sequence[Draft], kinds: Sequence[str], rng: random.Random, *, rough: bool, plain_words: float = 0.0
) -> Plan:
    """Drafts of one size as a plan. rough: with mistypings and words left out."""
    rows, pair, depth = [], [], []
    for number, draft in enumerate(drafts):
        for level, layer in enumerate(draft.layers):
            rows.append([getattr(layer, name) for name in LAYER_FIELDS])
            pair.append(number)
            depth.append(level)
    order = np.argsort(np.array(depth, np.int64), kind="stable")
    plains = tuple(words.plain(draft.orders) for draft in drafts)
    return Plan(
        size=drafts[0].size,
        kinds=tuple(kinds),
        prompts=tuple(
            easy if rng.random() < plain_words else words.say(draft.orders, rng, rough=rough)
            for draft, easy in zip(drafts, plains, strict=True)
        ),
        plain_prompts=plains,
        layers=np.array(rows, np.float32).reshape(-1, len(LAYER_FIELDS))[order],
        pair=np.array(pair, np.int64)[order],
        depth=np.array(depth, np.int64)[order],
        backdrops=np.array([[draft.before.number, draft.after.number] for draft in drafts], np.int64),
        crops=np.array([[draft.before.crop, draft.after.crop] for draft in drafts], np.float32),
        gains=np.array([[draft.before.gains, draft.after.gains] for draft in drafts], np.float32),
        plain=np.array([[draft.before.plain, draft.after.plain] for draft in drafts], np.float32),
        behind=tuple(draft.behind for draft in drafts),
        effects=tuple(draft.effect for draft in drafts),
        tints=np.array([draft.tint for draft in drafts], np.int64),
        wanted=np.array([draft.wanted for draft in drafts], np.int64),
    )


def part(plan: Plan, rows: slice) -> Plan:
    """Some of a plan's pairs."""
    start, stop, _ = rows.indices(len(plan.kinds))
    mine = (plan.pair >= start) & (plan.pair < stop)
    cut = {
        name: getattr(plan, name)[rows]
        for name in ("kinds", "prompts", "plain_prompts", "backdrops", "crops", "gains", "plain", "behind", "effects",
                     "tints", "wanted")
    }  # fmt: skip
    return replace(plan, layers=plan.layers[mine], pair=plan.pair[mine] - start, depth=plan.depth[mine], **cut)


def draft_pair(
    index: Index, kind: str, size: tuple[int, int], rng: random.Random, *, held_out: bool, people: float = 0.1
) -> Draft:
    """One pair of a kind (a key of EDITS or EFFECTS, or "compound")."""
    draft = Draft(index, size, rng, held_out=held_out, people=people)
    draft.start(kind)
    if kind != "compound":
        EDITS[kind](draft)
        return draft
    first = rng.choices(list(COMPOUND_FIRST), list(COMPOUND_FIRST.values()))[0]
    EDITS[first](draft)
    if rng.random() < 0.55 and first != "background plain":
        EDITS[rng.choice((first, "add", "remove", "recolour", "replace"))](draft)
    else:
        EDITS[rng.choice(("bw", "sepia", "night", "fog", "golden", "invert", "bright", "dark", "blur", "sketch"))](
            draft
        )
    return draft
