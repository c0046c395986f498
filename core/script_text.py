"""An edit script as YAML text: what `core.script` reads back as the same values, written as a person would."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core import strict_yaml
from core.script_problems import TRUTH_WORDS

# Text that every reader of YAML takes for the same text. With a digit in front there must be a space: `16:9`,
# `1_000` and `2026-01-01` are numbers and dates to some.
_PLAIN = re.compile(r"(?:[^\W\d_]|~/|\.{0,2}/|[0-9][\w.,]* )(?:[\w .,;/()!?+%='{}~-]*[\w.,;/()!?+%='{}~-])?")
_NAMED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def write(script: Mapping[str, Any]) -> str:
    """A mapping of text, numbers, and lists of those or of mappings of them. Values are not checked here."""
    lines: list[str] = []
    for key, value in script.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            lines.append(f"{key}:")
            for item in value:
                lines += _item(item)
        else:
            lines += _entry(key, value, "")
    return "\n".join(lines) + "\n"


def _item(item: Any) -> Iterator[str]:
    if not isinstance(item, Mapping):
        yield f"  - {_scalar(item, '    ')}"
        return
    lead = "  - "
    for key, value in item.items():
        for line in _entry(key, value, "    "):
            yield lead + line.removeprefix("    ") if lead else line
            lead = ""


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    yield from f"{indent}{key}: {_scalar(value, indent + '  ')}".split("\n")


def _scalar(value: str | int | float, indent: str) -> str:
    """One value; `indent` is that of the lines after the first."""
    if not isinstance(value, str):
        if isinstance(value, float) and not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        return str(value)
    plain = (
        _PLAIN.fullmatch(value)
        and value == value.strip()
        and value.isprintable()
        and value.lower() not in TRUTH_WORDS
    )
    if plain and isinstance(strict_yaml.resolve(value), str):
        return value
    rows = value.split("\n")
    if len(rows) > 1 and value == value.strip() and all(row.isprintable() for row in rows):
        return "\n".join(["|-", *(indent + row if row else "" for row in rows)])
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
