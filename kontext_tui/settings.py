"""The app's configuration, and what it remembers from one start to the next.

`config.toml` under $XDG_CONFIG_HOME/kontext-tui is yours: it is read, never written. `state.json` under
$XDG_STATE_HOME/kontext-tui is the app's own: where you were, for each queue. Losing it loses nothing.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core import paths
from core.errors import UsageError
from kontext_tui.figures import read_size

IMAGES = ("auto", "kitty", "sixel", "halfcell", "off")
QUEUES = 50
"""Queues whose state is kept; those not opened for longest are forgotten."""


@dataclass(frozen=True)
class Settings:
    """What `config.toml` may say. Every key has a default; the file need not exist."""

    theme: str = "auto"
    """A theme of Textual's; auto is `kontext`, and `ansi-dark` where the terminal has 16 colours."""
    workers: bool = False
    """Start a worker with the app where none is at work. It goes on when the app is closed."""
    preview: bool = True
    """Show the picture that is being denoised. Workers paint it only while somebody looks."""
    images: str = "auto"
    """How pictures are drawn: auto, kitty, sixel, halfcell or off."""
    max_vram: str = ""
    """GPU memory that a worker may take, such as 12GB; empty for all that is free. `--max-vram` goes before it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Other keys for actions, by the names that the help shows: `"queue.cancel" = "x,delete"`."""


def load(path: Path | None = None) -> Settings:
    """The configuration as it stands. Raises UsageError with everything that is wrong in it."""
    path = path or paths.config_file()
    data = _read(path)
    problems = list(_problems(data))
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return Settings(**data)


def max_vram() -> int | None:
    """`max_vram` in bytes, for commands that need no more of the configuration; None where it is not limited."""
    path = paths.config_file()
    value = _read(path).get("max_vram", "")
    if problem := _wrong_size(value):
        raise UsageError(f"{path}: {problem}")
    return read_size(value) if value else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}; mend the file or move it away") from None


def _wrong_size(value: object) -> str | None:
    if value == "":
        return None
    try:
        read_size(value if isinstance(value, str) else "")
    except ValueError as error:
        return f"max_vram {value!r}: {error}, in quotes"
    return None


def _problems(data: Mapping[str, Any]) -> list[str]:
    known = {each.name: each.default for each in fields(Settings)}
    found = []
    for key, value in data.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            found.append(f"there is no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif key == "keys":
            if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
                found.append('[keys] must hold lines such as "queue.cancel" = "x,delete"')
        elif key == "max_vram":
            found += filter(None, [_wrong_size(value)])
        elif not isinstance(value, type(known[key])):
            found.append(f"{key} must be {'true or false' if isinstance(known[key], bool) else 'text in quotes'}")
        elif key == "images" and value not in IMAGES:
            found.append(f"images must be one of {', '.join(IMAGES)}")
        elif key == "theme" and value != "auto" and value not in theme_names():
            near = get_close_matches(value, theme_names(), 1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            found.append(f"there is no theme {value!r}; {guess}There are auto, {', '.join(theme_names())}")
    return found


def theme_names() -> list[str]:
    from textual.theme import BUILTIN_THEMES

    return ["kontext", *BUILTIN_THEMES]


def state_file() -> Path:
    from platformdirs import user_state_path

    return user_state_path(paths.APP) / "state.json"


def load_state(database: Path) -> dict[str, Any]:
    """What the app remembers about a queue; empty where it remembers nothing, or nothing that can be read."""
    found = _all_states().get(str(database.absolute()))
    return found if isinstance(found, dict) else {}


def save_state(database: Path, state: Mapping[str, Any]) -> None:
    """Remember it. A folder that cannot be written is no reason to complain: the app only forgets."""
    states = _all_states()
    states.pop(str(database.absolute()), None)
    states[str(database.absolute())] = dict(state)
    path = state_file()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with suppress(OSError, UnicodeError, TypeError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # ASCII, so that a name with odd bytes in it survives too.
        part.write_text(json.dumps(dict(list(states.items())[-QUEUES:]), indent=1))
        part.replace(path)


def _all_states() -> dict[str, Any]:
    try:
        states = json.loads(state_file().read_text())
    except (OSError, ValueError):
        return {}
    return states if isinstance(states, dict) else {}
