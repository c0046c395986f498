"""A batch as a form holds it: the texts of its fields, checked by the edit script's own rules.

The form becomes a script by way of the YAML text that is saved, so that what is checked, saved and queued is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from core import script as scripts
from core import strict_yaml
from core.edit.models import MODELS
from core.errors import ScriptError
from core.script import Script
from core.script_text import write

_NOT_TEXT = re.compile("[\ud800-\udfff]")
_MAGIC = re.compile(r"[*?[]")
NUMBERS = ("seed", "steps", "guidance", "context_refresh")
NAME = "the batch"
"""What problems call a batch that has no file."""


@dataclass(frozen=True)
class TurnForm:
    """The fields of a turn; empty ones are left to the script and the model."""

    prompt: str = ""
    start: str = ""
    """The turn it starts from; empty: the one before."""
    seed: str = ""
    steps: str = ""
    guidance: str = ""
    context_refresh: str = ""


@dataclass(frozen=True)
class Form:
    """The fields of a batch. Paths count from the folder that the form is opened in."""

    inputs: tuple[str, ...] = ()
    output: str = "edited"
    model: str = "kontext-dev"
    precision: str = "auto"
    runtime: str = "auto"
    output_size: str = "input"
    seed: str = ""
    steps: str = ""
    guidance: str = ""
    context_refresh: str = ""
    turns: tuple[TurnForm, ...] = field(default=(TurnForm(),))


@dataclass(frozen=True)
class Checked:
    """What a form comes to: a script, or what is wrong, by field: `steps`, `turns.0.steps`, "" for all of it."""

    text: str
    script: Script | None = None
    problems: tuple[tuple[str, str], ...] = ()


# ---------------------------------------------------------------- to a script and back


def check(form: Form, folder: Path) -> Checked:
    """Read the form as a script that lies in `folder`."""
    text = write(values(form))
    try:
        return Checked(text, scripts.parse(text, file=NAME, folder=folder))
    except ScriptError as error:
        return Checked(text, problems=tuple(_located(error, text)))


def values(form: Form, folder: Path | None = None, home: Path | None = None) -> dict[str, Any]:
    """The form as a script's keys and values, without those that say what would hold anyway.

    With `folder` and `home`: for a script that lies in `folder`, of a form whose paths count from `home`.
    """

    def path(text: str) -> str:
        return moved(text, home, folder) if home is not None and folder is not None else text

    is_path = os.sep in form.model or form.model in (".", "..") or form.model.startswith("~")
    given: dict[str, Any] = {
        "input": [path(each) for each in form.inputs],
        "output": path(form.output),
        "model": path(form.model) if is_path else form.model,
        "precision": form.precision,
        "runtime": form.runtime,
        **_numbers(form),
        "output_size": form.output_size,
    }
    if len(form.inputs) == 1:
        given["input"] = given["input"][0]
    for key in ("precision", "runtime", "output_size"):
        if given[key] == getattr(Form, key):
            del given[key]
    for key in ("input", "output"):
        if given[key] in ("", []):
            del given[key]
    return {**given, "turns": [_turn(turn) for turn in form.turns]}


def from_script(script: Script, folder: Path) -> Form:
    """The form that makes this script again, paths below `folder` from there."""

    def plain(value: object) -> str:
        return "" if value is None else str(value).removesuffix(".0")

    turns = tuple(
        TurnForm(
            prompt=turn.prompt,
            start="" if turn.from_turn == turn.number - 1 else str(turn.from_turn),
            seed=plain(turn.seed),
            steps=plain(turn.steps),
            guidance=plain(turn.guidance),
            context_refresh=plain(turn.context_refresh),
        )
        for turn in script.turns
    )
    return Form(
        inputs=tuple(below(path, folder) for path in script.input),
        output=below(script.output, folder),
        model=below(script.model, folder),
        precision=script.precision,
        runtime=script.runtime,
        output_size=script.output_size,
        seed=plain(script.seed),
        steps=plain(script.steps),
        guidance=plain(script.guidance),
        context_refresh=plain(script.context_refresh),
        turns=turns,
    )


def below(path: str, folder: Path) -> str:
    """A path as it is written in `folder`, where it lies below; else as it is."""
    start = str(folder).rstrip(os.sep) + os.sep
    if not path.startswith(start):
        return path
    rest = path[len(start) :]
    if rest.startswith((os.sep, "~")) or not rest:
        return f".{os.sep}{rest}"
    return rest


def picked(folder: Path, home: Path) -> str:
    """A folder as an input. YAML holds text alone: what is not text in its name becomes a pattern that finds it."""
    path = below(str(folder), home)
    if not (odd := _NOT_TEXT.search(path)):
        return path
    at = path.rfind(os.sep, 0, odd.start()) + 1  # patterns begin at this part: the ones before exist as written
    pattern = _NOT_TEXT.sub("?", _MAGIC.sub(r"[\g<0>]", path[at:]))
    return f"{path[:at]}{pattern}{os.sep}**"


def moved(text: str, home: Path, folder: Path) -> str:
    """A path that counts from `home`, as it is written in a script in `folder`."""
    if not text or text.startswith("~"):
        return text
    return below(os.path.join(home, text), folder)  # noqa: PTH118 - keeps a final slash


def save_text(form: Form, file: Path, home: Path) -> str:
    """The text of a script in `file` that does what the form in `home` says. Raises ScriptError."""
    folder = file.parent.resolve()
    text = write(values(form, folder, home.resolve()))
    scripts.parse(text, file=file.name, folder=folder)
    return text


def _numbers(form: Form | TurnForm) -> dict[str, Any]:
    """Numbers as numbers; what is none stays the text it is, for the script to refuse."""
    found: dict[str, Any] = {}
    for key in NUMBERS:
        if text := getattr(form, key).strip():
            value = strict_yaml.resolve(text)
            found[key] = value if isinstance(value, int | float) and not isinstance(value, bool) else text
    return found


def _turn(turn: TurnForm) -> str | dict[str, Any]:
    start = turn.start.strip()
    value = strict_yaml.resolve(start)
    found = {**_numbers(turn), **({"from": value if isinstance(value, int) else start} if start else {})}
    return {"prompt": turn.prompt, **found} if found else turn.prompt


def _located(error: ScriptError, text: str) -> list[tuple[str, str]]:
    """Each problem with the field that it is about."""
    try:
        places = {place: path for path, place in strict_yaml.load(text, NAME).places.items()}
    except ScriptError:
        places = {}
    found = []
    for problem in error.problems:
        path = places.get((problem.line, problem.column), ())
        message = problem.message
        if not path and message.startswith("input is missing"):
            path = ("input",)
        found.append((".".join(map(str, path)), message))
    return found


# ---------------------------------------------------------------- turns


def add_turn(form: Form, after: int) -> Form:
    """A new turn behind the one at `after`."""
    return _reordered(form, [*range(after + 1), None, *range(after + 1, len(form.turns))])


def copy_turn(form: Form, index: int) -> Form:
    """The same turn once more, behind it and from the same start: a branch."""
    turn = form.turns[index]
    twin = replace(turn, start=turn.start.strip() or str(index))
    wider = add_turn(form, index)
    return replace(wider, turns=(*wider.turns[: index + 1], twin, *wider.turns[index + 2 :]))


def remove_turn(form: Form, index: int) -> Form:
    """Without a turn. Those that started from it start from where it started."""
    if len(form.turns) == 1:
        return replace(form, turns=(TurnForm(),))
    return _reordered(form, [each for each in range(len(form.turns)) if each != index])


def move_turn(form: Form, index: int, step: int) -> Form:
    """A turn up or down; branches stay with the turns that they start from."""
    order = list(range(len(form.turns)))
    to = index + step
    if not 0 <= to < len(order):
        return form
    order[index], order[to] = order[to], order[index]
    return _reordered(form, order)


def _reordered(form: Form, order: Sequence[int | None]) -> Form:
    """The turns in another order, None for a new one; a written `from` follows the turn it means."""
    now = {old: new for new, old in enumerate(order) if old is not None}
    turns = []
    for old in order:
        turn = TurnForm() if old is None else form.turns[old]
        if turn.start.strip().isdecimal() and (meant := int(turn.start)) <= len(form.turns):
            turn = replace(turn, start=str(_start(form, meant, now)))
        turns.append(turn)
    return replace(form, turns=tuple(turns))


def _start(form: Form, meant: int, now: Mapping[int, int]) -> int:
    """The new number of the turn numbered `meant`; of where it started, and so on, once it is gone."""
    while meant and meant - 1 not in now:
        start = form.turns[meant - 1].start.strip()
        before = int(start) if start.isdecimal() else meant - 1
        meant = min(before, meant - 1)
    return now[meant - 1] + 1 if meant else 0


# ---------------------------------------------------------------- what is remembered


def to_state(form: Form) -> dict[str, Any]:
    return asdict(form)


def from_state(kept: object) -> Form | None:
    """The form that was kept; None where that is none."""
    if not isinstance(kept, dict) or set(kept) != {each.name for each in fields(Form)}:
        return None
    try:
        turns = tuple(TurnForm(**turn) for turn in kept["turns"])
        form = Form(**{**kept, "inputs": tuple(kept["inputs"]), "turns": turns})
    except (TypeError, KeyError):
        return None
    texts = [*form.inputs, *(value for turn in turns for value in vars(turn).values())]
    texts += [value for key, value in vars(form).items() if key not in ("inputs", "turns")]
    return form if turns and all(isinstance(text, str) for text in texts) else None


def known_models() -> list[str]:
    return list(MODELS)
