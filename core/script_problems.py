"""What is wrong with an edit script's values, in its writer's words and at its writer's line and column."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from pydantic_core import ErrorDetails, PydanticCustomError

from core import strict_yaml
from core.errors import Problem

Keys = Mapping[str, str]
"""The keys a mapping may have, each with what it holds: "must be ..."."""

# Other readers of YAML take these unquoted words for true and false; so nobody knows what the writer meant.
TRUTH_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false"}
_TEXT = {"input", "output", "model", "turn", "prompt"}


@dataclass(frozen=True)
class Origin:
    """Where a script's values were written, to blame any of them by its place, even long after parsing."""

    file: str = "script"
    folder: Path = Path()
    places: Mapping[strict_yaml.Path, strict_yaml.Place] = field(default_factory=dict)
    options: frozenset[str] = frozenset()
    """The keys that the command line gave instead of the file."""

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem with the value at `path`, or with what holds it where it has no place of its own."""
        if path and path[0] in self.options:
            return Problem(f"--{str(path[0]).replace('_', '-')}", 0, 0, message)
        return Problem(self.file, *self.places.get(nearest(path, self.places), (0, 0)), message)


def nearest(path: strict_yaml.Path, places: Container[strict_yaml.Path]) -> strict_yaml.Path:
    """The longest beginning of `path` that has a place: a plain string is its turn and its prompt at once."""
    while path and path not in places:
        path = path[:-1]
    return path


def said(message: str) -> PydanticCustomError:
    """A validation error that already says everything."""
    return PydanticCustomError("said", "{message}", {"message": message})


@dataclass(frozen=True)
class Explainer:
    """Explains the problems of one parsed file; `in_script` and `in_turn` are the keys known in each."""

    document: strict_yaml.Document
    origin: Origin
    in_script: Keys
    in_turn: Keys

    def problems(self, errors: Sequence[ErrorDetails]) -> Iterator[Problem]:
        """Each problem once: first of the words as written, then of what pydantic found in the values."""
        written = dict(self._unclear_words())
        for path, message in written.items():
            yield self.origin.problem(f"{self._name(path)} {message}", *path)
        explained: set[strict_yaml.Path] = set()  # missing keys that an unknown one beside them accounts for
        for error in errors:
            if error["type"] == "extra_forbidden":
                *parent, key = error["loc"]
                message, meant = self._unknown(parent, str(key))
                explained.add((*parent, meant))
                yield self._at_key(message, error["loc"])
        for error in errors:
            path = error["loc"]
            shadowed = not self._is_option(path) and nearest(path, self.document.places) in written
            accounted_for = error["type"] == "missing" and path in explained
            if error["type"] != "extra_forbidden" and not shadowed and not accounted_for:
                yield self.origin.problem(self._wrong(error), *path)

    def _is_option(self, path: strict_yaml.Path) -> bool:
        return path != () and path[0] in self.origin.options

    def _unclear_words(self) -> Iterator[tuple[strict_yaml.Path, str]]:
        """Unquoted words that would not stay the text they seem to be, and keys left without a value."""
        for path, word in self.document.unquoted.items():
            kind = self._kind(path)
            if kind is None or self._is_option(path):
                continue
            value = strict_yaml.resolve(word)
            is_text = isinstance(value, str) and word.lower() not in TRUTH_WORDS
            if kind in _TEXT and word and not is_text:
                yield path, f'must be text: write it in quotes: "{word}"'
            elif value is None:
                yield path, "has no value: write one, or remove the line"

    def _kind(self, path: strict_yaml.Path) -> str | None:
        """The key that decides what may stand at `path`; a list item of `turns` is a `turn`."""
        match path:
            case (str(key),) if key in self.in_script:
                return key
            case ("input", int()):
                return "input"
            case ("turns", int()):
                return "turn"
            case ("turns", int(), str(key)) if key in self.in_turn:
                return key
        return None

    def _name(self, path: strict_yaml.Path) -> str:
        match path:
            case ("turns", int(index)):
                return f"turn {index + 1}"
            case ("turns", int(index), str(key)):
                return f"turn {index + 1}: {key}"
        return str(path[0]) if path else "the script"

    def _unknown(self, parent: Sequence[str | int], key: str) -> tuple[str, str]:
        """What to say about an unknown key, and the key it was probably meant to be."""
        known, others = (self.in_turn, self.in_script) if parent else (self.in_script, self.in_turn)
        where = f"{self._name(tuple(parent))}: " if parent else ""
        if parent and " " in key.strip():
            return f"{where}a colon makes a key of {shown(key)}: put the whole prompt in quotes", "prompt"
        if close := get_close_matches(key, known, n=1):
            return f"{where}unknown key {shown(key)}: did you mean `{close[0]}`?", close[0]
        if key in others:
            place = "belongs at the top of the script" if parent else "belongs in a turn, below `turns`"
            return f"{where}`{key}` {place}", ""
        keys = f"{where}unknown key {shown(key)}: the keys are {', '.join(known)}"
        return (f"{keys}; a prompt with a colon goes in quotes", "prompt") if parent else (keys, "")

    def _at_key(self, message: str, path: strict_yaml.Path) -> Problem:
        place = self.document.keys.get(path)
        if place is None or self._is_option(path):
            return self.origin.problem(message, *path)
        return Problem(self.origin.file, *place, message)

    def _wrong(self, error: ErrorDetails) -> str:
        path, name = error["loc"], self._name(error["loc"])
        if error["type"] == "said":
            return f"{name} {error['ctx']['message']}"
        words = {"turn": "a prompt, or keys such as prompt and steps", **self.in_script, **self.in_turn}
        wanted = words.get(self._kind(path) or "", "something else")
        if error["type"] == "missing":
            return f"{name} is missing: write {wanted}"
        word = None if self._is_option(path) else self.document.unquoted.get(path)
        found = shortened(word) if word and not isinstance(error["input"], str) else shown(error["input"])
        return f"{name} must be {wanted}, found {found}"


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, nothing invisible."""
    match value:
        case None:
            return "nothing"
        case str():
            length = f" ({len(value):,} characters)" if len(value) > 40 else ""
            return repr(shortened(value)) + length
        case Mapping():
            return "keys and values"
        case list() | tuple():
            return f"a list of {len(value)}"
        case os.PathLike():
            return repr(shortened(os.fsdecode(value)))
    return shortened(str(value))


def shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
