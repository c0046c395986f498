"""What there is to edit with: whole, half, broken, outdated, proven or not; and `kontext-tui models`, which tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from core.edit import artifacts, inventory
from core.edit.models import MODELS, locate
from core.edit.runtimes import verdicts
from core.edit.runtimes.trt_api import Gpu
from core.edit.runtimes.verdicts import Verdict

CARD = Gpu("RTX 5090", "sm120", "580.1")


def stored(kind: str, precision: str, *, model: str = "kontext-tiny", weights: str | None = None, **parts: str):
    """An artifact with a file of its own, as the commands make them."""
    key = weights or artifacts.model_hash(locate(MODELS["kontext-tiny"]) / "transformer")
    name = {"checkpoint": "model.safetensors", "onnx": "model.onnx", "engine": "model.engine"}[kind]

    def build(folder: Path) -> dict[str, str]:
        (folder / name).write_bytes(f"{kind} {precision} {parts}".encode())
        return {"model": model}

    return artifacts.make(kind, {"model": key, "precision": precision, **parts}, build)


def engine(precision: str = "fp8", version: str | None = None, **parts: str):
    version = version or inventory._installed("tensorrt_rtx") or "1.0"
    return stored("engine", precision, sm="sm120", flavour="tensorrt_rtx", version=version, **parts)


def only(found: inventory.Inventory) -> inventory.Made:
    (made,) = found.made
    return made


def test_the_models_are_there_missing_or_half(tmp_path, monkeypatch):
    tiny, dev = inventory.look().models
    assert (tiny.name, tiny.state, tiny.folder) == ("kontext-tiny", "there", locate(MODELS["kontext-tiny"]))
    assert 30_000_000 < tiny.bytes < 40_000_000
    assert tiny.key == artifacts.model_hash(tiny.folder / "transformer")
    assert (dev.name, dev.state, dev.bytes) == ("kontext-dev", "missing", 0)
    assert "hf download" in dev.reason
    half = tmp_path / "half"
    shutil.copytree(locate(MODELS["kontext-tiny"]), half)
    (half / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 100)
    monkeypatch.setitem(MODELS, "kontext-tiny", replace(MODELS["kontext-tiny"], folder=half))
    tiny = inventory.look().models[0]
    assert (tiny.state, tiny.key) == ("half", None)
    assert "is missing or cut short" in tiny.reason


def test_a_model_that_was_a_folder_is_listed_by_its_path_as_long_as_something_is_made_of_it(tmp_path):
    stored("checkpoint", "fp8", model=str(tmp_path / "gone"), weights="0" * 64)
    found = inventory.look()
    assert [model.name for model in found.models] == ["kontext-tiny", "kontext-dev", str(tmp_path / "gone")]
    assert found.models[2].state == "missing"
    assert found.of(str(tmp_path / "gone"), "fp8", "checkpoint") == list(found.made)


def test_what_was_made_is_found_by_model_precision_and_kind():
    stored("checkpoint", "fp8")
    graph = stored("onnx", "fp8")
    found = inventory.look()
    assert [made.artifact.key for made in found.of("kontext-tiny", "fp8", "onnx")] == [graph.key]
    assert [made.standing for made in found.of("kontext-tiny", "fp8")] == ["ok", "ok"]
    assert found.of("kontext-tiny", "fp4") == []
    assert found.strays() == []


def test_a_broken_artifact_says_why():
    (stored("onnx", "bf16").folder / "model.onnx").write_bytes(b"cut")
    made = only(inventory.look())
    assert made.standing == "broken"
    assert "3 bytes long and not the recorded" in made.reason


def test_without_a_manifest_it_belongs_nowhere_and_is_still_shown():
    (stored("onnx", "bf16").folder / "manifest.json").unlink()
    found = inventory.look()
    assert found.strays() == list(found.made)
    assert (only(found).model, only(found).standing) == (None, "broken")


def test_what_was_made_of_other_weights_is_outdated():
    stored("checkpoint", "fp8", weights="0" * 64)
    made = only(inventory.look())
    assert (made.standing, made.reason) == ("old", "made of other weights than kontext-tiny has now: make it again")


def test_an_engine_of_another_tensorrt_is_outdated():
    pytest.importorskip("tensorrt_rtx_bindings")
    engine(version="0.9")
    made = only(inventory.look())
    assert made.standing == "old"
    assert "built by version 0.9" in made.reason


def test_an_engine_is_unverified_then_verified_or_refused():
    made = engine()
    assert only(inventory.look()).standing == "unverified"
    passed = Verdict(verdicts.engine_hash(made), CARD.name, CARD.driver, "fp8", 0.01, 0.05)
    verdicts.keep(made, CARD, passed)
    found = only(inventory.look())
    assert (found.standing, found.reason, found.verdicts) == ("ok", None, (passed,))
    verdicts.keep(made, replace(CARD, driver="590"), replace(passed, driver="590", error=float("nan")))
    found = only(inventory.look())
    assert (found.standing, len(found.verdicts)) == ("refused", 2)
    assert "RTX 5090 with driver 590" in found.reason


def test_the_hash_of_a_large_model_is_not_computed_for_a_list(monkeypatch):
    from core.edit import store

    monkeypatch.setattr(store, "QUICK_BYTES", 1000)
    assert inventory.look().models[0].key is None
    key = artifacts.model_hash(locate(MODELS["kontext-tiny"]) / "transformer")  # some command needed it
    assert inventory.look().models[0].key == key


def test_the_last_comparison_is_kept_for_these_very_weights():
    key = artifacts.model_hash(locate(MODELS["kontext-tiny"]) / "transformer")
    outcome = {"precisions": {"bf16": {"step_ms": 100.0}}, "edits": 12, "steps": 8, "created": "2026-06-20T10:00"}
    inventory.keep_comparison(key, outcome)
    inventory.keep_comparison("0" * 64, {"precisions": {}})
    assert inventory.look().comparisons == {"kontext-tiny": outcome}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kontext_tui", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_tells_all_of_it_and_removes_by_key():
    stored("checkpoint", "fp8")
    made = engine()
    key = artifacts.model_hash(locate(MODELS["kontext-tiny"]) / "transformer")
    figures = {"runtime": "torch", "step_ms": 90.0, "psnr": 40.25, "bytes": 12 << 20}
    inventory.keep_comparison(key, {"precisions": {"fp8": figures}, "edits": 12, "created": "2026-06-20T10:00"})
    done = run("models", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [model["state"] for model in told["models"]] == ["there", "missing"]
    assert [(each["kind"], each["state"], each["gpu"]) for each in told["artifacts"]] == [
        ("engine", "unverified", "sm120"), ("checkpoint", "ok", None),
    ]  # fmt: skip
    assert told["comparisons"]["kontext-tiny"]["precisions"]["fp8"] == figures
    lines = run("models").stdout.splitlines()
    assert lines[1].startswith("kontext-tiny  there    36 MiB")
    assert any(line.startswith(made.key[:12]) and "not yet compared" in line for line in lines)
    assert lines[-1].split() == ["fp8", "torch", "40.2", "90", "12", "MiB"]
    assert run("models", "remove", "nothing").returncode == 2
    assert "removed the engine" in run("models", "remove", made.key[:8]).stderr
    assert [each.kind for each in artifacts.list_all()] == ["checkpoint"]


def test_it_imports_nothing_heavy():
    code = (
        "import sys, kontext_tui.models_view, kontext_tui.plans; from core.edit import inventory; inventory.look();"
        "print({'torch', 'onnx', 'diffusers', 'transformers', 'tensorrt_rtx_bindings', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
