"""From an edit to a sentence, as different people would write it.

The same edit is said in many ways: a template of `phrases`, a frame around it, American or British spelling, other
names of the thing, typing mistakes, words left out or exchanged. The last two teach what no list of phrasings can:
that an unknown verb before "the dog" is more likely to remove it than to do nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from examples.tiny import phrases

TEXT_TOKENS = 48
"""What the T5 prompt is padded or cut to."""

# Of a template without slots only these may go: the others say what is wanted.
STOP = frozenset(
    ("make", "it", "the", "a", "an", "image", "photo", "picture", "this", "into", "turn", "look", "like", "to", "of",
     "with", "is", "in")
)  # fmt: skip
# Of a template with slots anything may go but these.
TELLING = frozenset(
    ("background", "behind", "scene", "color", "all", "every", "each", "any", "no", "not", "without", "instead",
     "both", "never", "two", "three")
)  # fmt: skip
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Slots:
    """What fills a template: nouns without articles, colour, scene, place, number."""

    x: str = ""
    y: str = ""
    c: str = ""
    s: str = ""
    p: str = ""
    n: str = ""


@dataclass(frozen=True)
class Order:
    """One edit to put into words: its kind (a key of EDITS or EFFECTS) and its slots."""

    kind: str
    slots: Slots = Slots()


def templates(kind: str) -> tuple[str, ...]:
    """All ways to say a kind; the first is the plainest."""
    return phrases.EDITS.get(kind) or phrases.EFFECTS[kind]


def say(orders: Sequence[Order], rng: random.Random, *, rough: bool = True) -> str:
    """A sentence that asks for one edit or several. Without `rough`, one that a careful writer would send."""
    parts = _short(orders, rng) or [_fill(rng.choice(_choices(order, len(orders))), order.slots, rng, rough)
                                    for order in orders]  # fmt: skip
    text = parts[0].removeprefix("=")
    for part in parts[1:]:
        text = rng.choice(phrases.JOINS).format(text, part)
    if not parts[0].startswith("=") and rng.random() < 0.5:
        text = rng.choice(phrases.FRAMES).format(text)
    text = articles(text)
    if rng.random() < 0.3:
        text = british(text)
    if rough and rng.random() < 0.12:
        text = mistype(text, rng)
    return _finish(text, rng)


def plain(orders: Sequence[Order]) -> str:
    """The plainest sentence for these edits."""
    text = " and ".join(templates(order.kind)[0].format(**_slots(_first_names(order.slots))) for order in orders)
    return capital(articles(text))


def _first_names(slots: Slots) -> Slots:
    """Things by the bank's names for them."""
    names = {other: name for name, others in phrases.NAMES.items() for other in others}

    def first(noun: str) -> str:
        for start in (0, noun.find(" ") + 1):
            if noun[start:] in names:
                return noun[:start] + names[noun[start:]]
        return noun

    return replace(slots, x=first(slots.x), y=first(slots.y))


def articles(text: str) -> str:
    """`a apple` -> `an apple`."""
    return re.sub(r"\ba (?=[aeio]|u(?!fo|ni))", "an ", text)


def plural(noun: str) -> str:
    """More than one of a noun of the bank."""
    if noun in phrases.PLURALS:
        return phrases.PLURALS[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun) or noun == "tomato":
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def british(text: str) -> str:
    """American spelling and names made British, word by word."""
    return re.sub(r"[A-Za-z]+", lambda word: phrases.BRITISH.get(word[0], word[0]), text)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def mistype(text: str, rng: random.Random) -> str:
    """One slip of the fingers in one longer word: two letters swapped, one lost, doubled, or the key beside it."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    chosen = rng.choice(long)
    word = words[chosen]
    at = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif slip == 1:
        word = word[:at] + word[at + 1 :]
    elif slip == 2:
        word = word[:at] + word[at] + word[at:]
    else:
        row = next((keys for keys in KEYS if word[at] in keys), word[at])
        beside = row[max(0, row.index(word[at]) - 1)]
        word = word[:at] + beside + word[at + 1 :]
    words[chosen] = word
    return " ".join(words)


def _choices(order: Order, orders: int) -> Sequence[str]:
    """Templates that can stand in a sentence with as many orders: whole sentences only stand alone."""
    every = templates(order.kind)
    return every if orders == 1 else [template for template in every if not template.startswith("=")]


def _slots(slots: Slots) -> dict[str, str]:
    return {"x": slots.x, "xs": plural(slots.x), "y": slots.y, "c": slots.c, "s": slots.s, "p": slots.p, "n": slots.n}


def _fill(template: str, slots: Slots, rng: random.Random, rough: bool) -> str:
    if rough and rng.random() < 0.16:
        template = _loosen(template, rng)
    return template.format(**_slots(slots))


def _loosen(template: str, rng: random.Random) -> str:
    """Some words of a template left out, exchanged for any word, or joined by one more."""
    sentence, template = template.startswith("="), template.removeprefix("=")
    words = template.split(" ")
    free = [i for i, word in enumerate(words) if "{" not in word
            and (word not in TELLING if "{" in template else word in STOP)]  # fmt: skip
    way = rng.randrange(3)
    if way == 0 and free and len(words) > 2:
        gone = set(rng.sample(free, min(len(free), rng.choice((1, 1, 2)))))
        words = [word for i, word in enumerate(words) if i not in gone]
    elif way == 1 and free and "{" in template:
        words[rng.choice(free)] = rng.choice(phrases.FILLER) if rng.random() < 0.6 else _nonsense(rng)
    else:
        words.insert(rng.randrange(len(words) + 1), rng.choice(phrases.FILLER))
    return "=" * sentence + " ".join(words)


def _nonsense(rng: random.Random) -> str:
    """A word that nobody knows, which may stand for a verb that the model does not."""
    syllables = (rng.choice("bcdfglmnprstvwz") + rng.choice("aeiou") for _ in range(rng.choice((1, 2, 2))))
    return "".join(syllables) + rng.choice(("", "t", "n", "sh", "ck"))


def _short(orders: Sequence[Order], rng: random.Random) -> list[str]:
    """Two edits of one kind with the verb said once ("remove the cat and the dog"); empty where that cannot be."""
    if len(orders) != 2 or orders[0].kind != orders[1].kind or rng.random() < 0.4:
        return []
    first, second = orders[0].slots, orders[1].slots
    joined = {
        "remove": f"the {first.x} and the {second.x}",
        "add": f"a {first.x}{first.p} and a {second.x}{second.p}",
        "recolour": f"the {first.x} {first.c} and the {second.x} {second.c}",
        "replace": f"the {first.x} with a {first.y} and the {second.x} with a {second.y}",
    }.get(orders[0].kind)
    if joined is None:
        return []
    verbs = {
        "remove": ("remove", "delete", "erase", "get rid of", "take away", "remove both"),
        "add": ("add", "put", "draw", "place", "insert"),
        "recolour": ("make", "paint", "color", "turn"),
        "replace": ("replace", "swap"),
    }
    return [f"{rng.choice(verbs[orders[0].kind])} {joined}"]


def _finish(text: str, rng: random.Random) -> str:
    """Capitals and full stops as they come."""
    chance = rng.random()
    if chance < 0.55:
        text = capital(text)
    elif chance < 0.57:
        text = text.upper()
    if text[-1] not in "?.!" and rng.random() < 0.25:
        text += rng.choice("...!")
    return text
