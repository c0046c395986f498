"""The pairs that kontext-tiny learns from (examples/tiny): what is on them, what changes, and how it is said."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.edit.geometry import working_size
from examples.tiny import bank, phrases, vocabulary, words
from examples.tiny.compose import compose
from examples.tiny.edits import CANONICAL, CELLS, EDITS, EFFECTS, WEIGHTS, middle
from examples.tiny.heldout import PHRASINGS
from examples.tiny.plans import LAYER_FIELDS, SIZES, Plan, Recipe, draft_pair, make_plan, part, plan_kinds, size_of

OBJECT_KINDS = ["add", "add coloured", "add several", "remove", "remove all", "remove people", "replace", "recolour"]
BEFORE, AFTER, SPRITE = (LAYER_FIELDS.index(name) for name in ("before", "after", "sprite"))


@pytest.fixture(scope="module")
def index() -> bank.Index:
    return bank.read_index()


def equal(first: Plan, second: Plan) -> bool:
    values = [(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(Plan)]
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b
        for a, b in values
    )


def test_the_same_seed_plans_and_draws_the_same_pairs(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """Whatever was made before; another seed or number makes others."""
    recipe = Recipe()
    first = make_plan(index, recipe, 5, 3, 6)
    make_plan(index, recipe, 5, 4, 2)
    assert equal(first, make_plan(index, recipe, 5, 3, 6))
    assert not equal(first, make_plan(index, recipe, 6, 3, 6))
    assert SIZES[size_of(recipe, 5, 3)] == first.size
    a, b = compose(bank_pixels, first), compose(bank_pixels, first)
    assert torch.equal(a.source, b.source)
    assert torch.equal(a.target, b.target)


@pytest.mark.parametrize("size", ["1:1", "16:9", "2:3"])
def test_nothing_changes_outside_the_change(size: str, index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """Beyond a soft shadow's reach of the things, input and target are equal to the bit; at them they differ."""
    plan = plan_kinds(index, OBJECT_KINDS, SIZES[size], random.Random(size), held_out=False)
    pairs = compose(bank_pixels, plan, things=True)
    assert pairs.source.shape[2:] == SIZES[size][::-1]
    assert pairs.things is not None
    here = pairs.things.any(1, keepdim=True).float().maximum(pairs.mask)  # dark on dark is beneath the mask's limit
    beyond = F.max_pool2d(here, 29, 1, 14) == 0  # two blurs of 9, 5 pixels down
    assert torch.equal(pairs.source * beyond, pairs.target * beyond)
    assert (pairs.mask.mean((1, 2, 3)) > 0.002).all()
    assert beyond.float().mean((1, 2, 3)).min() > 0.1
    levels = pairs.source * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_removing_leaves_what_was_there_without_the_thing(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """The target of a removal is the picture drawn without it: neither more nor less than the words say."""
    plan = plan_kinds(
        index, ["remove", "remove all", "remove people"], SIZES["1:1"], random.Random(2), held_out=False
    )
    kept = plan.layers[:, AFTER] == 1
    without = dataclasses.replace(plan, layers=plan.layers[kept], pair=plan.pair[kept], depth=plan.depth[kept])
    assert torch.equal(compose(bank_pixels, plan).target, compose(bank_pixels, without).source)


def test_nothing_stays_as_it_is_and_everything_else_changes(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    pairs = compose(
        bank_pixels, plan_kinds(index, ["nothing", *EFFECTS], SIZES["1:1"], random.Random(1), held_out=True)
    )
    assert torch.equal(pairs.source[0], pairs.target[0])
    assert (pairs.mask[1:].mean((1, 2, 3)) > 0.05).all()


def test_no_person_is_left_where_all_people_go(index: bank.Index) -> None:
    """Nor on a background that shows one; and other things stay."""
    people = {sprite for noun in index.nouns if noun.person for each in noun.sprites.values() for sprite in each}
    plan = plan_kinds(index, ["remove people"] * 60, SIZES["1:1"], random.Random(3), held_out=False)
    is_person = np.isin(plan.layers[:, SPRITE], list(people))
    assert (plan.layers[is_person, AFTER] == 0).all()
    assert (plan.layers[~is_person, AFTER] == 1).all()
    assert not any("people" in index.backdrops[number].shows for number in plan.backdrops.flatten())
    assert set(np.bincount(plan.pair[is_person])) == {1, 2, 3, 4}


def test_training_never_sees_what_is_held_out(index: bank.Index) -> None:
    """No drawing, background or colour of the held-out half; held-out pictures do use it."""
    held = {
        sprite
        for number, noun in enumerate(index.nouns)
        for sprite in noun.sprites["n"]
        if bank.held_out_drawing(number, "n")
    }
    kinds = [kind for kind in WEIGHTS for _ in range(8)]
    seen: dict[bool, tuple[set[int], set[int]]] = {}
    for side in (False, True):
        plan = plan_kinds(index, kinds, SIZES["1:1"], random.Random(4), held_out=side)
        seen[side] = ({int(s) for s in plan.layers[:, SPRITE]}, {int(b) for b in plan.backdrops.flatten()})
    assert not seen[False][0] & held
    assert seen[True][0] & held
    assert not any(index.backdrops[number].held_out for number in seen[False][1])
    assert all(index.backdrops[number].held_out for number in seen[True][1])
    for seed in range(40):
        draft = draft_pair(index, "recolour", SIZES["1:1"], random.Random(seed), held_out=False)
        layer = next(each for each in draft.layers if each.colour != each.colour_after)
        assert not bank.held_out_colour(layer.noun, layer.colour_after)


def test_a_part_of_a_plan_is_those_pairs(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    plan = plan_kinds(index, ["add", "remove", "bw"], SIZES["1:1"], random.Random(9), held_out=False)
    assert torch.equal(compose(bank_pixels, plan).target[1:], compose(bank_pixels, part(plan, slice(1, 3))).target)


def test_every_kind_can_be_drafted_at_every_size(index: bank.Index) -> None:
    for size in SIZES.values():
        for kind in WEIGHTS:
            for seed in range(3):
                draft = draft_pair(index, kind, size, random.Random(seed), held_out=bool(seed % 2))
                assert draft.orders
                assert len(draft.orders) == (2 if kind == "compound" else 1)
    assert set(WEIGHTS) == {*EDITS, "compound"}


def test_what_replaces_a_thing_in_a_cell_is_drawn_like_an_added_one(index: bank.Index) -> None:
    """One that is larger, or stands elsewhere, gives its place and size to what comes instead."""
    cells = {middle(cell) for cell in CELLS}
    like_added = elsewhere = 0
    for seed in range(60):
        draft = draft_pair(index, "replace", SIZES["3:2"], random.Random(seed), held_out=bool(seed % 2))
        (old,) = (layer for layer in draft.layers if layer.before and not layer.after)
        (new,) = (layer for layer in draft.layers if layer.after and not layer.before)
        assert (new.flip, new.turn, new.colour) == (1.0, 0.0, -1)
        if (new.w, new.h) == draft.widths(CANONICAL):
            assert (new.cx, new.cy) in cells
            assert max(abs(new.cx - old.cx), abs(new.cy - old.cy)) <= 0.05
            like_added += 1
        else:
            assert (new.cx, new.cy, new.w, new.h) == (old.cx, old.cy, old.w, old.h)
            elsewhere += 1
    assert like_added > elsewhere > 5


def test_a_thing_is_not_called_thing_beside_others(index: bank.Index) -> None:
    """Nor in a sentence about two."""
    for kind in ("remove", "recolour", "replace", "compound"):
        called = []
        for seed in range(150):
            draft = draft_pair(index, kind, SIZES["1:1"], random.Random(seed), held_out=False)
            if any(order.slots.x in phrases.OBJECT for order in draft.orders):
                called.append(sum(layer.before for layer in draft.layers))
        assert set(called) == (set() if kind == "compound" else {1})


def test_sizes_cost_the_same_and_are_chosen_by_aspect() -> None:
    same = {name: size for name, size in SIZES.items() if name != "384"}
    assert all(250 <= width * height // 256 <= 262 for width, height in same.values())
    assert all(width % 16 == height % 16 == 0 for width, height in SIZES.values())
    for photo, name in (((3000, 2000), "3:2"), ((1080, 1920), "9:16"), ((512, 512), "1:1"), ((1920, 1080), "16:9")):
        assert working_size(*photo, same.values()) == same[name]


def prompts_of(index: bank.Index, count: int) -> list[str]:
    kinds = [kind for kind in WEIGHTS for _ in range(count)]
    return list(plan_kinds(index, kinds, SIZES["1:1"], random.Random(7), held_out=False, plain_words=0.1).prompts)


def test_every_prompt_is_tokenized_without_unknown_pieces(tiny: Any, index: bank.Index) -> None:
    """By the shipped vocabulary already, and within the length that the model reads."""
    ids = [tiny.tokenizer_2(prompt).input_ids for prompt in prompts_of(index, 12)]
    assert not any(tiny.tokenizer_2.unk_token_id in each for each in ids)
    assert np.mean([len(each) > words.TEXT_TOKENS for each in ids]) < 0.02


def test_a_grown_vocabulary_knows_every_word_whole(tiny: Any, index: bank.Index, tmp_path: Path) -> None:
    """Old ids keep their pieces, and prompts become shorter."""
    from transformers import AutoTokenizer

    source = tiny.spec.folder / "tokenizer_2"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shipped = json.loads((source / "tokenizer.json").read_text())
    fewer = {**shipped, "model": {**shipped["model"], "vocab": shipped["model"]["vocab"][:1500]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fewer))
    before = AutoTokenizer.from_pretrained(tmp_path)
    known = vocabulary.known_words(index)
    size = vocabulary.grow(tmp_path / "tokenizer.json", known)
    assert vocabulary.grow(tmp_path / "tokenizer.json", known) == size
    old, new = fewer["model"]["vocab"], json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert [piece for piece, _ in new[: len(old)]] == [piece for piece, _ in old]
    assert len(new) == size > len(old)
    assert new == shipped["model"]["vocab"], "the shipped model knows the words of the templates"
    grown = AutoTokenizer.from_pretrained(tmp_path)
    assert all(len(grown.tokenize(word)) == 1 for word in known if len(word) > 1)
    prompts = prompts_of(index, 4)
    ids = [grown(prompt).input_ids for prompt in prompts]
    assert not any(grown.unk_token_id in each for each in ids)
    assert max(len(each) for each in ids) <= words.TEXT_TOKENS
    assert np.mean([len(each) for each in ids]) < 0.8 * np.mean([len(before(p).input_ids) for p in prompts])


def bare(text: str) -> str:
    """A template or phrasing down to its words: no articles (which phrasings write as slots), marks or capitals."""
    text = re.sub(r"\{a\w*\}|\ban?\b", " ", text.lower().removeprefix("="))
    return " ".join(re.sub(r"[^a-z{}' ]", " ", text.replace("{p}", " ")).split())


def test_held_out_phrasings_are_in_no_template() -> None:
    """Not as they are, nor as a template in a frame."""
    assert len({text for _, text in PHRASINGS}) >= 40
    assert {kind for kind, _ in PHRASINGS} <= set(EDITS)
    for kind, phrasing in PHRASINGS:
        for template in words.templates(kind):
            assert bare(phrasing) != bare(template)
            for frame in phrases.FRAMES:
                assert bare(phrasing) != bare(frame.format(template)), (phrasing, frame, template)


def test_templates_and_phrasings_have_the_slots_of_their_kind() -> None:
    """One with a slot that its kind leaves empty would say half a sentence."""
    slots = {"add": "xp", "add several": "nxp", "remove": "x", "remove all": "x", "replace": "xy", "recolour": "xc",
             "background": "s", "background plain": "c", "tint": "c"}  # fmt: skip
    every = [(kind, text) for kind in (*phrases.EDITS, *phrases.EFFECTS) for text in words.templates(kind)]
    for kind, text in [*every, *PHRASINGS]:
        found = {name[0] for name in re.findall(r"\{(\w+)\}", text) if name not in ("a", "a_y")}
        assert found == set(slots.get(kind, "")), (kind, text)


def test_sentences_are_rough_in_training_only_and_keep_what_was_asked() -> None:
    order = [words.Order("recolour", words.Slots(x="unicorn", c="purple"))]
    clean = [words.say(order, random.Random(seed), rough=False).lower() for seed in range(300)]
    rough = [words.say(order, random.Random(seed)).lower() for seed in range(300)]
    assert all("unicorn" in text and "purple" in text for text in clean)
    assert 0.9 < np.mean(["unicorn" in text and "purple" in text for text in rough]) < 1
    assert len(set(rough)) > 150
    assert words.plain(order) == "Make the unicorn purple"
    named = [words.Order("replace", words.Slots(x="red bunny", y="sailing boat"))]
    assert words.plain(named) == "Replace the red rabbit with a sailboat"
    two = [words.Order("remove", words.Slots(x="apple")), words.Order("bw")]
    assert words.plain(two) == "Remove the apple and make it black and white"


def test_spelling() -> None:
    assert (
        words.articles("add a apple and a ufo, a unicorn, a umbrella")
        == "add an apple and a ufo, a unicorn, an umbrella"
    )
    assert [words.plural(noun) for noun in ("cherry", "bus", "man", "key", "peach", "loaf of bread", "tomato")] == [
        "cherries", "buses", "men", "keys", "peaches", "loaves of bread", "tomatoes"]  # fmt: skip
    assert words.british("color the gray airplane") == "colour the grey aeroplane"
    slips = {words.mistype("remove the dog", random.Random(seed)) for seed in range(30)}
    assert len(slips) > 5
    assert all(text.endswith(" the dog") for text in slips)
