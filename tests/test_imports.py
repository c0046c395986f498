"""What is imported when: light things stay light, and the floors stay floors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = {"torch", "transformers", "diffusers", "textual", "tensorrt", "tensorrt_rtx", "modelopt", "onnx"}


@pytest.mark.parametrize(
    ("module", "also"),
    [
        ("kontext_tui.cli", {"numpy", "sqlite_utils", "pydantic", "PIL"}),
        ("kontext_tui.cli.enqueue", {"numpy"}),
        ("core.script", {"numpy", "PIL"}),
        ("core.edit.models", {"numpy"}),
        ("core.edit.studio", {"numpy"}),
        ("core.jobs.worker", {"numpy"}),
        ("core.jobs.database", {"sqlite_utils", "PIL"}),
    ],
)
def test_a_light_module_loads_nothing_heavy(module, also):
    code = f"import sys, {module}; print(' '.join({HEAVY | also!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_floors_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
