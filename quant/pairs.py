"""Calibration pairs: pictures with prompts, from a folder with a `pairs.jsonl`.

A line each: {"image": name, "prompt": text}, and where the exact result is known, "target": name, for `compare`.
Nothing heavy is imported: a bad list is told at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.edit import images
from core.errors import InputError, KontextError, UsageError

DEFAULT_PAIRS = Path(__file__).parent / "data" / "pairs"
PAIRS_FILE = "pairs.jsonl"
FEWEST = 8
OnSkip = Callable[[str], None]
"""A line that names what was skipped and why."""
_EXAMPLE = '{"image": "cat.jpg", "prompt": "Make it warmer"}'


@dataclass(frozen=True)
class Pair:
    """A conditioning image and the edit asked of it."""

    image: Path
    prompt: str
    target: Path | None = None
    """The exact result, where it is known."""


@dataclass(frozen=True)
class PairSet:
    """Usable pairs; `digest` is of their pictures' bytes and prompts, in order."""

    pairs: tuple[Pair, ...]
    digest: str


def read_pairs(
    folder: Path | None = None,
    *,
    limit: int | None = None,
    fewest: int = FEWEST,
    on_skip: OnSkip = lambda line: None,
) -> PairSet:
    """The pairs of a folder (those that ship with the project by default), at most `limit`, spread over the file.

    What cannot be used is named through `on_skip`. Raises UsageError where there is no pair list, InputError where
    fewer than `fewest` pairs are left.
    """
    folder = DEFAULT_PAIRS if folder is None else folder
    path = folder / PAIRS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: no readable pair list; a line each: {_EXAMPLE}") from None
    wanted = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if limit is not None and limit < fewest:
        raise UsageError(f"--limit {limit}: calibration needs at least {fewest} pairs")
    pairs: list[Pair] = []
    digest = hashlib.sha256()
    for number, line in _spread(wanted, limit):
        try:
            pair, picture = _read_pair(folder, line)
        except (KontextError, OSError) as error:
            on_skip(f"{path}:{number}: skipped: {error}")
            continue
        pairs.append(pair)
        digest.update(f"{picture} {pair.prompt}\n".encode())
    if len(pairs) < fewest:
        raise InputError(f"{path}: {len(pairs)} usable pairs; at least {fewest} are needed")
    return PairSet(tuple(pairs), digest.hexdigest())


def _read_pair(folder: Path, line: str) -> tuple[Pair, str]:
    try:
        entry = json.loads(line)
        name, prompt, target = entry["image"], entry["prompt"], entry.get("target")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"not a pair such as {_EXAMPLE}") from None
    if not (isinstance(name, str) and isinstance(prompt, str) and prompt.strip()):
        raise InputError("image and prompt must be text")
    if not (target is None or isinstance(target, str)):
        raise InputError("target must be the name of a picture")
    return Pair(folder / name, prompt, folder / target if target else None), images.load(folder / name).sha256


def _spread(lines: Sequence[tuple[int, str]], limit: int | None) -> list[tuple[int, str]]:
    if limit is None or limit >= len(lines):
        return list(lines)
    return [lines[i * len(lines) // limit] for i in range(limit)]
