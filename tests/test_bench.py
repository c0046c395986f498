"""`bench` on a processor: every part of the report, from a slice of random weights and from the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from quant import bench, bench_batch, bench_charts, random_weights
from quant.bench_charts import Bar
from quant.random_weights import Size

SLICE = ("--random-weights", "--double", "1", "--single", "1", "--heads", "2", "--tokens", "128")
QUICK = ("--calls", "1", "--steps", "1", "--quiet", "--json")


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "kontext_tui", "bench", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_a_slice_of_random_weights_tells_all_there_is_to_tell(tmp_path):
    done = run(tmp_path, *SLICE, *QUICK, "-p", "bf16", "-p", "fp8", "--jobs", "0", "--peer", "--charts", "charts")
    assert done.stderr == ""
    report = json.loads(done.stdout)
    exact, fp8 = report["rows"]
    assert (exact["precision"], fp8["precision"], fp8["emulated"]) == ("fp32", "fp8", True)
    for row in (exact, fp8):
        assert row["ms"]["p10"] <= row["ms"]["median"] <= row["ms"]["p90"]
        assert row["tokens"] == {"image": 64, "context": 64, "text": 512}
        assert set(row["kernels"]) == {bench.GEMM, bench.ATTENTION, bench.ELEMENTWISE, bench.OTHER}
        assert row["kernels"][bench.GEMM] > 0
        assert all(seconds > 0 for seconds in row["modules"].values())
        assert set(row["context_refresh"]["average_ms"]) == {"2", "4"}
        assert row["pipeline_bytes"] > row["weights_bytes"]
    assert exact["kernels"][bench.ATTENTION] > 0
    # Keys and values of 64 context tokens, 2 blocks of 2 heads of 128, in float32 and in a byte each.
    assert [row["context_refresh"]["kept_bytes"] for row in (exact, fp8)] == [4 * 2 * 2 * 64 * 256, 2 * 2 * 64 * 256]
    assert fp8["weights_bytes"] < exact["weights_bytes"] / 2
    assert 0 < fp8["error"] < 0.5
    assert [peer["name"] for peer in report["peers"]] == ["diffusers, eager"]
    assert set(report["missing"]) >= {"diffusers, compiled"}
    assert {"torch", "diffusers", "date"} <= set(report["machine"])
    charts = sorted((tmp_path / "charts").iterdir())
    assert len(charts) == 4
    for chart in charts:
        with Image.open(chart) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_a_batch_goes_through_the_queue_and_only_counts_what_is_warm():
    size, told = Size(double=1, single=1, heads=2, tokens=128), []
    batch = bench_batch.run(
        random_weights.make_spec(size), "fp8", "torch", jobs=1, steps=3, devices=["cpu"], size=size,
        context_refresh=3, on_turn=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (batch["turns"], batch["steps"], batch["devices"]) == (2, 3, ["cpu"])  # the first job warms up
    assert (batch["precision"], batch["runtime"], batch["context_refresh"]) == ("fp8", "torch", 3)
    assert batch["images_per_hour"] > 0
    assert 0 < batch["denoise_share"] < 1
    assert len(batch["load_s"]) == 1


def test_a_batch_alone(tmp_path):
    done = run(tmp_path, *SLICE, "--calls", "0", "--steps", "1", "--json", "-p", "fp8", "--jobs", "1")
    report = json.loads(done.stdout)
    assert (report["rows"], report["peers"]) == ([], [])
    assert [(each["precision"], each["jobs"]) for each in report["batch"]] == [("fp8", 1)]
    assert report["batch"][0]["turns"] > 0
    assert "turns of the batch in fp8" in done.stderr


def test_the_embedded_model_in_the_terminal(tmp_path):
    done = run(
        tmp_path, "--model", "kontext-tiny", "-p", "bf16", "-p", "fp8", "--runtime", "torch", "--calls", "1",
        "--steps", "1", "--jobs", "0", "--quiet",
    )  # fmt: skip
    assert "fp32 torch, refresh 2" in done.stdout
    assert "GEMM" in done.stdout
    assert "published" not in done.stdout  # those are of a megapixel
    assert "kontext-tui quantize --model kontext-tiny --precision fp8" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-p", "fp7", "--random-weights"), 2, "--precision 'fp7': give one of bf16, fp8, fp4, fp4-svd"),
        (("--runtime", "cuda", "--random-weights"), 2, "--runtime 'cuda'"),
        (("--random-weights", "--runtime", "onnx"), 2, "--random-weights"),
        (("--model", "kontext-tiny", "-p", "fp8", "--runtime", "onnx"), 4, "there is no fp8 ONNX graph"),
        (("--random-weights", "--gpus", "63"), 4, "no GPU 63"),
        (("--random-weights", "--calls", "0", "--jobs", "0"), 2, "--calls 0 leaves the batch alone"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, arguments, code, said):
    done = run(tmp_path, *arguments, code=code)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_kernels_are_told_apart():
    kinds = {
        "nvjet_qqtst_128x256_128x4_2x1_v_bz_coopA_bias_TNT": bench.GEMM,
        "sm90_xmma_gemm_bf16bf16": bench.GEMM,
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma": bench.ATTENTION,
        "triton_poi_fused__to_copy_clamp_mul_3": bench.ELEMENTWISE,
        "Memcpy DtoD (Device -> Device)": bench.OTHER,
        "aten::addmm": bench.GEMM,
        "aten::_scaled_dot_product_flash_attention_for_cpu": bench.ATTENTION,
        "aten::native_layer_norm": bench.ELEMENTWISE,
    }
    assert {name: bench.kind_of(name) for name in kinds} == kinds


def test_times_are_of_warm_calls_alone():
    done: list[int] = []
    found = bench.times(lambda: done.append(1), 5, torch.device("cpu"))
    assert len(done) == 5 + bench.WARM_UP
    assert found["calls"] == 5


def test_fp4_branches_are_as_large_as_a_checkpoints():
    size = Size(double=1, single=1, heads=2, tokens=128)
    model = random_weights.make_transformer(size, torch.device("cpu"), torch.float32)
    sample = random_weights.make_samples(1, size, torch.device("cpu"), torch.float32)[0]
    random_weights.quantize(model, "fp4-svd", sample)
    layer = model.transformer_blocks[0].attn.to_q
    assert layer.weight.shape == (256, 128)
    assert layer.weight_scale.shape == (256, 16)
    assert layer.svdquant_lora_a.shape == (32, 256)
    with torch.inference_mode():
        assert model(**sample.inputs())[0].isfinite().all()


def test_a_bar_of_nothing_and_long_names_can_be_drawn():
    bars = [Bar("a name that is far too long for its place beside the bars", {"ms": 0.0}, "0 ms"),
            Bar("b", {"ms": 3.0}, "a text that is quite long too, and must not be cut off")]  # fmt: skip
    image = bench_charts.draw("title", "subtitle", bars)
    edge = image.crop((image.width - 8, 0, image.width, image.height))
    assert edge.getcolors() == [(8 * image.height, (255, 255, 255))]
