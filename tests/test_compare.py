"""`compare`: figures right where the answer is known, and the command with a real checkpoint in the store."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PHOTOS
from PIL import Image, ImageOps
from small_checkpoints import BLOCKS, TINY, source

from core.edit import artifacts, inventory
from core.edit.quantized import Emulated, load_transformer
from core.edit.runtimes.native_runtime import NativeRuntime
from quant.evaluate import block_losses, contact_sheet, edit_all, named_blocks
from quant.metrics import closeness, psnr
from quant.quality_set import Subject


class TestCloseness:
    def test_known_error(self):
        flat = np.full((16, 16, 3), 0.5)
        assert psnr(flat + 0.1, flat) == pytest.approx(20.0)
        assert psnr(flat, flat) == math.inf

    def test_order_of_damage(self, photo):
        small = photo.resize((96, 96))
        slight = small.point(lambda level: min(255, level + 4))
        near, far = closeness(slight, small), closeness(ImageOps.invert(small), small)
        assert near.psnr > 35 > 20 > far.psnr
        assert near.ssim > 0.98 > 0.5 > far.ssim
        assert near.flip < 0.1 < 0.3 < far.flip

    def test_equal_pictures(self, photo):
        same = closeness(photo.resize((64, 64)), photo.resize((64, 64)))
        assert (same.psnr, same.flip) == (math.inf, 0.0)
        assert same.ssim == pytest.approx(1.0)


class TestBlocks:
    def test_the_block_that_was_harmed_is_named(self, tiny, photo):
        """Every other block gets what the unquantized model computes up to it, so it loses nothing."""
        ours = load_transformer(TINY, torch.device("cpu"), torch.float32, Emulated())
        ours.single_transformer_blocks[2].proj_out.weight.data *= 1.05
        others = dict(named_blocks(ours))
        losses = block_losses(tiny, others, Subject("a", photo, "Make it night"), guidance=2.5, seed=1)
        harmed = [loss.block for loss in losses if loss.error > 1e-3]
        assert harmed == ["single_transformer_blocks.2"]
        assert len(losses) == len(ours.transformer_blocks) + len(ours.single_transformer_blocks)

    def test_a_fused_block_by_itself_is_the_one_it_was_made_of(self, tiny, photo):
        ours = load_transformer(TINY, torch.device("cpu"), torch.float32, Emulated())
        fused = NativeRuntime(ours, "bf16").flux.alone()
        losses = block_losses(tiny, fused, Subject("a", photo, "Make it night"), guidance=2.5, seed=1)
        assert [loss.block for loss in losses] == list(fused)
        assert max(loss.error for loss in losses) < 1e-5


def test_a_contact_sheet_keeps_shapes_and_has_a_column_for_targets(tiny, photo):
    from core.edit.runtimes.torch_runtime import TorchRuntime

    wide = Image.new("RGB", (300, 100), "red")
    subjects = [Subject("a", photo, "Make it night"), Subject("b", wide, "Make it night", Image.new("RGB", (9, 9)))]
    edits = {"bf16": edit_all(tiny, TorchRuntime(tiny.transformer), subjects, steps=1, guidance=2.5, seed=1)}
    sheet = contact_sheet(subjects, edits, cell=60)
    assert sheet.width == 4 * 66 + 6  # input, target, bf16, difference
    top = 20 + 86  # of the second row
    assert sheet.getpixel((36, top + 30)) == (255, 0, 0)
    assert sheet.getpixel((36, top + 3)) == (255, 255, 255)  # a wide picture is not stretched


def compare(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "kontext_tui", "compare", "--model", "kontext-tiny", "--steps", "1", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def checkpoint():
    parts = {"model": artifacts.model_hash(TINY), "precision": "fp8", "recipe": "plain", "calibration": "random"}

    def build(folder):
        shutil.copytree(source("fp8"), folder, dirs_exist_ok=True)
        return {}

    return artifacts.make("checkpoint", parts, build)


def test_the_command_tells_both_distances(checkpoint, tmp_path):
    with Image.open(PHOTOS / "dogs.jpg") as picture:
        small = picture.convert("RGB").resize((320, 200))
    small.save(tmp_path / "a.png")
    small.save(tmp_path / "b.png")
    ImageOps.invert(small).save(tmp_path / "exact.png")
    lines = [
        {"image": "a.png", "prompt": "Invert the colors", "target": "exact.png"},
        {"image": "b.png", "prompt": "Make it night"},
        {"image": "gone.png", "prompt": "Make it night"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("-p", "fp8", "--pairs", tmp_path, "--context-refresh", "2", "--steps", "4")
    done = compare(*words, "--sheet", tmp_path / "sheet.png", "--json")
    assert "gone.png" in done.stderr
    told = json.loads(done.stdout)
    fp8 = told["precisions"]["fp8"]
    assert fp8["psnr"] > 25
    assert fp8["bytes"] < 0.56 * told["precisions"]["bf16"]["bytes"]
    assert {"ssim", "flip", "step_ms", "target_psnr", "psnr_worst"} <= fp8.keys()
    faster = told["precisions"]["bf16 refresh 2"]
    assert 35 < faster["psnr"] < 100
    assert faster["bytes"] == told["precisions"]["bf16"]["bytes"]
    assert told["precisions"]["fp8 refresh 2"]["psnr"] < faster["psnr"]
    first, second = told["edits"]["fp8"]
    assert first["to_target"]["psnr"] < 40
    assert second["to_target"] is None
    assert told["edits"]["bf16"][0]["to_bf16"] is None
    assert len(told["blocks"]["fp8"]) == BLOCKS
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 7 * 198 + 6
    assert inventory.look().comparisons == {}  # your own pictures are no measure for others


def test_what_the_edits_that_ship_came_to_is_kept_for_the_app_and_models(monkeypatch, capsys, checkpoint):
    """One of the twelve edits, in one step: the others take their time."""
    from kontext_tui.cli import compare as command
    from quant import quality_set

    monkeypatch.setattr(quality_set, "quality_set", lambda all_of=quality_set.quality_set: all_of()[:1])
    command.compare(model="kontext-tiny", precision=["fp8"], runtime="auto", steps=1, seed=7, json=True)
    told = json.loads(capsys.readouterr().out)["precisions"]
    kept = inventory.look().comparisons["kontext-tiny"]
    assert kept["precisions"] == told
    assert (kept["edits"], kept["steps"], kept["seed"]) == (1, 1, 7)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-p", "fp4"), 4, "kontext-tui quantize"),
        (("-p", "fp99"), 2, "fp99"),
        (("--prompt", "Make it blue"), 2, "--input"),
        (("--input", "examples/photos/dogs.jpg"), 2, "--prompt"),
        (("--pairs", "examples", "--prompt", "x"), 2, "--pairs"),
        (("--pairs", "examples"), 2, "pairs.jsonl"),
    ],
)
def test_bad_input_is_one_line(words, code, says):
    done = compare(*words, code=code)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
