"""`--max-vram` and `--no-compile`: what a person writes, and what the worker's process is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import ROOT, make_pictures
from hypothesis import given
from hypothesis import strategies as st
from test_cli import cli  # noqa: F401 - a fixture

from core import paths
from core.errors import UsageError
from kontext_tui import settings
from kontext_tui.figures import read_size

PROBE = """
import os
from core.errors import UnavailableError

class Probe:
    def __init__(self, device):
        self.device = device

    def open(self, *asked, **more):
        raise UnavailableError(f"{self.max_vram} {os.environ.get('KONTEXT_TUI_COMPILE')}")
"""


@given(
    st.integers(1, 10**9 - 1), st.sampled_from(["MB", "GB", "MiB", "GiB", "gb", "gib"]), st.sampled_from(["", " "])
)
def test_a_size_is_a_number_and_a_unit(number, unit, space):
    power = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}[unit.lower()]
    assert read_size(f"{number}{space}{unit}") == number * power


def test_a_size_may_have_a_fraction():
    assert read_size("11.5GiB") == 23 * 2**29
    assert read_size("0.5 GB") == 500_000_000


@pytest.mark.parametrize(
    "text", ["", "12", "GB", "-1GB", "1e3GB", "12 G", "0GB", "0.0MiB", "1,5GB", "12TB", "१GB", "nanGB", "12GB\n7"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="as in 12GB or 11.5GiB"):
        read_size(text)


@given(st.text())
def test_whatever_is_written_is_read_or_refused(text):
    with suppress(ValueError):
        assert read_size(text) > 0


@pytest.mark.parametrize("command", [["run", "edits.yaml"], ["work", "--drain"]])
def test_a_bad_size_is_one_line_and_exit_code_2(cli, command):  # noqa: F811
    code, out, err = cli(*command, "--max-vram", "plenty")
    wanted = "kontext-tui: --max-vram 'plenty': write a number and GB, GiB, MB or MiB, as in 12GB or 11.5GiB\n"
    assert (code, out, err) == (2, "", wanted)


def test_the_configuration_limits_where_no_option_does(cli, tmp_path):  # noqa: F811
    file = paths.config_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('theme = "no such theme"\nmax_vram = "12GB"\n')  # which is the app's business alone
    assert settings.max_vram() == 12_000_000_000
    code, out, _ = cli("doctor", "--json")
    told = {check["name"]: check["finding"] for check in json.loads(out)}
    assert told["max_vram"] == f"a worker takes at most 11.2 GiB of a GPU ({file})"
    for wrong in ("12", '"12"', "true", '"0GB"'):
        file.write_text(f"max_vram = {wrong}\n")
        for load in (settings.load, settings.max_vram):
            with pytest.raises(UsageError, match="max_vram .*: write a number and GB"):
                load()
    code, _, err = cli("work", "--drain")
    assert code == 2
    assert err.startswith(f"kontext-tui: {file}: max_vram '0GB': ")
    assert cli("work", "--drain", "--max-vram", "1GB", "--quiet")[0] == 0  # the option comes first
    file.write_text('max_vram = ""\n')
    assert settings.max_vram() is None


@pytest.mark.parametrize(
    ("options", "before", "seen"),
    [
        (("--max-vram", "11.5GiB", "--no-compile"), None, f"{23 * 2**29} 0"),
        ((), None, "None None"),
        ((), "0", "None 0"),
        (("--no-compile",), "1", "None 0"),
    ],
)
def test_the_workers_process_is_told(tmp_path, options, before, seen):
    make_pictures(tmp_path / "photos", 1)
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "edits.yaml").write_text("input: photos\nmodel: kontext-tiny\nturns:\n  - make it night\n")
    environment = {**os.environ, "KONTEXT_TUI_STUDIO": "probe:Probe", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment.pop("KONTEXT_TUI_COMPILE", None)
    if before is not None:
        environment["KONTEXT_TUI_COMPILE"] = before
    done = subprocess.run(
        [sys.executable, "-m", "kontext_tui", "run", "edits.yaml", "--json", "--quiet", *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["error"] == {"kind": "unavailable", "message": seen}


def test_bench_measures_uncompiled_where_it_is_told_to(cli, monkeypatch):  # noqa: F811
    monkeypatch.setenv("KONTEXT_TUI_COMPILE", "1")
    assert cli("bench", "--model", "nowhere")[0] == 4
    assert os.environ["KONTEXT_TUI_COMPILE"] == "1"
    assert cli("bench", "--model", "nowhere", "--no-compile")[0] == 4
    assert os.environ["KONTEXT_TUI_COMPILE"] == "0"
