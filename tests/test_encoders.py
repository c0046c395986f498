"""Text encoders at work, the real ones of kontext-tiny on the CPU: what is encoded when, how often, where they lie.

A second device cannot be had here: a shelf's copies stand in for a GPU's, and they are copies of their own.
"""

from __future__ import annotations

import json

import pytest
import torch
from conftest import PHOTOS, rows
from PIL import Image

from core.edit import footprint, loading, placement, studio
from core.edit.models import find_spec, locate
from core.edit.placement import CONTEXT_BYTES, Memory, Placement, Transformer
from core.edit.shelf import Shelf
from core.edit.studio import LocalStudio
from core.inputs import FoundInput
from core.jobs import claims, control, queue
from core.jobs.database import connect
from core.jobs.worker import Worker, drain
from core.script import Script

TURNS = ["make it night", "add fog"]


@pytest.fixture
def calls(monkeypatch):
    """What the encoders and the loader do, in order: the T5 encoder's calls by prompt, and parts as they load."""
    seen = []
    real_on, real_tokens = loading._on, loading._tokens
    text = []

    def tokens(tokenizer, prompt, length):
        text.append(prompt)
        return real_tokens(tokenizer, prompt, length)

    def on(cls, folder, device, **options):
        part = real_on(cls, folder, device, **options)
        seen.append(folder.name)
        if folder.name == "text_encoder_2":
            part.register_forward_hook(lambda *_: seen.append(("T5", text[-1])))
        if folder.name == "text_encoder":
            part.register_forward_hook(lambda *_: seen.append(("CLIP", text[-2])))
        return part

    monkeypatch.setattr(loading, "_tokens", tokens)
    monkeypatch.setattr(loading, "_on", on)
    return seen


def encoded(calls, kind="T5"):
    return [each[1] for each in calls if each[0] == kind and isinstance(each, tuple)]


@pytest.fixture
def night(tmp_path):
    """A queue of two pictures with two turns each, and one later picture with prompts of its own."""
    conn = connect(tmp_path / "jobs.db")
    for name in ("a", "b", "c"):
        Image.open(PHOTOS / "cat.jpg").resize((64, 48)).save(tmp_path / f"{name}.png")

    def add(name, turns, model="kontext-tiny", **more):
        path = tmp_path / f"{name}.png"
        spec = find_spec(model)
        script = Script.model_validate(
            {
                "input": str(path),
                "output": str(tmp_path / "out"),
                "model": model,
                "seed": 1,
                "steps": 2,
                "turns": turns,
            }
        )
        return queue.add(conn, script, spec, queue.plan(script, [FoundInput(path, path.name)], spec), **more)

    add("a", TURNS)
    add("b", [*TURNS, "add snow"])
    return conn, add


def card(encoders):
    """GPU memory in which kontext-tiny fits with its text encoders so."""
    spec = find_spec("kontext-tiny")
    folder = locate(spec)
    parts = footprint.parts_of(folder, spec)
    needs = footprint.unquantized(folder, spec, keep_context=False)
    assert isinstance(needs, Transformer)
    free = placement.peak(needs, parts, encoders, tiled=False) + CONTEXT_BYTES
    return Memory(free, 2 * free)


def work(conn, monkeypatch, memory=None, **studio_options):
    monkeypatch.setattr(LocalStudio, "gpu_memory", lambda self: memory)
    loads = []
    made = LocalStudio("cpu", loads.append, **studio_options)
    worker = Worker(conn, made)
    drain(worker)
    return made, loads


def hashes(conn):
    return [row[0] for row in conn.execute("SELECT output_sha256 FROM turns ORDER BY job_id, turn")]


def test_a_second_turn_and_a_second_job_load_nothing_and_encode_nothing_twice(night, calls, monkeypatch, tmp_path):
    conn, add = night
    made, loads = work(conn, monkeypatch)
    assert encoded(calls) == encoded(calls, "CLIP") == [*TURNS, "add snow"]
    assert len(loads) == 1
    add("c", ["add snow", "make it night"])
    drain(Worker(conn, made))
    assert encoded(calls) == [*TURNS, "add snow"]
    assert len(loads) == 1
    assert rows_done(conn) == 3
    assert all(peak > 50 << 20 for (peak,) in rows(tmp_path / "jobs.db", "SELECT peak_bytes FROM turns"))


def rows_done(conn):
    return conn.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone()[0]


def test_what_waits_is_encoded_before_the_transformer_takes_the_room(night, calls, monkeypatch):
    conn, add = night
    held = add("c", ["blur the image"])
    control.hold(conn, list(held.jobs))
    made, loads = work(conn, monkeypatch, card("visit"))
    assert loads[0].reason.endswith("; text encoders leave the GPU after encoding")
    first_three = [*TURNS, "add snow"]  # of both jobs: the held one cannot be claimed
    wanted = ["text_encoder", "text_encoder_2", *first_three, "vae", "transformer"]
    assert [each[1] if isinstance(each, tuple) else each for each in calls if each[0] != "CLIP"] == wanted
    control.unhold(conn, list(held.jobs))
    drain(Worker(conn, made))  # a prompt that nobody knew brings them back
    assert encoded(calls) == [*first_three, "blur the image"]
    assert len(loads) == 1
    model = made._session.model
    assert all(tensor.data_ptr() == kept.data_ptr() for tensor, kept in model.shelf.kept.items())
    assert rows_done(conn) == 3


def test_pictures_do_not_depend_on_where_encoders_lie(night, monkeypatch):
    conn, _ = night
    work(conn, monkeypatch, card("visit"))
    left = hashes(conn)
    conn.execute("UPDATE turns SET state = 'pending', output_sha256 = NULL")
    conn.execute("UPDATE jobs SET state = 'queued'")
    work(conn, monkeypatch)
    stayed = hashes(conn)
    assert None not in left
    assert left == stayed


def test_only_what_this_worker_can_claim_is_looked_at(night):
    conn, add = night
    assert claims.upcoming_prompts(conn, "kontext-tiny") == [*TURNS, "add snow"]
    urgent = add("c", ["make it warmer", "add fog"], priority=5)
    assert claims.upcoming_prompts(conn, "kontext-tiny")[:2] == ["make it warmer", "add fog"]
    assert claims.upcoming_prompts(conn, "kontext-tiny", batch_id=urgent.batch_id) == ["make it warmer", "add fog"]
    assert claims.upcoming_prompts(conn, "another") == []
    control.hold(conn, list(urgent.jobs))
    assert "make it warmer" not in claims.upcoming_prompts(conn, "kontext-tiny")
    conn.execute("UPDATE turns SET state = 'done' WHERE prompt = 'add fog'")
    assert claims.upcoming_prompts(conn, "kontext-tiny") == ["make it night", "add snow"]


# ---------------------------------------------------------------- the shelf


@pytest.fixture
def shelved():
    spec = find_spec("kontext-tiny")

    def load(placement, **more):
        return loading.load(spec, locate(spec), torch.device("cpu"), placement=placement, **more)

    return load


def away(shelf):
    """Bytes that lie elsewhere than on the shelf."""
    return sum(k.nbytes for t, k in shelf.kept.items() if t.data_ptr() != k.data_ptr())


@pytest.mark.parametrize("how", ["visit", "stream"])
def test_encoders_that_come_and_go_give_the_same_bits(tiny, shelved, how):
    model = shelved(Placement(how, False, how))
    assert away(model.shelf) == 0
    most = []
    for module in model.text_encoder_2.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_: most.append(away(model.shelf)), prepend=True)
    for text in (*TURNS, "add snow"):
        got, wanted = loading.encode_prompt(model, text), loading.encode_prompt(tiny, text)
        assert torch.equal(got.embeddings, wanted.embeddings)
        assert torch.equal(got.pooled, wanted.pooled)
    total = sum(kept.nbytes for kept in model.shelf.kept.values())
    largest = max(kept.nbytes for kept in model.shelf.kept.values())
    assert most
    assert set(most) == {total} if how == "visit" else 0 < max(most) <= largest
    assert away(model.shelf) == 0
    assert not any(module._forward_pre_hooks for module in model.text_encoder.modules())


def test_a_gpu_that_filled_up_meanwhile_takes_them_by_layers(tiny, shelved, monkeypatch):
    model = shelved(Placement("visit", False, "visit"))
    whole = len(model.shelf.kept)
    real = Shelf._bring

    def bring(shelf, tensors, device):
        if len(tensors) == whole:
            real(shelf, list(tensors)[: whole // 2], device)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        real(shelf, tensors, device)

    monkeypatch.setattr(Shelf, "_bring", bring)
    got = loading.encode_prompt(model, "add fog")
    assert torch.equal(got.embeddings, loading.encode_prompt(tiny, "add fog").embeddings)
    assert model.encoders == "stream"
    assert away(model.shelf) == 0


def test_the_prompts_of_the_job_at_work_are_the_last_to_be_forgotten(shelved, monkeypatch):
    monkeypatch.setattr(loading, "MAX_PROMPTS", 3)
    model = shelved(Placement("visit", False, "visit"), prompts=["a"], upcoming=lambda: ["b", "c", "d", "e"])
    assert list(model.prompts) == ["b", "c", "a"]
    loading.encode_prompts(model, ["a", "f"], lambda: ["g", "h"])
    assert list(model.prompts) == ["g", "a", "f"]


# ---------------------------------------------------------------- out of memory


def test_each_rung_down_keeps_the_model_and_says_its_words(night, monkeypatch):
    conn, _ = night
    made, loads = work(conn, monkeypatch)
    model = made._session.model
    made.device = "cuda:0"  # the rungs of a GPU, on the model that is loaded
    leave = "text encoders leave the GPU after encoding"
    assert [made.make_room() for _ in range(3)] == [leave, f"{leave}, the VAE works in tiles", ""]
    assert model.shelf is not None
    assert model.vae.use_tiling
    assert made.open("kontext-tiny", "auto", "auto", prompts=["a new one"]).model is model
    assert len(loads) == 1
    loading.rearrange(model, Placement())
    assert model.shelf is None
    assert not model.vae.use_tiling


def test_tiles_are_smaller_than_the_pictures_they_make(tiny, monkeypatch, photo):
    from core.edit import editor

    monkeypatch.setattr(loading, "TILE", 128)
    pixels = editor.to_pixels(photo.resize((256, 256)), tiny)
    before = tiny.vae.tile_sample_min_size, tiny.vae.tile_latent_min_size
    seen = []
    hook = tiny.vae.decoder.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[-1]))
    try:
        whole = _there_and_back(tiny, pixels)
        loading.rearrange(tiny, Placement(tiled=True))
        tiled = _there_and_back(tiny, pixels)
    finally:
        hook.remove()
        tiny.vae.disable_tiling()
        tiny.vae.tile_sample_min_size, tiny.vae.tile_latent_min_size = before
    assert seen[0] == 32
    assert len(seen) > 4
    assert max(seen[1:]) == 16
    assert (whole - tiled).abs().mean() < 0.05


@torch.inference_mode()
def _there_and_back(model, pixels):
    from core.edit import editor, sampling

    return editor.decode(model, sampling.pack(editor.encode(model, pixels)), 256, 256)


def test_a_job_that_ran_out_of_memory_goes_on_with_less_and_its_story_says_how(night, monkeypatch):
    conn, _ = night
    real, left = studio.LoadedSession.edit, [2]

    def edit(self, *args, **more):
        if left[0]:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, *args, **more)

    monkeypatch.setattr(studio.LoadedSession, "edit", edit)
    made, loads = work(conn, monkeypatch, card("stay"))
    assert rows_done(conn) == 1  # on a CPU there is one rung; the second time the first job had nothing to give up
    assert len(loads) == 1
    assert made._session.model.vae.use_tiling
    failed = conn.execute("SELECT data FROM events WHERE what = 'failed'").fetchall()
    assert [json.loads(row["data"])["message"] for row in failed] == [
        "CUDA out of memory. Tried to allocate 2.00 GiB; from now on the VAE works in tiles"
    ]
    dead = conn.execute("SELECT error_kind FROM jobs WHERE state = 'dead'").fetchall()
    assert [row["error_kind"] for row in dead] == ["out_of_memory"]


def test_out_of_memory_while_loading_loads_again_with_less(night, monkeypatch):
    conn, _ = night
    real, left = loading.load, [1]

    def load(*args, **more):
        if left[0]:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(*args, **more)

    monkeypatch.setattr(loading, "load", load)
    made, loads = work(conn, monkeypatch)
    assert rows_done(conn) == 2
    assert len(loads) == 1
    assert made._session.model.vae.use_tiling
