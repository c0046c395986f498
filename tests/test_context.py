"""Context refresh: what is kept of the context stands in for it, in every precision, compiled or not; 1 is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_checkpoints as small
import torch
from conftest import make_pictures
from test_queue import enqueue

from core.edit import editor, lowbit
from core.edit.context import ContextCache, KeptContext
from core.edit.quantized import QUANT_FILE, AttentionScales, Emulated, load_transformer
from core.edit.refresh import can_resume, full_steps
from core.edit.runtimes import choose
from core.edit.runtimes.torch_runtime import TorchRuntime
from core.edit.sampling import Conditioning
from core.errors import UnavailableError
from core.jobs import claims, turn_states
from core.jobs.checkpoints import Checkpointer
from core.jobs.database import connect
from core.jobs.records import get_turns
from core.jobs.scribe import Scribe
from quant.metrics import psnr

CPU = torch.device("cpu")
TOKENS = 64
"""Noise tokens, and as many of the context."""


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    given = small.random_inputs(2 * TOKENS, seed=1)
    return Conditioning(
        given["hidden_states"][:, TOKENS:], given["encoder_hidden_states"], given["pooled_projections"],
        given["img_ids"], given["txt_ids"], given["guidance"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return small.random_inputs(2 * TOKENS, seed=2)["hidden_states"][:, :TOKENS]


def runtime(precision: str) -> TorchRuntime:
    if precision == "fp32":
        return TorchRuntime(load_transformer(small.TINY, CPU, torch.float32, Emulated()))
    return TorchRuntime(load_transformer(small.source(precision), CPU, torch.float32, Emulated()), precision)


def mixed(tmp_path: Any) -> Any:
    """An FP8 checkpoint whose keys are mixed before they are rounded, as the recipe's are."""
    folder = shutil.copytree(small.source("fp8"), tmp_path / "mixed")
    about = json.loads((folder / QUANT_FILE).read_text())
    (folder / QUANT_FILE).write_text(json.dumps({**about, "hadamard": True}))
    return folder


def steps(run: TorchRuntime, conditioning: Conditioning, latents: torch.Tensor, *full: bool) -> list[torch.Tensor]:
    """The velocities of steps at one sigma from the same latents."""
    with torch.inference_mode():
        predict = run.begin(conditioning, keep_context=True)
        return [predict(latents, torch.tensor([500.0]).to(latents), each) for each in full]


def plain(run: TorchRuntime, conditioning: Conditioning, latents: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return run.begin(conditioning)(latents, torch.tensor([500.0]).to(latents), True)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("precision", ["fp32", "fp8", "fp4", "fp4-svd"])
def test_kept_keys_and_values_stand_in_for_the_context(precision, conditioning, latents):
    """At the latents that they are of, a step without the context's queries is the full one."""
    run = runtime(precision)
    full, partial = steps(run, conditioning, latents, True, False)
    assert error(full, plain(run, conditioning, latents)) < 1e-6
    # float32 sums in another order now and then round an activation to a neighbour.
    assert error(partial, full) < (1e-5 if precision == "fp32" else 2e-3)
    other = torch.roll(conditioning.context, 1, dims=1)
    with torch.inference_mode():  # what is kept matters
        predict = run.begin(replace(conditioning, context=other), keep_context=True)
        predict(latents, torch.tensor([500.0]), True)
        assert error(predict(latents, torch.tensor([500.0]), False), full) > 2e-2


def test_keys_and_values_are_kept_in_a_byte_each():
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(1, 8, 2, 64, generator=generator) for _ in "kv")
    scales = AttentionScales(1.0, *(float(each.abs().max()) / lowbit.E4M3_MAX for each in (key, value)))
    kept = KeptContext((1, 5, 2, 64), key, scales)
    assert kept.extend(key, value) == (key, value)
    assert kept.key.dtype == kept.value.dtype == torch.float8_e4m3fn
    assert torch.equal(kept.key.float(), lowbit.to_e4m3(key[:, 3:], scales.k).float())
    kept.reuse = True
    keys, values = kept.extend(key[:, :3], value[:, :3])
    assert torch.equal(keys[:, :3], key[:, :3])
    assert error(keys[:, 3:], key[:, 3:]) < 0.04
    assert error(values[:, 3:], value[:, 3:]) < 0.04


def test_mixing_before_rounding_changes_nothing_in_emulation(tmp_path, conditioning, latents):
    run = TorchRuntime(load_transformer(mixed(tmp_path), CPU, torch.float32, Emulated()), "fp8")
    full, partial = steps(run, conditioning, latents, True, False)
    assert error(partial, full) < 2e-3


def test_an_exact_edit_afterwards_is_what_it_was_bit_for_bit(tiny, conditioning, latents):
    run = TorchRuntime(tiny.transformer)
    before = plain(run, conditioning, latents)
    processors = [type(each) for each in tiny.transformer.attn_processors.values()]
    steps(run, conditioning, latents, True, False)
    assert torch.equal(plain(run, conditioning, latents), before)
    assert [type(each) for each in tiny.transformer.attn_processors.values()] == processors


def test_room_is_made_anew_for_another_shape(conditioning, latents):
    run = runtime("fp32")
    steps(run, conditioning, latents, True, False)
    half = TOKENS // 2
    ids = torch.cat([conditioning.image_ids[:TOKENS], conditioning.image_ids[TOKENS : TOKENS + half]])
    shorter = replace(conditioning, context=conditioning.context[:, :half], image_ids=ids)
    full, partial = steps(run, shorter, latents, True, False)
    assert error(partial, full) < 1e-5


def test_nothing_can_be_reused_before_a_full_step(conditioning, latents):
    run = runtime("fp32")
    steps(run, conditioning, latents, True)
    with pytest.raises(RuntimeError, match="must be a full one"):
        steps(run, conditioning, latents, False)
    assert ContextCache(run.transformer).bytes == 0


class TestSchedule:
    @pytest.mark.parametrize("steps", [1, 2, 8, 28, 30])
    def test_the_first_and_the_last_step_are_full_and_one_of_k(self, steps):
        assert all(full_steps(steps, 1))
        for refresh in range(2, 9):
            full = full_steps(steps, refresh)
            assert full[0]
            assert len(full) == steps
            assert sum(full) == -(-steps // refresh)
            assert full[-1] or sum(full) == 1

    def test_an_edit_goes_on_where_a_full_step_comes_next(self):
        assert [step for step in range(8) if can_resume(step, 7, 1)] == [1, 2, 3, 4, 5, 6]
        full = full_steps(7, 3)
        assert [step for step in range(8) if can_resume(step, 7, 3)] == [s for s in range(1, 7) if full[s]]


def edit(tiny: Any, photo: Any, on_step: Callable[..., None] | None = None, **how: Any) -> editor.Edit:
    return editor.edit(
        tiny, TorchRuntime(tiny.transformer), photo, "Make it golden hour", seed=3, guidance=2.5,
        keep_model_size=True, on_step=on_step, **how,
    )  # fmt: skip


def test_an_edit_is_near_the_exact_one_and_goes_on_bit_for_bit(tiny, photo):
    exact = edit(tiny, photo, steps=6)
    kept: list[editor.Progress] = []
    found = edit(
        tiny, photo, lambda step, ms, latents, outlook: kept.append(editor.snapshot(step, latents)),
        steps=6, context_refresh=2,
    )  # fmt: skip
    ours, theirs = (np.asarray(each.image, dtype=np.float32) / 255 for each in (found, exact))
    assert 35 < psnr(ours, theirs) < 100
    good, bad = (next(s for s in (3, 2, 4, 1, 5) if can_resume(s, 6, 2) is wanted) for wanted in (True, False))
    resumed = edit(tiny, photo, steps=6, context_refresh=2, resume=kept[good - 1])
    assert len(resumed.step_ms) == 6 - good
    assert resumed.image.tobytes() == found.image.tobytes()
    with pytest.raises(ValueError, match="lacks what was kept"):
        edit(tiny, photo, steps=6, context_refresh=2, resume=kept[bad - 1])


@pytest.mark.parametrize("name", ["onnx", "tensorrt"])
def test_graphs_cannot_keep_the_context(name):
    with pytest.raises(UnavailableError, match=f"the {name} runtime cannot keep .* context_refresh 1"):
        choose(name, "bf16", "kontext-tiny", small.TINY.parent, keep_context=True)
    assert choose("auto", "bf16", "kontext-tiny", small.TINY.parent, keep_context=True).runtime == "torch"


def test_a_step_that_cannot_be_gone_on_from_leaves_the_saved_one_in_place(tmp_path):
    """Told to stop in mid-cycle, a worker saves now: what was saved before is better than what cannot be used."""
    make_pictures(tmp_path / "photos", 1)
    with closing(connect(tmp_path / "jobs.db")) as conn:
        enqueue(conn, tmp_path, turns=[{"prompt": "make it night", "steps": 7, "context_refresh": 3}], seed=3)
        claim = claims.claim(conn, claims.register_worker(conn, "cpu", "0"))
        turn_states.start_turn(conn, claim, 1, precision="fp32", runtime="torch", step=0)
        session = SimpleNamespace(runtime="torch", precision="fp32", snapshot=editor.snapshot)
        scribe = Scribe(connect(tmp_path / "jobs.db"))
        keeper = Checkpointer(conn, scribe, claim, session, get_turns(conn, claim.job.id)[0], lambda: "0" * 64)
        for step in range(1, 8):
            keeper.save(step, torch.full((1, 4, 8), float(step)), [1.0] * step, now=True)
            resume, _ = keeper.resume()
            usable = [s for s in range(step + 1) if can_resume(s, 7, 3)]
            assert (resume.step if resume else 0) == max(usable, default=0)
        assert 0 < max(usable) < 7
        scribe.close()
