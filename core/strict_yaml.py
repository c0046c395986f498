"""YAML with nothing clever in it: plain data, and the line and column where each value stands.

Words mean what the writer sees. Values follow YAML 1.2's core schema, so `no`, `16:9`, `1_000` and
`2026-01-01` are text and `012` is twelve; keys are always text. Whatever can surprise or attack a reader is
refused by name: anchors, aliases, tags, merge keys, duplicate keys, several documents, control characters,
bytes that are not UTF-8, and anything too large or too deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from core.errors import Problem, ScriptError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000  # PyYAML needs about 20 s for a full MiB of `1,1,1`; this many take half a second

Path = tuple[str | int, ...]
"""The keys and list indices that lead to a value: `("turns", 0, "prompt")`."""

Place = tuple[int, int]
"""Line and column, counting from 1."""

_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,4000}")  # int() refuses longer ones; as floats they are infinite
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# YAML 1.1 breaks lines at U+0085, U+2028 and U+2029 and 1.2 does not: refused, so no two readers disagree.
_UNPRINTABLE = re.compile("[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Document:
    """A loaded file. The three maps share their paths with `data`."""

    data: dict[str, Any]
    places: dict[Path, Place] = field(default_factory=dict)
    """Where each value starts; `()` is the file's top level."""
    keys: dict[Path, Place] = field(default_factory=dict)
    """Where the key of each value in a mapping starts."""
    unquoted: dict[Path, str] = field(default_factory=dict)
    """The text of each value written without quotes, before it became a number, a truth value or nothing."""


def load(text: str | bytes, file: str) -> Document:
    """Load one mapping, or raise a ScriptError with every problem; `file` is the name they give."""
    content = _decode(text, file)
    loader = yaml.SafeLoader(content)
    try:
        return _Composer(file).compose(_events(loader))
    except yaml.MarkedYAMLError as error:
        raise ScriptError([_syntax_problem(error, content, file)]) from None
    except (yaml.YAMLError, ValueError):  # chr() and int() inside PyYAML, at an impossible \U or %YAML
        message = "this escape or directive is out of range: write the character itself"
        raise ScriptError([Problem(file, *_place(loader.get_mark()), message)]) from None


def resolve(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means in YAML 1.2's core schema, in decimal only."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _decode(text: str | bytes, file: str) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        raise ScriptError([Problem(file, 1, 1, "larger than 1 MiB: too large for a script")])
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        raise ScriptError([_at(before, file, "not UTF-8 text: save the file as UTF-8")]) from None
    if found := _UNPRINTABLE.search(content):
        what = f"the invisible character U+{ord(found[0]):04X} cannot stand in a script: remove it"
        raise ScriptError([_at(content[: found.start()], file, what)])
    return content


def _at(before: str, file: str, message: str) -> Problem:
    """A problem at the character that follows the text `before`."""
    breaks = [match.end() for match in _LINE_BREAK.finditer(before)]
    return Problem(file, len(breaks) + 1, len(before) - (breaks[-1] if breaks else 0) + 1, message)


def _events(loader: yaml.SafeLoader) -> Iterator[yaml.Event]:
    # PyYAML's parser keeps its own stack, so unlike its composer it cannot run out of Python's.
    while loader.check_event():
        yield loader.get_event()  # type: ignore[no-untyped-call]


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    path: Path
    items: list[Any] | dict[str, Any]
    key: str | None = None
    """In a mapping: the key whose value comes next."""


class _Composer:
    """Turns parser events into a Document, collecting what is refused on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.document = Document({})
        self.problems: list[Problem] = []
        self.open: list[_Open] = []
        self.root: Any = None
        self.documents = 0
        self.values = 0

    def compose(self, events: Iterator[yaml.Event]) -> Document:
        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        self.stop(event, "a second document starts here: a script is one, remove this `---`")
                case yaml.AliasEvent():
                    self.refuse(event, f"`*{event.anchor}` is an alias: write the value out, text in quotes")
                    self.value(event, None)
                case yaml.ScalarEvent():
                    self.check(event)
                    self.scalar(event)
                case yaml.SequenceStartEvent():
                    self.check(event)
                    self.enter(event, [])
                case yaml.MappingStartEvent():
                    self.check(event)
                    self.enter(event, {})
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self.open.pop()
        return self.finish()

    def finish(self) -> Document:
        if not self.problems and self.root is None:
            self.problems.append(Problem(self.file, 1, 1, "the file is empty: write `input:` and `turns:`"))
        elif not self.problems and not isinstance(self.root, dict):
            found = "a list" if isinstance(self.root, list) else "a single value"
            message = f"a script is keys with values, such as `input: photos/`; this is {found}"
            self.problems.append(Problem(self.file, *self.document.places[()], message))
        if self.problems:
            raise ScriptError(self.problems)
        self.document.data.update(self.root)
        return self.document

    def refuse(self, event: yaml.Event, message: str) -> None:
        self.problems.append(Problem(self.file, *_place(event.start_mark), message))

    def stop(self, event: yaml.Event, message: str) -> NoReturn:
        self.refuse(event, message)
        raise ScriptError(self.problems)

    def check(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            self.refuse(event, f"`&{event.anchor}` is an anchor: remove it, or put text in quotes")
        if event.tag is not None:
            self.refuse(event, "`!` starts a tag: remove it, or put text in quotes")

    def scalar(self, event: yaml.ScalarEvent) -> None:
        text = self.text(event)
        if (mapping := self.awaits_key()) is not None:
            self.key(event, mapping, text)
            return
        path = self.value(event, text if event.style else resolve(text))
        if not event.style:
            self.document.unquoted[path] = text

    def text(self, event: yaml.ScalarEvent) -> str:
        """The scalar's text; JSON's `\\ud83d\\ude00` pairs become the one character they mean."""
        try:
            text = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.refuse(event, "half a surrogate pair in an escape: write the character itself")
            return ""
        if "\0" in text:
            self.refuse(event, r"`\0` is not text: remove it")
        return text

    def awaits_key(self) -> dict[str, Any] | None:
        top = self.open[-1] if self.open else None
        return top.items if top and isinstance(top.items, dict) and top.key is None else None

    def key(self, event: yaml.ScalarEvent, mapping: dict[str, Any], key: str) -> None:
        top = self.open[-1]
        top.key = key
        line, _ = self.document.keys.setdefault((*top.path, key), _place(event.start_mark))
        if key == "<<" and not event.style:
            self.refuse(event, "`<<` merges keys from elsewhere: write them out")
        elif key in mapping:
            self.refuse(event, f"`{_short(key)}` is given twice, first in line {line}: keep one")

    def value(self, event: yaml.Event, value: Any) -> Path:
        """Put a value where it belongs and say where that is."""
        path: Path = ()
        if not self.open:
            self.root = value
        elif self.awaits_key() is not None:
            self.stop(event, "a key must be a single word")
        else:
            top = self.open[-1]
            if isinstance(top.items, list):
                path = (*top.path, len(top.items))
                top.items.append(value)
            elif top.key is not None:
                path = (*top.path, top.key)
                top.items.setdefault(top.key, value)
                top.key = None
        self.document.places.setdefault(path, _place(event.start_mark))
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(event, f"more than {MAX_VALUES:,} values: too large for a script")
        return path

    def enter(self, event: yaml.CollectionStartEvent, items: list[Any] | dict[str, Any]) -> None:
        if len(self.open) == MAX_DEPTH:
            self.stop(event, f"nested more than {MAX_DEPTH} deep: put text with brackets in quotes")
        self.open.append(_Open(self.value(event, items), items))


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


# PyYAML's words, ours, and whether the place to mend is where the thing began instead of where it broke.
_TAB = "a tab: YAML indents with spaces, replace it by spaces"
_SYNTAX = (
    ("found character '\\t'", _TAB, False),
    (
        "cannot start any token",
        "unquoted text cannot start with this character: put the text in quotes",
        False,
    ),
    (
        "mapping values are not",
        "a colon in unquoted text, or a wrong indentation: quote the text or align it",
        False,
    ),
    ("mapping keys are not", "unquoted text cannot start with `? `: put the text in quotes", False),
    ("sequence entries are not", "a list item cannot start here: give each `- ` its own line", False),
    ("could not find expected ':'", "a key needs a colon and a space after it, as in `steps: 28`", True),
    ("unexpected end of stream", "the quote that opens here is never closed", True),
    ("unexpected document separator", "the quote that opens here is never closed", True),
    ("unknown escape", "not an escape YAML knows: write `\\\\` for a backslash, or use single quotes", False),
    ("escape sequence", "an unfinished escape: write `\\\\` for a backslash, or use single quotes", False),
    ("expected ',' or ']'", "the list opened with `[` needs a comma or its `]` here", False),
    ("expected ',' or '}'", "the mapping opened with `{` needs a comma or its `}` here", False),
    (
        "expected <block end>",
        "text after a closing quote or bracket, or a wrong indentation: quote it all",
        False,
    ),
    ("scanning a block scalar", "after `|` or `>` the text starts on the next line, indented", False),
    ("scanning an alias", "`*` starts an alias: put the text in quotes", True),
    ("scanning an anchor", "`&` starts an anchor: put the text in quotes", True),
    ("tag", "`!` starts a tag: remove it, or put the text in quotes", True),
    ("expected the node content", "a value is missing here, or a bracket is not closed", False),
    ("<document start>", "this does not belong to the keys above: check its indentation, or quote it", False),
)


def _syntax_problem(error: yaml.MarkedYAMLError, content: str, file: str) -> Problem:
    words = " ".join(f"{error.context or ''} {error.problem or ''}".split())
    found = ((ours, at_start) for theirs, ours, at_start in _SYNTAX if theirs in words)
    message, at_start = next(found, (f"not valid YAML: {words}", False))
    line, column = _place((error.context_mark if at_start else None) or error.problem_mark)
    broken = _LINE_BREAK.split(content)[line - 1] if line else ""
    indent = broken[: len(broken) - len(broken.lstrip())]
    if "\t" in indent:  # PyYAML may take the tab for text and stumble later in the line
        return Problem(file, line, indent.index("\t") + 1, _TAB)
    return Problem(file, line, column, message)
