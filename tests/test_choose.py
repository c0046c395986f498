"""What serves a request: runtimes and precisions as they are named; for `auto`, the fastest that this GPU can use."""

from __future__ import annotations

import pytest
from small_checkpoints import TINY

from core.edit import artifacts
from core.edit.runtimes import choose, trt_api, verdicts
from core.edit.runtimes.verdicts import Verdict
from core.errors import UnavailableError

FOLDER = TINY.parent
NAMES = {"checkpoint": "model.safetensors", "onnx": "model.onnx", "engine": "model.engine"}


def stored(kind, precision, **parts):
    def build(folder):
        (folder / NAMES[kind]).write_bytes(precision.encode())
        return {}

    return artifacts.make(kind, {"model": artifacts.model_hash(TINY), "precision": precision, **parts}, build)


def chosen(runtime="auto", precision="auto", **how):
    found = choose(runtime, precision, "kontext-tiny", FOLDER, **how)
    return found.runtime, found.precision


@pytest.fixture
def gpu(monkeypatch):
    """Puts a GPU of a kind into the machine, or none."""

    def put(sm):
        found = trt_api.Gpu("a GPU", sm, "580") if sm else None
        monkeypatch.setattr(trt_api, "current_gpu", lambda: found)
        return found

    put(None)
    return put


def test_on_a_cpu_the_unquantized_weights_whatever_else_there_is(gpu):
    stored("checkpoint", "fp8")
    stored("engine", "fp8", sm="sm120")
    assert chosen() == chosen("torch") == ("torch", "bf16")
    assert chosen(precision="fp8") == ("torch", "fp8")


def test_on_a_gpu_the_fastest_that_is_there_for_it(gpu):
    gpu("sm120")
    assert chosen() == ("torch", "bf16")
    stored("engine", "bf16", sm="sm120")
    assert chosen() == ("tensorrt", "bf16")
    stored("checkpoint", "fp4")  # by torch it would be slower
    stored("checkpoint", "fp8")
    assert chosen() == chosen("torch") == ("torch", "fp8")
    stored("engine", "fp4", sm="sm89")  # another GPU's
    assert chosen() == ("torch", "fp8")
    stored("engine", "fp4", sm="sm120")
    assert chosen() == chosen("tensorrt") == ("tensorrt", "fp4")
    assert chosen(precision="bf16") == ("torch", "bf16")
    assert chosen(keep_context=True) == ("torch", "fp8")
    assert "the fastest here" in choose("auto", "auto", "kontext-tiny", FOLDER).reason


def test_a_gpu_without_fp8_is_not_given_an_emulation(gpu):
    gpu("sm86")
    stored("checkpoint", "fp8")
    assert chosen() == ("torch", "bf16")
    assert chosen(precision="fp8") == ("torch", "fp8")


def test_an_engine_that_its_proof_refused_serves_only_who_names_it(gpu):
    here = gpu("sm120")
    made = stored("engine", "fp8", sm="sm120")
    assert chosen() == ("tensorrt", "fp8")
    sha = verdicts.engine_hash(made)
    verdicts.keep(made, here, Verdict(sha, here.name, here.driver, "fp8", error=0.5, limit=0.05))
    assert chosen() == ("torch", "bf16")
    assert chosen("tensorrt", "fp8") == ("tensorrt", "fp8")  # opening it says why not


def test_what_is_missing_is_said_with_the_commands_that_make_it(gpu):
    for runtime, precision, command in (
        ("auto", "fp8", "kontext-tui quantize --model kontext-tiny --precision fp8"),
        ("onnx", "auto", "kontext-tui export --model kontext-tiny --precision bf16"),
        ("tensorrt", "auto", "kontext-tui engine build --model kontext-tiny --precision bf16"),
    ):
        with pytest.raises(UnavailableError, match=command):
            chosen(runtime, precision)
    stored("onnx", "fp4")
    assert chosen("onnx") == ("onnx", "fp4")
