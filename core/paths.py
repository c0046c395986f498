"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_state_path

APP = "kontext-tui"


def database(given: Path | None = None) -> Path:
    """The queue: `--db`, else $KONTEXT_TUI_DB, else `jobs.db` in the folder you work in."""
    return given or Path(os.environ.get("KONTEXT_TUI_DB") or "jobs.db")


def config_file() -> Path:
    return user_config_path(APP) / "config.toml"


def artifacts() -> Path:
    """Checkpoints, ONNX graphs and engines made on this machine."""
    return user_cache_path(APP) / "artifacts"


def previews() -> Path:
    """What workers paint for those who look on."""
    return user_state_path(APP) / "previews"
