"""The kinds of edits, each as what it does to a draft of a pair. `plans` picks them, `words` says them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from examples.tiny import phrases
from examples.tiny.bank import COLOURS, SCENES, TINTS, Index, held_out_colour, held_out_drawing
from examples.tiny.words import Order, Slots

CANONICAL = 0.36
"""Width of a thing that was asked for, as a share of the picture's unit: with its drawing and place known, the target
is the only right answer."""
NEAR, LARGEST = 0.05, 0.42
"""How far from a cell's middle, and how wide, the things that stand in cells are at most."""
CELLS = tuple((column, row) for row in range(3) for column in range(3))
NAMES = tuple(COLOURS)
NO_COLOUR = (float("nan"),) * 3
SOLO = ("add", "remove", "replace", "recolour", "background", "background plain", "background blur",
        "background grey")  # fmt: skip
"""Kinds that have more bystanders."""


def middle(cell: tuple[int, int]) -> tuple[float, float]:
    """Where a cell of the grid has its middle, in shares of the picture's width and height."""
    return 0.2 + 0.3 * cell[0], 0.2 + 0.3 * cell[1]


@dataclass
class Layer:
    """A drawing on the picture. Places and widths in shares of the picture's width and height; colours as indices,
    -1 for the drawing's own."""

    noun: int
    sprite: int
    cx: float
    cy: float
    w: float
    h: float
    flip: float = 1.0
    turn: float = 0.0
    colour: int = -1
    colour_after: int = -1
    before: bool = True
    after: bool = True
    cell: tuple[int, int] = (1, 1)


@dataclass
class Behind:
    """A background: which, cut how, in what light, or a single colour."""

    number: int
    crop: tuple[float, float, float, float, float]
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    plain: tuple[float, float, float] = NO_COLOUR


@dataclass
class Draft:
    """A pair in the making: what stands on it before and after, and the orders that lead from one to the other."""

    index: Index
    size: tuple[int, int]
    rng: random.Random
    held_out: bool
    layers: list[Layer] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    cells: list[tuple[int, int]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    behind: str = ""
    effect: str = ""
    tint: int = 0
    wanted: int = -1
    kind: str = ""
    people: float = 0.1
    """Share of people among things that are not asked to be either."""
    before: Behind = field(init=False)
    after: Behind = field(init=False)

    def start(self, kind: str) -> None:
        """Background and bystanders, as many as the kind bears."""
        rng, self.kind = self.rng, kind
        self.cells = rng.sample(CELLS, len(CELLS))
        self.before = self.after = self._backdrop()
        bystanders = rng.choice((0, 1, 1, 2)) if kind in SOLO else rng.choice((0, 0, 1, 2))
        if not self.held_out and kind in SOLO and rng.random() < 0.12:
            bystanders = 3
        for _ in range(bystanders):
            self.layers.append(self.place(self.pick(people=False if kind == "remove people" else None)))

    @property
    def unit(self) -> float:
        """The length that widths are shares of, in pixels."""
        width, height = self.size
        return min((width * height) ** 0.5, 1.1 * min(width, height))

    def pick(self, people: bool | None = None) -> int:
        """A noun not yet on the picture, nor shown by its background."""
        nouns, shown = self.index.nouns, self.index.backdrops[self.before.number].shows
        if people is None:
            people = "people" not in shown and self.rng.random() < self.people
        while True:
            number = self.rng.randrange(len(nouns))
            if number not in self.used and nouns[number].person == people and nouns[number].name not in shown:
                self.used.add(number)
                return number

    def place(self, noun: int, *, canonical: bool = False, cell: tuple[int, int] | None = None) -> Layer:
        """A thing in a free cell of the grid: canonical (just as it is drawn when asked for), or with variety."""
        rng = self.rng
        if cell is None:
            cell = self.cells.pop() if self.cells else rng.choice(CELLS)
        elif cell in self.cells:
            self.cells.remove(cell)
        cx, cy = middle(cell)
        if canonical:
            return Layer(noun, self.index.nouns[noun].sprites["f"][0], cx, cy, *self.widths(CANONICAL), cell=cell)
        colour = rng.randrange(len(NAMES)) if rng.random() < 0.18 else -1
        return Layer(
            noun, self.drawing(noun), cx + rng.uniform(-0.04, 0.04), cy + rng.uniform(-0.04, 0.04),
            *self.widths(rng.uniform(0.28, 0.4)), flip=1.0 if rng.random() < 0.6 else -1.0,
            turn=0.0 if rng.random() < 0.5 else rng.uniform(-0.22, 0.22), colour=colour, colour_after=colour,
            cell=cell,
        )  # fmt: skip

    def widths(self, share: float) -> tuple[float, float]:
        """A square of `share` units, in shares of the picture's width and height."""
        return share * self.unit / self.size[0], share * self.unit / self.size[1]

    def usual(self, layer: Layer) -> bool:
        """Whether a thing stands about where one is put that was asked for, and is about as large: then what replaces
        it is drawn just as an added one, instead of a little to the side and a little larger or smaller."""
        cx, cy = middle(layer.cell)
        near = abs(layer.cx - cx) <= NEAR and abs(layer.cy - cy) <= NEAR
        return near and layer.w <= self.widths(LARGEST)[0]

    def drawing(self, noun: int) -> int:
        """One of a noun's drawings: not a held-out one in training, rather a held-out one otherwise."""
        held = held_out_drawing(noun, "n")
        second = (held and self.rng.random() < 0.6) if self.held_out else (not held and self.rng.random() < 0.33)
        return self.rng.choice(self.index.nouns[noun].sprites["n" if second else "f"])

    def subject(self, *, people: bool | None = None) -> Layer:
        """The thing an edit is about: alone it may stand anywhere, large; among others it may touch one of them."""
        rng = self.rng
        layer = self.place(self.pick(people))
        if not self.layers and self.kind != "compound":
            layer.cx, layer.cy = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
            layer.w, layer.h = self.widths(rng.uniform(0.34, 0.62))
        elif self.layers and not self.held_out and rng.random() < 0.2:  # a close neighbour
            beside = rng.choice(self.layers)
            layer.cx = min(0.85, max(0.15, beside.cx + rng.choice((-1, 1)) * rng.uniform(0.5, 0.9) * beside.w))
            layer.cy = min(0.85, max(0.15, beside.cy + rng.uniform(-0.3, 0.3) * beside.h))
        self.layers.insert(rng.randrange(len(self.layers) + 1) if rng.random() < 0.3 else len(self.layers), layer)
        return layer

    def existing(self) -> Layer | None:
        """A thing that stands untouched on the picture; None where there is none."""
        free = [a for a in self.layers if a.before and a.after and a.colour == a.colour_after]
        return self.rng.choice(free) if free else None

    def name(self, noun: int) -> str:
        """What the thing is called: its name, or now and then another one."""
        name = self.index.nouns[noun].name
        return self.rng.choice((name, name, name, *phrases.NAMES.get(name, ())))

    def call(self, layer: Layer) -> str:
        """What the thing is called on this picture, so that nothing else there is meant, nor what is yet to come."""
        rng, noun = self.rng, self.index.nouns[layer.noun]
        others = [other for other in self.layers if other is not layer and other.before]
        alone = self.kind != "compound"
        if alone and not others and rng.random() < 0.12:
            return rng.choice(phrases.OBJECT)
        if (
            alone
            and noun.person
            and not any(self.index.nouns[other.noun].person for other in others)
            and rng.random() < 0.2
        ):
            return rng.choice(phrases.PERSON)
        name = self.name(layer.noun)
        return f"{NAMES[layer.colour]} {name}" if layer.colour >= 0 and rng.random() < 0.3 else name

    def colour_for(self, layer: Layer) -> int:
        """A colour that the thing does not have: a held-out pair half of the time in held-out pictures only."""
        held = self.held_out and self.rng.random() < 0.5
        fits = [c for c in range(len(NAMES)) if c != layer.colour and held_out_colour(layer.noun, c) == held]
        return self.rng.choice(fits or [c for c in range(len(NAMES)) if c != layer.colour])

    def _backdrop(self) -> Behind:
        rng, kind = self.rng, self.kind
        chance, everywhere = rng.random(), kind in EFFECTS
        photo = chance >= 0.5 or (everywhere and chance >= 0.2)
        wanted = "photo" if photo else "scene" if chance < 0.3 else "pattern"
        fits = [
            i for i, b in enumerate(self.index.backdrops)
            if b.kind == wanted and b.held_out == self.held_out
            and not (kind == "remove people" and "people" in b.shows)
        ]  # fmt: skip
        scale = rng.uniform(0.75, 1) if wanted == "scene" else rng.uniform(0.45, 1)
        gamma, gains = 1.0, (1.0, 1.0, 1.0)
        if not self.held_out:
            gamma = rng.uniform(0.75, 1.35)
            gains = (rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.1))
        plain = NO_COLOUR
        if rng.random() < 0.12 and not everywhere and kind not in ("background blur", "background grey"):
            grey = rng.random()
            plain = rng.choice(((grey,) * 3, (rng.random(), rng.random(), rng.random()), COLOURS[rng.choice(NAMES)]))
        crop = (scale, rng.uniform(-1, 1), rng.uniform(-1, 1), rng.choice((-1.0, 1.0)), gamma)
        return Behind(rng.choice(fits), crop, gains, plain)


def add(draft: Draft) -> None:
    cell = (1, 1) if draft.rng.random() < 0.2 and (1, 1) in draft.cells else None
    noun = draft.pick()
    layer = draft.place(noun, canonical=True, cell=cell)
    layer.before = False
    draft.layers.append(layer)
    name, place = draft.name(noun), " " + draft.rng.choice(phrases.PLACES[layer.cell])
    if layer.cell == (1, 1) and draft.rng.random() < 0.6:
        place = ""
    draft.orders.append(Order("add", Slots(x=name, p=place)))


def add_coloured(draft: Draft) -> None:
    add(draft)
    layer, order = draft.layers[-1], draft.orders.pop()
    layer.colour = layer.colour_after = draft.colour_for(layer)
    colour = NAMES[layer.colour]
    draft.orders.append(Order("add", Slots(x=f"{colour} {order.slots.x}", p=order.slots.p)))


def add_several(draft: Draft) -> None:
    """Two stand left and right, three fill a row; the middle row where no place is named."""
    number, row = draft.rng.choice((2, 2, 3)), draft.rng.choice((0, 1, 1, 2))
    noun = draft.pick()
    cells = [(column, row) for column in ((0, 2) if number == 2 else (0, 1, 2))]
    draft.layers = [layer for layer in draft.layers if layer.cell not in cells]
    for cell in cells:
        layer = draft.place(noun, canonical=True, cell=cell)
        layer.w, layer.h = draft.widths(0.3)
        layer.before = False
        draft.layers.append(layer)
    place = draft.rng.choice(phrases.ROWS[row])
    slots = Slots(x=draft.name(noun), n=draft.rng.choice(phrases.NUMBERS[number]), p=f" {place}" if place else "")
    draft.orders.append(Order("add several", slots))


def remove(draft: Draft) -> None:
    layer = (draft.existing() if draft.orders else None) or draft.subject()
    if not draft.held_out and layer.colour >= 0 and draft.rng.random() < 0.4:  # its double in another colour stays
        twin = draft.place(layer.noun)
        twin.colour = twin.colour_after = draft.rng.choice([c for c in range(len(NAMES)) if c != layer.colour])
        draft.layers.append(twin)
        name = f"{NAMES[layer.colour]} {draft.name(layer.noun)}"
    else:
        name = draft.call(layer)
    layer.after = False
    draft.orders.append(Order("remove", Slots(x=name)))


def remove_all(draft: Draft) -> None:
    noun = draft.pick()
    colour = draft.rng.choice((-1, -1, -1, draft.rng.randrange(len(NAMES))))
    for _ in range(draft.rng.choice((2, 2, 3, 4))):
        layer = draft.place(noun)
        layer.colour = layer.colour_after = colour if draft.rng.random() < 0.7 else layer.colour
        layer.after = False
        draft.layers.insert(draft.rng.randrange(len(draft.layers) + 1), layer)
    draft.orders.append(Order("remove all", Slots(x=draft.name(noun))))


def remove_people(draft: Draft) -> None:
    number = draft.rng.choice((1, 2, 2, 3, 4))
    for _ in range(number):
        layer = draft.place(draft.pick(people=True))
        layer.colour = layer.colour_after = -1
        layer.after = False
        if number == 1:
            layer.w, layer.h = draft.widths(draft.rng.uniform(0.34, 0.62))
        draft.layers.insert(draft.rng.randrange(len(draft.layers) + 1), layer)
    draft.orders.append(Order("remove people"))


def replace(draft: Draft) -> None:
    layer = (draft.existing() if draft.orders else None) or draft.subject()
    name, noun = draft.call(layer), draft.pick()
    new = draft.place(noun, canonical=True, cell=layer.cell)
    if not draft.usual(layer):
        new.cx, new.cy, new.w, new.h = layer.cx, layer.cy, layer.w, layer.h
    layer.after = new.before = False
    draft.layers.insert(draft.layers.index(layer) + 1, new)
    draft.orders.append(Order("replace", Slots(x=name, y=draft.name(noun))))


def recolour(draft: Draft) -> None:
    layer = (draft.existing() if draft.orders else None) or draft.subject()
    draft.wanted = layer.colour_after = draft.colour_for(layer)
    draft.orders.append(Order("recolour", Slots(x=draft.call(layer), c=NAMES[draft.wanted])))


def background(draft: Draft, way: str = "scene") -> None:
    if way in ("blur", "grey"):
        draft.subject()
        draft.behind = way
        draft.orders.append(Order(f"background {way}"))
        return
    if not draft.orders:
        draft.subject()
    if way == "scene":
        scene = draft.rng.randrange(len(SCENES))
        fits = [i for i, b in enumerate(draft.index.backdrops) if b.scene == scene and b.held_out == draft.held_out]
        draft.after = Behind(draft.rng.choice(fits), (0.95, 0.0, 0.0, 1.0, 1.0))
        draft.orders.append(Order("background", Slots(s=SCENES[scene])))
    else:
        colour = draft.rng.choice(NAMES)
        draft.after = Behind(draft.before.number, draft.before.crop, plain=COLOURS[colour])
        draft.orders.append(Order("background plain", Slots(c=colour)))


def effect(draft: Draft, name: str) -> None:
    draft.effect = name
    colour = draft.rng.choice(TINTS)
    draft.tint = NAMES.index(colour)
    draft.orders.append(Order(name, Slots(c=colour)))


def nothing(draft: Draft) -> None:
    draft.orders.append(Order("nothing"))


EFFECTS = tuple(phrases.EFFECTS)
EDITS: dict[str, Callable[[Draft], None]] = {
    "add": add, "add coloured": add_coloured, "add several": add_several, "remove": remove, "remove all": remove_all,
    "remove people": remove_people, "replace": replace, "recolour": recolour, "background": background,
    "background plain": partial(background, way="plain"), "background blur": partial(background, way="blur"),
    "background grey": partial(background, way="grey"), "nothing": nothing,
    **{name: partial(effect, name=name) for name in EFFECTS},
}  # fmt: skip
WEIGHTS = {
    "add": 0.12, "add coloured": 0.045, "add several": 0.035, "remove": 0.16, "remove all": 0.06,
    "remove people": 0.06, "replace": 0.25, "recolour": 0.11, "background": 0.035, "background plain": 0.015,
    "background blur": 0.02, "background grey": 0.02, "nothing": 0.035, "compound": 0.09,
    **dict.fromkeys(EFFECTS, 0.007),
}  # fmt: skip
"""How often training meets each kind. Replacing is the slowest to learn, effects are the quickest."""
