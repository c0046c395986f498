"""The pictures a script edits: files, folders and globs made into one list, without opening a single file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from core.errors import ScriptError, UsageError
from core.script import MAGIC, Script

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class FoundInput:
    """A picture to edit. Whatever carries a picture's name is one, until the decoder says otherwise."""

    path: Path
    """Absolute; a link stays the link it is."""
    name: str
    """Its path below the folder that all inputs share: shown to people, and mirrored among the results."""


@dataclass(frozen=True)
class _Matches:
    """What one entry of `input` stands for, and the folder it was looked for in."""

    root: Path
    paths: list[Path]


OnFolder = Callable[[Path], None]
"""Told of each folder before it is searched; what it raises ends the search."""


def find_inputs(
    script: Script, is_result: Callable[[Path], bool] = lambda path: False, on_folder: OnFolder = lambda folder: None
) -> list[FoundInput]:
    """The script's inputs, each file once, in the order of `input` and naturally sorted within each entry.

    A scan never takes the script's own results for inputs: it stays out of an output folder below the scanned
    one, and where both are the same (or results go further up) it leaves out what `is_result` recognises.
    Raises a ScriptError with everything that is missing or empty.
    """
    problems = []
    matches: list[_Matches] = []
    results = _real(script.output_folder)
    for index, pattern in enumerate(script.input):
        try:
            matches.append(_matches(_absolute(pattern), results, is_result, on_folder))
        except UsageError as error:
            problems.append(script.problem(str(error), "input", index))
    paths = _once(path for match in matches for path in match.paths)
    if len(paths) > 1 and "{stem}" not in script.output_name:
        message = f"output names one file for {len(paths):,} pictures: put {{stem}} in its name"
        problems.append(script.problem(message, "output"))
    if problems:
        raise ScriptError(problems)
    shared = os.path.commonpath([match.root for match in matches])
    return [FoundInput(path, path.relative_to(shared).as_posix()) for path in paths]


def pictures_below(folder: Path) -> Iterator[int]:
    """How many pictures a script finds in a folder and its subfolders: a number for each of them, as it is searched.

    No file is opened, so that neither a pipe nor a drive that sleeps is waited for. Raises UsageError where a folder
    cannot be searched.
    """
    for each in _lead(folder, "**", None, lambda folder: None):
        yield sum(_is_picture(entry) for entry in _entries(each, "*"))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that a scan goes into, sorted as people count. Raises UsageError as a scan does."""
    return sorted(_lead(folder, "*", None, lambda folder: None), key=_natural)


def _matches(path: Path, results: Path, is_result: Callable[[Path], bool], on_folder: OnFolder) -> _Matches:
    """What one absolute entry of `input` stands for; a UsageError where that is nothing."""
    root, parts = _split(path)
    if _is_folder(path):
        root, found = path, _scan(path, ["**"], results, on_folder)
        nothing = f"{path} holds no pictures: none of its files ends in {', '.join(PICTURE_SUFFIXES)}"
    elif not os.path.lexists(path) and any(MAGIC.search(part) for part in parts):
        found = _scan(root, parts, results, on_folder)
        nothing = f"{path} matches no pictures: check the folder and the pattern"
    else:
        return _Matches(path.parent, [_existing(path)])
    if not found:
        raise UsageError(nothing)
    if _real(root).is_relative_to(results):
        found = [picture for picture in found if not is_result(picture)]
        if not found:
            raise UsageError(f"{path} holds only results of earlier edits: name other pictures")
    return _Matches(root, found)


def _existing(path: Path) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist: check the name") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return path


def _split(path: Path) -> tuple[Path, list[str]]:
    """The deepest folder that exists as written, brackets and all, and the parts of the path below it."""
    root, parts = Path(path.anchor), list(path.parts[1:])
    while len(parts) > 1 and _is_folder(root / parts[0]):
        root /= parts.pop(0)
    return root, parts


def _scan(root: Path, parts: list[str], results: Path, on_folder: OnFolder) -> list[Path]:
    """The pictures below `root` that match, sorted; neither hidden ones nor those behind links to folders."""
    real = _real(root)
    below = results != real and results.is_relative_to(real)
    avoided = root / results.relative_to(real) if below else None
    *above, last = [*parts, "*"] if parts[-1] == "**" else parts
    folders = [root]
    for part in above:
        folders = list(dict.fromkeys(to for folder in folders for to in _lead(folder, part, avoided, on_folder)))
    entries = (entry for folder in folders for entry in _entries(folder, last))
    return sorted((Path(entry.path) for entry in entries if _is_picture(entry)), key=_natural)


def _lead(folder: Path, part: str, avoided: Path | None, on_folder: OnFolder) -> Iterator[Path]:
    """The folders that one part of a pattern leads to from `folder`."""
    if part == "**":
        waiting = [folder]
        while waiting:
            yield (folder := waiting.pop())
            waiting += _lead(folder, "*", avoided, on_folder)
    elif MAGIC.search(part):
        on_folder(folder)
        for entry in _entries(folder, part):
            is_folder = entry.is_dir(follow_symlinks=False) and not _is_picture(entry)
            if is_folder and (path := Path(entry.path)) != avoided:
                yield path
    elif _is_folder(folder / part) and folder / part != avoided:
        yield folder / part


def _entries(folder: Path, pattern: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            matching = [entry for entry in entries if fnmatchcase(entry.name, pattern)]
    except OSError as error:
        raise UsageError(f"{folder} cannot be searched: {error.strerror}") from None
    return [entry for entry in matching if pattern.startswith(".") or not entry.name.startswith(".")]


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """By its name alone: a folder or a pipe called `x.png` is one for the decoder to refuse by name."""
    return entry.name.lower().endswith(PICTURE_SUFFIXES)


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """Sorts img2 before img10, folder by folder, whatever the case."""
    split = [(re.split(r"([0-9]+)", part.casefold()), part) for part in path.parts]
    return [([int(run) if at % 2 else run for at, run in enumerate(runs)], part) for runs, part in split]


def _once(paths: Iterable[Path]) -> list[Path]:
    """Each file once, however it was reached; two links to one picture are still two inputs."""
    real = cache(_real)
    seen: dict[Path, Path] = {}
    for path in paths:
        seen.setdefault(real(path.parent) / path.name, path)
    return list(seen.values())


def _absolute(pattern: str) -> Path:
    """Steps back (`..`) are taken here, through links as the system would, so that roots can be compared."""
    parts = Path(pattern).parts
    back = len(parts) - parts[::-1].index("..") if ".." in parts else 1
    return _real(Path(*parts[:back])).joinpath(*parts[back:])


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike resolve(), it lives with links that go in circles


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - pathlib's raises where a parent may not be read
