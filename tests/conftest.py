"""Shared fixtures: the embedded model (loaded once a run), a photograph, and a home of the tests' own."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see core.edit
ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"


SLOW = (
    "test_road",
    "test_run",
    "test_supervisor",
    "test_compare",
    "test_screens",
    "test_review_screen",
    "test_engine",
)
"""Files of a minute and more, slowest first: side by side with others, none of them must come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_report_header() -> str:
    import PIL

    return f"SQLite {sqlite3.sqlite_version}, Pillow {PIL.__version__}"


def make_pictures(folder: Path, count: int, *, prefix: str = "picture", colour: str = "teal") -> None:
    """`count` small PNG files, each with a picture of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.new("RGB", (24, 16), colour)
        image.putpixel((index % 24, index // 24 % 16), (index % 256, index // 256, 1))
        image.save(folder / f"{prefix}-{index}.png", compress_level=0)


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """What is on disk, through a connection of its own."""
    conn = sqlite3.connect(database)
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own queue, configuration and model cache cannot leak in, nor the network."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("KONTEXT_TUI_DB", raising=False)


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, loaded in float32 on the CPU."""
    import torch

    from core.edit.loading import load
    from core.edit.models import find_spec, locate

    spec = find_spec("kontext-tiny")
    return load(spec, locate(spec), torch.device("cpu"))


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph in RGB."""
    with Image.open(PHOTOS / "cat.jpg") as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def bank_pixels():
    """Every picture of the bank that kontext-tiny is trained on, decoded once a run."""
    from examples.tiny import bank

    return bank.read_pixels(bank.read_index(), "cpu")
