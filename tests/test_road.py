"""The whole road on the embedded model, as a person types it: quantize -> export -> engine -> lint, every precision.

Real ModelOpt, the real TensorRT-RTX builder for RTX 40 and 50 cards, one artifact store; nothing of it needs a GPU.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_checkpoints as small
from conftest import ROOT

from core.edit.runtimes import PRECISIONS

pytest.importorskip("modelopt")
pytest.importorskip("tensorrt_rtx_bindings")

QUICK = ("--limit", "8", "--steps", "1")
"""Calibrated on little: enough for a road, not for quality (docs/benchmarks/quantization.md)."""
TARGETS = [
    ("bf16", "sm89"),
    ("bf16", "sm120"),
    ("fp8", "sm89"),
    ("fp8", "sm120"),
    ("fp4", "sm120"),
    ("fp4-svd", "sm120"),
]


def command(home: Path, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    words = [sys.executable, "-m", "kontext_tui", *map(str, arguments)]
    return words, {**os.environ, "XDG_CACHE_HOME": str(home)}


def run(home: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words, environment = command(home, *arguments)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def store(home: Path) -> list[Path]:
    """Every file in the store but its locks and notes."""
    folder = home / "kontext-tui" / "artifacts"
    return [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in ("locks", "small")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("road")


@pytest.fixture(scope="module")
def checkpoints(home):
    """Each precision's checkpoint as `quantize --json` tells of it."""
    model = ("--model", "kontext-tiny")
    return {
        p: json.loads(run(home, "quantize", *model, "--precision", p, *QUICK, "--json").stdout)
        for p in PRECISIONS
        if p != "bf16"
    }


@pytest.fixture(scope="module")
def graphs(home, checkpoints):
    return {
        p: json.loads(run(home, "export", "--model", "kontext-tiny", "--precision", p, "--json").stdout)
        for p in PRECISIONS
    }


def test_checkpoints_are_as_small_as_they_should_be(checkpoints, home):
    """8 and 4.5 bits a weight of the blocks, which hold 8.9 of the transformer's 9.6 M weights."""
    full = (ROOT / "core/data/kontext-tiny/transformer/diffusion_pytorch_model.safetensors").stat().st_size
    share = {p: made["bytes"] / full for p, made in checkpoints.items()}
    assert share["fp8"] < 0.56
    assert share["fp4"] < 0.36
    assert share["fp4"] < share["fp4-svd"] < 0.52  # rank 32 is much beside a width of 256
    again = json.loads(run(home, "quantize", "--model", "kontext-tiny", "-p", "fp8", *QUICK, "--json").stdout)
    assert again["checkpoint"] == checkpoints["fp8"]["checkpoint"], "asked twice, made once"


def test_without_refinement_it_is_another_checkpoint(checkpoints, home):
    words = ("--model", "kontext-tiny", "--precision", "fp8", *QUICK, "--no-refine", "--json")
    plain = json.loads(run(home, "quantize", *words).stdout)
    assert plain["checkpoint"] != checkpoints["fp8"]["checkpoint"]
    assert plain["bytes"] == checkpoints["fp8"]["bytes"]


@pytest.mark.parametrize(("precision", "sm"), TARGETS)
def test_engines_are_built_and_keep_their_promises(home, graphs, precision, sm):
    built = run(home, "engine", "build", "--model", "kontext-tiny", "--precision", precision, "--gpu", sm, "--json")
    engine = json.loads(built.stdout)
    assert engine["bytes"] > 5_000_000
    linted = json.loads(run(home, "engine", "lint", engine["key"][:12], "--json").stdout)
    report = linted[0] if isinstance(linted, list) else linted
    assert report["problems"] == []
    fp4 = {"fp4": small.LINEARS - small.VALUES, "fp8": small.VALUES}
    low = {"bf16": {}, "fp8": {"fp8": small.LINEARS}, "fp4": fp4, "fp4-svd": fp4}
    assert {kind: n for kind, n in report["gemms"].items() if kind != "bf16"} == low[precision]
    assert report["bmms"] == {"bf16" if precision == "bf16" else "fp8": 2 * small.BLOCKS}


def test_fp4_for_a_gpu_that_has_none_is_refused_with_the_reason(home, graphs):
    words = ("engine", "build", "--model", "kontext-tiny", "--precision", "fp4", "--gpu", "sm89")
    assert "sm89 (RTX 40, L4, L40) has no" in run(home, *words, code=4).stderr


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "bf16"])
def test_the_checkpoint_edits_a_photograph(home, checkpoints, precision, tmp_path):
    options = ("--precision", precision, "--runtime", "torch", "--steps", "2", "--quiet")
    script = tmp_path / "edit.yaml"
    script.write_text(f"input: {ROOT}/examples/photos/dogs.jpg\noutput: out/\nturns: [Make it night]\n")
    run(home, "run", script, "--model", "kontext-tiny", *options, "--db", tmp_path / "jobs.db")
    assert (tmp_path / "out" / "dogs.png").stat().st_size > 100_000


def test_killed_while_it_calibrates_nothing_half_is_left(tmp_path):
    words, environment = command(tmp_path, "quantize", "--model", "kontext-tiny", "-p", "fp8", *QUICK)
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "choosing weights" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    listed = run(tmp_path, "export", "--model", "kontext-tiny", "--precision", "fp8", code=4)
    assert "quantize" in listed.stderr
    assert len(listed.stderr.splitlines()) == 1


def test_a_full_disk_half_way_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk: the checkpoint has 10 MB."""
    words, environment = command(tmp_path, "quantize", "--model", "kontext-tiny", "-p", "fp8", *QUICK, "--quiet")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, preexec_fn=limit
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert store(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("quantize", "-p", "fp16", "--model", "kontext-tiny"), 2, "fp8, fp4, fp4-svd"),
        (("quantize", "-p", "fp4-svd", "--no-refine", "--model", "kontext-tiny"), 2, "--no-refine"),
        (("quantize", "-p", "bf16", "--model", "kontext-tiny"), 2, "no recipe"),
        (("quantize", "-p", "fp8", "--model", "no/such/folder"), 4, "no/such/folder"),
        (("quantize", "-p", "fp8", "--model", "kontext-tiny", "--limit", "3"), 2, "at least 8"),
        (("quantize", "-p", "fp8", "--model", "kontext-tiny", "--pairs", "examples"), 2, "pairs.jsonl"),
        (("export", "--precision", "fp8", "--model", "kontext-tiny"), 4, "kontext-tui quantize"),
        (("engine", "build", "--precision", "bf16", "--model", "kontext-tiny", "--gpu", "sm99"), 2, "sm99"),
        (("engine", "lint", "--onnx", "README.md", "--precision", "fp8"), 2, "is not an ONNX graph"),
        (("compare", "-p", "fp5", "--model", "kontext-tiny"), 2, "bf16, fp8, fp4, fp4-svd"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, code, says):
    done = run(tmp_path, *arguments, code=code)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
