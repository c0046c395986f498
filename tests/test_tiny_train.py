"""Training kontext-tiny and measuring it (examples/tiny), with a small transformer in place of the real one."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints as small_models
import torch
from torch import nn

from core.edit.loading import Model
from core.edit.models import find_spec, locate
from examples.tiny import bank, checkpoint, evaluate, figures, vae
from examples.tiny.compose import Pairs, compose
from examples.tiny.model import (
    more_blocks,
    open_model,
    start_anew,
    token_ids,
    trainable,
    with_words,
    write_model,
)
from examples.tiny.muon import Muon
from examples.tiny.plans import SIZES, Recipe, plan_kinds
from examples.tiny.replay import KINDS, Batch, Replay, Schedule
from examples.tiny.train import Rates, Trainer, arguments, flow_error, split_parameters, train

CPU = torch.device("cpu")
SMALL = Schedule(pairs=2, batch=2, capacity=4, prefill=1, reuse=1)


@pytest.fixture(scope="module")
def index() -> bank.Index:
    return bank.read_index()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Path:
    """kontext-tiny with a transformer of one double and one single block of one head."""
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(tiny.spec.folder, folder)
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    config = FluxTransformer2DModel.load_config(tiny.spec.folder / "transformer")
    small = {**config, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}
    FluxTransformer2DModel.from_config(small).to(torch.bfloat16).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def small(small_folder: Path) -> Model:
    return open_model(small_folder, CPU)


def some_batch(model: Model) -> Batch:
    """Four samples of noise for latents: what is learned here is not the point."""
    generator = torch.Generator().manual_seed(3)
    clip, t5 = token_ids(model, ["Add a dog", "Remove the cat", "Make it night", "Make the car blue"])
    source, target = (torch.randn(4, 256, 64, generator=generator) for _ in range(2))
    weight = torch.where(torch.rand(4, 256, generator=generator) < 0.2, 5.0, 1.0)
    return Batch(SIZES["1:1"], source, target, weight, clip, t5, torch.tensor([0, 3, 5, 7]))


def test_one_step_lowers_the_loss(small: Model) -> None:
    net, batch = trainable(small), some_batch(small)
    start_anew(net, seed=1)
    trainer = Trainer(net, Rates(), 1, CPU)

    def loss() -> float:
        with torch.no_grad():
            error = flow_error(net, batch, torch.Generator().manual_seed(9))
        return float((error * batch.weight).sum() / batch.weight.sum())

    before = loss()
    reported, errors = trainer.take(batch, 1.0)
    assert loss() < before
    assert float(reported) == pytest.approx(before, rel=0.2)
    assert errors.shape == (4,)
    assert trainer.rate(0.0) == pytest.approx(2 / 200)
    assert trainer.rate(1.0) == 0
    for _ in range(19):
        trainer.take(batch, 1.0)
    assert loss() < 0.98 * before


def test_fresh_weights_say_that_nothing_moves(small: Model) -> None:
    """The first velocity is 0, whatever the weights were before; text encoders are drawn anew as well."""
    net = trainable(small)
    old = {name: parameter.clone() for name, parameter in net.named_parameters()}
    start_anew(net, seed=5)
    batch = some_batch(small)
    generator = torch.Generator().manual_seed(0)
    error = flow_error(net, batch, generator)
    assert float(error.detach().mean()) == pytest.approx(2.0, rel=0.05)  # noise - image, both of variance 1
    same = [name for name, parameter in net.named_parameters() if torch.equal(parameter, old[name])]
    assert all("norm" in name for name in same), same
    first = {name: parameter.clone() for name, parameter in net.named_parameters()}
    start_anew(net, seed=5)
    assert all(torch.equal(parameter, first[name]) for name, parameter in net.named_parameters())


def test_matrices_of_blocks_go_to_muon(tiny: Any) -> None:
    net = nn.ModuleDict({name: getattr(tiny, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    matrices, rest = split_parameters(net)
    assert len(matrices) == 12 * small_models.DOUBLE + 5 * small_models.SINGLE
    assert {id(p) for p in matrices}.isdisjoint(id(p) for p in rest)
    assert sum(p.numel() for p in [*matrices, *rest]) == sum(p.numel() for p in net.parameters())


def test_muon_of_all_matrices_at_once_is_torchs() -> None:
    """Wide, tall and square matrices, over three steps; and a state that torch's own goes on from."""
    torch.manual_seed(0)
    shapes = ((8, 24), (24, 8), (16, 16), (8, 24), (24, 8))
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    rates = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    mine = Muon(ours, **rates)
    original = torch.optim.Muon(theirs, **rates, adjust_lr_fn="match_rms_adamw")
    before = [matrix.detach().clone() for matrix in ours]
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn_like(a)
        ours[4].grad = theirs[4].grad = None
        mine.step()
        original.step()
    for a, b, first in zip(ours, theirs, before, strict=True):
        moved = (b - first).detach()
        assert torch.dist(a.detach(), b.detach()) <= 0.02 * moved.norm(), a.shape
    assert torch.equal(ours[4], before[4])
    a, b = (optimizer.state_dict()["state"] for optimizer in (mine, original))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[n]["momentum_buffer"], b[n]["momentum_buffer"]) for n in a)


def test_a_resumed_run_equals_one_that_never_stopped(
    small_folder: Path, tmp_path: Path, bank_pixels: bank.Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, weights, average and moments; and the model it writes is whole and edits."""
    monkeypatch.setattr(bank, "read_pixels", lambda index, device: bank_pixels)
    common = ["--start", str(small_folder), "--device", "cpu", "--workers", "0", "--batch", "2", "--pairs", "2",
              "--buffer", "8", "--prefill", "2", "--reuse", "1", "--sizes", "1:1=1", "--report", "1"]  # fmt: skip
    train(arguments([str(tmp_path / "a"), "--steps", "4", *common]))
    for _ in range(2):
        train(arguments([str(tmp_path / "b"), "--steps", "2", "--split-mib", "1", *common]))
    (a, info), (b, other) = (checkpoint.load(tmp_path / name / "state") for name in "ab")
    assert info["step"] == other["step"] == 4
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    parts = list((tmp_path / "b" / "state").glob("*.safetensors"))
    assert len(parts) > 3
    curve = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve if "loss" in line] == [1, 2, 3, 4]
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        assert str(tmp_path) not in (tmp_path / "a" / "model" / part / "config.json").read_text()
    spec = find_spec(str(tmp_path / "a" / "model"))
    model = open_model(locate(spec), CPU)
    result = figures.edit(model, torch.rand(1, 3, 256, 256), ["Remove all the people"], steps=1, seed=1)
    assert result.shape == (1, 3, 256, 256)


def test_the_vae_learns_and_is_written_with_its_scale(
    small_folder: Path, tmp_path: Path, bank_pixels: bank.Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From fresh weights, on one set of crops; Muon's matrices are the kernels themselves."""
    monkeypatch.setattr(bank, "read_pixels", lambda index, device: bank_pixels)
    model = open_model(small_folder, CPU)
    torch.manual_seed(0)
    trainer = vae.VaeTrainer(type(model.vae).from_config(model.vae.config), learned=None)
    crops = bank_pixels.backdrops[:2, :, :64, :64].float() / 127.5 - 1
    assert trainer.muon.matrices[0].data_ptr() == trainer.muon.kernels[0].data_ptr()
    first = trainer.take(crops, 1.0)
    for _ in range(5):
        last = trainer.take(crops, 1.0)
    assert last > first + 1
    vae.main([str(tmp_path), "--start", str(small_folder), "--minutes", "0.002", "--batch", "2", "--device", "cpu"])
    written = open_model(tmp_path / "model", CPU)
    assert written.vae.config.scaling_factor != model.vae.config.scaling_factor
    kept = zip(written.transformer.parameters(), model.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert len(line["held_out_psnr"]) == 5
    assert line["held_out_psnr"][0] > 10


def test_a_vae_that_settles_leaves_latents_what_they_were(
    small_folder: Path, tmp_path: Path, bank_pixels: bank.Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder alone learns, and what it draws is encoded nearer to what it was drawn from."""
    monkeypatch.setattr(bank, "read_pixels", lambda index, device: bank_pixels)
    model = open_model(small_folder, CPU)
    crops = bank_pixels.backdrops[:2, :, :64, :64].float() / 127.5 - 1

    def away() -> float:
        with torch.no_grad():
            first = model.vae.encode(crops).latent_dist.mode()
            second = model.vae.encode(model.vae.decode(first).sample.clamp(-1, 1)).latent_dist.mode()
            return float(((second - first) ** 2).mean())

    encoder = {name: value.clone() for name, value in model.vae.encoder.state_dict().items()}
    trainer, before = vae.VaeTrainer(model.vae, learned=None, settle=True), away()
    for _ in range(8):
        trainer.take(crops, 0.1)
    assert away() < 0.9 * before
    assert all(torch.equal(value, encoder[name]) for name, value in model.vae.encoder.state_dict().items())
    short = ["--minutes", "0.002", "--batch", "2", "--device", "cpu"]
    vae.main([str(tmp_path), "--start", str(small_folder), "--settle", "--rate", "0.1", *short])
    written = open_model(tmp_path / "model", CPU).vae
    assert written.config.scaling_factor == model.vae.config.scaling_factor
    assert all(torch.equal(value, encoder[name]) for name, value in written.encoder.state_dict().items())
    assert "_name_or_path" not in (tmp_path / "model" / "vae" / "config.json").read_text()


def test_a_state_in_parts_comes_back_whole(tmp_path: Path, small: Model) -> None:
    """Each file below the limit but for a tensor that is larger; a missing file is said."""
    tensors = {f"weight/{number}": torch.randn(100, 1000) for number in range(12)}
    checkpoint.save(tmp_path / "state", tensors, {"step": 3}, split_mib=1)
    files = sorted((tmp_path / "state").glob("*.safetensors"))
    assert len(files) == 6
    assert all(file.stat().st_size < 1 << 20 for file in files)
    back, info = checkpoint.load(tmp_path / "state")
    assert info["step"] == 3
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    checkpoint.save(tmp_path / "state", tensors, {"step": 4})
    assert checkpoint.load(tmp_path / "state")[1]["step"] == 4
    next((tmp_path / "state").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="0 of the 1 files"):
        checkpoint.load(tmp_path / "state")
    trainer = Trainer(trainable(small), Rates(), 1, CPU)
    with pytest.raises(ValueError, match="does not fit the model"):
        checkpoint.restore(back, trainer.net, trainer.average, trainer.optimizers)


def test_more_blocks_change_nothing_until_they_learn(small_folder: Path, tmp_path: Path, index: bank.Index) -> None:
    with_words(small_folder, tmp_path / "old", index)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    more_blocks(tmp_path / "new", 2)
    old, new = (open_model(tmp_path / name, CPU) for name in ("old", "new"))
    assert len(new.transformer.single_transformer_blocks) == 3
    batch = some_batch(old)
    nets = [trainable(model) for model in (old, new)]
    with torch.no_grad():
        errors = [flow_error(net, batch, torch.Generator().manual_seed(4)) for net in nets]
    torch.testing.assert_close(errors[0], errors[1])
    trainer = Trainer(nets[1], Rates(warm_up=1), 1, CPU)
    for _ in range(2):
        trainer.take(batch, 1.0)
    assert all(block.proj_out.weight.abs().max() > 0 for block in new.transformer.single_transformer_blocks)


def test_a_model_is_written_in_bf16_with_its_words(
    small_folder: Path, tmp_path: Path, index: bank.Index, tiny: Any
) -> None:
    """Old prompts in old words mean the same after growing, up to BF16; shards stay below their limit."""
    with_words(small_folder, tmp_path / "grown", index)
    model = open_model(tmp_path / "grown", CPU)
    encoder = model.text_encoder_2
    assert encoder.get_input_embeddings().num_embeddings == encoder.config.vocab_size > 2000
    table = tiny.text_encoder_2.get_input_embeddings().weight
    assert torch.equal(encoder.get_input_embeddings().weight[: len(table)], table)
    ids = torch.tensor([[300, 400, 1]])
    assert torch.equal(encoder(ids)[0], tiny.text_encoder_2(ids)[0])
    net = trainable(model)
    weights = {name: parameter + 0.5 for name, parameter in net.named_parameters()}
    write_model(tmp_path / "grown", tmp_path / "written", copy.deepcopy(net), weights, shard="500KB")
    assert len(list((tmp_path / "written" / "transformer").glob("*.safetensors"))) > 1
    written = trainable(open_model(tmp_path / "written", CPU))
    for name, parameter in written.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16().float()), name
    with pytest.raises(ValueError, match="no place for"):
        write_model(tmp_path / "grown", tmp_path / "other", copy.deepcopy(net), {"nowhere": torch.ones(1)})


def test_a_buffer_holds_the_last_pairs_of_each_size(tiny: Any, index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """Made step by step or all at once for a later step, it holds the same; plans come from other processes too."""
    recipe = Recipe(sizes={"1:1": 1.0, "16:9": 1.0})
    slow = Replay(tiny, index, bank_pixels, recipe, 3, SMALL)
    for step in range(9):
        batch = slow.batch(step, torch.Generator().manual_seed(step))
        assert batch.source.shape == batch.target.shape
        assert batch.source.shape[1] == batch.size[0] * batch.size[1] // 256
    again = Replay(tiny, index, bank_pixels, recipe, 3, SMALL, step=8, workers=1)
    for name, ring in slow.rings.items():
        other = again.rings[name]
        assert ring.made == other.made
        for part in ring.parts:
            held = slice(0, ring.filled)
            assert torch.equal(ring.parts[part][held], other.parts[part][held]), (name, part)
    assert set(batch.kind.tolist()) <= set(range(len(KINDS)))
    assert {1.0, 5.0, 1.5} >= set(batch.weight.unique().tolist())
    made = [SMALL.made(step) for step in range(40)]
    assert made[0] == 1
    assert all(0 <= later - earlier <= 1 for earlier, later in pairwise(made))


def test_the_target_is_ok_and_the_input_is_not(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """As the recipe counts: less than half of the required change left undone."""
    for kind in ("add", "remove people", "recolour", "background plain", "bw", "compound"):
        plan = plan_kinds(index, [kind] * 4, SIZES["1:1"], random.Random(kind), held_out=True)
        pairs = compose(bank_pixels, plan, things=True)
        perfect = evaluate.score(pairs.target, plan, pairs)
        assert perfect["ok"] == perfect["every"] == 1
        assert perfect["psnr"] == pytest.approx(70, abs=0.01)
        copied = evaluate.score(pairs.source, plan, pairs)
        assert copied["ok"] == copied["every"] == 0
        nearly = pairs.source + 0.6 * (pairs.target - pairs.source)
        assert evaluate.score(nearly, plan, pairs)["ok"] == 1
        assert evaluate.score(pairs.source + 0.4 * (pairs.target - pairs.source), plan, pairs)["ok"] == 0
        if kind == "recolour":
            assert perfect["colour"] == 1
            assert copied["colour"] < 1


def test_one_person_left_over_is_not_every_person_removed(index: bank.Index, bank_pixels: bank.Pixels) -> None:
    """`ok` may forgive one of four; `every` does not."""
    plan = plan_kinds(index, ["remove people"] * 12, SIZES["1:1"], random.Random(8), held_out=True)
    pairs = compose(bank_pixels, plan, things=True)
    assert pairs.things is not None
    several = [row for row in range(12) if int((plan.layers[plan.pair == row][:, 10] == 0).sum()) >= 3]
    assert several
    for row in several:
        one = Pairs(*(each[row : row + 1] for each in (pairs.source, pairs.target, pairs.mask, pairs.things)))
        level = next(n for n in range(one.things.shape[1]) if one.things[0, n].any())
        stays = one.things[:, level : level + 1]
        result = torch.where(stays, one.source, one.target)
        assert not figures.all_done(result, one.source, one.target, one.mask, one.things).any()


def test_figures_are_written_with_a_sheet(
    small_folder: Path, tmp_path: Path, bank_pixels: bank.Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as typed, at one edit a kind; parts measured later join the same file."""
    monkeypatch.setattr(bank, "read_pixels", lambda index, device: bank_pixels)
    common = [str(small_folder), str(tmp_path / "out"), "--device", "cpu", "--steps", "1"]
    evaluate.main([*common, "--only", "kinds", "--each", "1", "--kinds", "add", "nothing", "--plain"])
    monkeypatch.setattr(evaluate, "PHRASINGS", evaluate.PHRASINGS[:1])
    evaluate.main([*common, "--only", "phrases", "drift", "--phrase-each", "1", "--drift-each", "1"])
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert found["kinds"]["add"].keys() >= {"n", "psnr", "ok", "every", "outside", "copy", "wrong", "vae"}
    assert "ok" not in found["kinds"]["nothing"]
    assert found["phrases"]["phrasings"] == 1
    assert len(found["drift"]["nothing"]) == 5
    assert {file.stem for file in (tmp_path / "out").glob("*.jpg")} == {"kinds", "phrases", "nothing", "chain"}


def test_edits_of_many_pictures_are_those_of_the_editor(tiny: Any) -> None:
    """The batched road of `evaluate` gives what the program gives."""
    from core.edit.editor import edit
    from core.edit.runtimes.torch_runtime import TorchRuntime
    from examples.tiny.sheets import to_image

    image = figures.in_levels(torch.rand(2, 3, 192, 336, generator=torch.Generator().manual_seed(1)))
    wide = dataclasses.replace(tiny, spec=dataclasses.replace(tiny.spec, sizes=(SIZES["16:9"],)))
    many = figures.edit(wide, image, ["Make it night", "Add a star"], steps=2, seed=40)
    one = edit(wide, TorchRuntime(tiny.transformer), to_image(image[1]), "Add a star", seed=41, steps=2, guidance=2.5)
    assert one.size == (336, 192)
    assert figures.psnr(many[1:], evaluate_pixels(one.image))[0] > 48


def evaluate_pixels(image: Any) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
