"""What only a GPU shows: that text encoders really leave it, that a limit holds, and whose a peak is."""

from __future__ import annotations

import pytest
import torch

from core.edit import loading
from core.edit.models import find_spec, locate
from core.edit.placement import CONTEXT_BYTES, Placement
from core.edit.runtimes import trt_api
from core.edit.studio import LocalStudio

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda:0")
PROMPTS = ["make it night", "add fog"]


def loaded(placement: Placement):
    spec = find_spec("kontext-tiny")
    return loading.load(spec, locate(spec), GPU, placement=placement, prompts=PROMPTS)


def test_where_encoders_lie_changes_the_gpus_memory_and_no_bit():
    stay, seen = loaded(Placement()), {}
    for how in ("visit", "stream"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        model = loaded(Placement(how, False, how))
        rest = sum(p.nbytes for part in (model.vae, model.transformer) for p in (*part.parameters(), *part.buffers()))
        seen[how] = torch.cuda.memory_allocated() - before
        assert seen[how] < 1.1 * rest + (1 << 20)  # the encoders are not among it
        assert not any(p.is_cuda for part in (model.text_encoder, model.text_encoder_2) for p in part.parameters())
        for text in (*PROMPTS, "a later one"):
            wanted, got = loading.encode_prompt(stay, text), loading.encode_prompt(model, text)
            assert got.embeddings.is_cuda
            assert torch.equal(wanted.embeddings, got.embeddings)
            assert torch.equal(wanted.pooled, got.pooled)
        assert torch.cuda.memory_allocated() - before <= seen[how] + (1 << 20)
        del model


def test_encoders_leave_a_loaded_model_and_come_back():
    model = loaded(Placement())
    full = torch.cuda.memory_allocated()
    loading.rearrange(model, Placement("visit", True, "visit"))
    assert torch.cuda.memory_allocated() < full
    first = loading.encode_prompt(model, "add snow").embeddings
    loading.rearrange(model, Placement())
    model.prompts.clear()
    assert torch.equal(first, loading.encode_prompt(model, "add snow").embeddings)


def test_a_limit_is_what_torch_may_take():
    try:
        loading.limit_memory(GPU, CONTEXT_BYTES + (1 << 30))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2 << 30, dtype=torch.uint8, device=GPU)
        torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_a_jobs_peak_is_its_own():
    session = LocalStudio("cuda:0").open("kontext-tiny", "bf16", "torch")
    large = torch.empty(1 << 30, dtype=torch.uint8, device=GPU)
    assert session.peak_bytes() > 1 << 30
    del large
    session.prepare([])
    assert session.peak_bytes() < 1 << 30


def test_the_driver_and_torch_agree_about_the_memory():
    torch.zeros(1, device=GPU)
    free, total = torch.cuda.mem_get_info(GPU)
    told = trt_api.gpu_memory()
    assert told is not None
    assert told[1] == pytest.approx(total, rel=0.03)
    assert told[0] == pytest.approx(free, rel=0.03, abs=1 << 30)
