"""Names and prompts made to be obeyed by a terminal, through every command, in a real pseudo-terminal.

What reaches the terminal is searched byte by byte: no escape but those the program itself draws with.
"""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from conftest import ROOT, make_pictures
from PIL import Image, PngImagePlugin
from terminal import Terminal

EVIL = "a\x1b]0;owned\x07\x1b[2J\x1b[8m[red][@click=app.quit]\u202e\u200b\x9b2Jb"
OURS = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[\d*A|\x1b\[2K|\x1b\[1?K")
"""Colours, the cursor hidden and shown, and going up to draw a bar again."""


@pytest.fixture
def hostile_folder(tmp_path):
    photos = tmp_path / "photos"
    make_pictures(photos, 2)
    (photos / "picture-0.png").rename(photos / f"{EVIL}.png")
    os.rename(photos / "picture-1.png", bytes(photos) + b"/\xff\xfe\x1b[2J.png")  # noqa: PTH104
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", EVIL)
    Image.new("RGB", (32, 32), "teal").save(photos / "meta.png", pnginfo=info)
    (photos / f"{EVIL}-broken.png").write_bytes(b"no picture \x1b]0;x\x07")
    script = {"input": "photos", "output": "out", "model": "kontext-tiny", "steps": 1, "turns": [EVIL]}
    (tmp_path / "e.yaml").write_text(json.dumps(script))
    return tmp_path


def shown(folder, *words):
    """Exit code and bytes of a command in a terminal."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "KONTEXT_TUI_STUDIO": "fast_worker:FastStudio",
        "KONTEXT_TEST_LOG": str(folder / "log"),
    }
    terminal = Terminal(
        [sys.executable, "-m", "kontext_tui", *map(str, words)], size=(100, 30), folder=folder, env=environment
    )
    try:
        code = terminal.wait(60)
    finally:
        terminal.close()
    return code, bytes(terminal.output)


def test_no_command_passes_an_escape_on(hostile_folder):
    commands = [
        ("run", "e.yaml"), ("list",), ("status",), ("show", 1), ("show", 2), ("show", 3), ("show", 4),
        ("review", "list", "--changed"), ("accept", "1.1"), ("reject", "2.1"), ("redo", "3.1", "--prompt", EVIL),
        ("review", "list"), ("add", "e.yaml", "--again"), ("work", "--drain"), ("review", "export", "chosen"),
        ("add", f"{EVIL}.yaml"), ("run", "e.yaml", "--model", EVIL), ("cancel", "1"), ("doctor",),
    ]  # fmt: skip
    seen = b""
    for words in commands:
        code, output = shown(hostile_folder, *words)
        assert code in (0, 1, 2, 4), (words, output)
        assert b"Traceback" not in output, (words, output)
        foreign = OURS.sub(b"", output)
        assert b"\x1b" not in foreign, (words, foreign[max(0, foreign.find(b"\x1b") - 60) :][:160])
        assert b"\x07" not in foreign
        text = foreign.decode()
        assert not any(0x7F <= ord(c) < 0xA0 or c in "\u202e\u200b" for c in text), words
        seen += output
    assert b"owned" in seen  # it was there to be shown
    assert b"[@click=app.quit]" in seen  # and no markup was taken for markup
