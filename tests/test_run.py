"""`kontext-tui run` as its own process, with the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PHOTOS, ROOT, make_pictures, rows
from PIL import Image

from core.edit.images import sha256
from core.edit.outputs import read_metadata
from core.edit.refresh import can_resume

SCRIPT = """
input: photos
output: edited
model: kontext-tiny
seed: 7
steps: 2
turns:
  - Make it black and white
  - prompt: Add fog
    steps: 3
"""
COMMAND = [sys.executable, "-m", "kontext_tui"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, size in (("dogs.jpg", (97, 146)), ("coffee.png", (120, 80))):
        with Image.open(PHOTOS / name) as image:
            image.resize(size).save(tmp_path / "photos" / name)
    (tmp_path / "edits.yaml").write_text(SCRIPT)
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "run", "edits.yaml", *arguments],
        cwd=folder, env={**ENV, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run", "edits.yaml", *arguments],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for never came"
        time.sleep(0.02)


def turn_states(folder: Path) -> list[str]:
    try:
        return [row[0] for row in rows(folder / "jobs.db", "SELECT state FROM turns ORDER BY job_id, turn")]
    except sqlite3.OperationalError:
        return []  # not made yet


def test_two_photographs_two_turns_and_the_second_run_has_nothing_to_do(folder):
    done = run(folder, "--json")
    assert done.returncode == 0, done.stderr
    jobs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(job) for job in jobs] == [{"job", "input", "state", "output", "error", "peak_bytes", "turns"}] * 2
    assert all(job["peak_bytes"] > 50 << 20 for job in jobs)
    assert re.search(r"turn 2/2 [\d.]+ s, \d+ ms a step, peak \d+ MiB: ", done.stderr)
    for job in jobs:
        assert (job["state"], job["error"]) == ("done", None)
        assert [t["prompt"] for t in job["turns"]] == ["Make it black and white", "Add fog"]
        assert [len(t["step_ms"]) for t in job["turns"]] == [2, 3]
        assert not any(t["reused"] for t in job["turns"])
        with Image.open(job["input"]) as before, Image.open(job["output"]) as after:
            assert after.size == before.size
            assert after.format == "PNG"
        record = read_metadata(Path(job["output"]))
        assert (record["prompt"], record["steps"], record["precision"]) == ("Add fog", 3, "fp32")
    assert sorted(path.name for path in (folder / "edited").iterdir()) == [
        "coffee.png", "coffee.turn-1.png", "dogs.png", "dogs.turn-1.png",
    ]  # fmt: skip
    assert "2 done" in done.stderr
    assert "peak memory" in done.stderr
    times = {path: path.stat().st_mtime_ns for path in (folder / "edited").iterdir()}
    start_ = time.perf_counter()
    again = run(folder, "--json")
    assert time.perf_counter() - start_ < 3  # no model is loaded for nothing
    assert again.returncode == 0
    assert all(t["reused"] for line in again.stdout.splitlines() for t in json.loads(line)["turns"])
    assert {path: path.stat().st_mtime_ns for path in (folder / "edited").iterdir()} == times


def test_the_edit_is_seen_in_the_picture(folder):
    assert run(folder, "--steps", "8", "--output", "bw", "--quiet").returncode == 0
    with Image.open(folder / "photos" / "dogs.jpg") as before, Image.open(folder / "bw" / "dogs.turn-1.png") as after:
        saturation = [image.convert("HSV").getchannel("S").histogram() for image in (before, after)]
    mean = [sum(level * count for level, count in enumerate(h)) / sum(h) for h in saturation]
    assert mean[1] < mean[0] / 2


def test_killed_in_the_second_turn_it_goes_on_and_the_pictures_are_the_same_bits(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    for name in ("photos", "edits.yaml"):
        (whole / name).symlink_to(folder / name)
    assert run(whole, "--quiet", "--output", str(whole / "edited")).returncode == 0
    process = start(folder)
    wait_until(lambda: turn_states(folder)[:1] == ["done"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = folder / "edited" / "coffee.turn-1.png"
    made = first.stat().st_mtime_ns
    done = run(folder, "--json")
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == made
    turns = [t for line in done.stdout.splitlines() for t in json.loads(line)["turns"]]
    assert [t["reused"] for t in turns].count(True) >= 1
    for path in sorted((folder / "edited").iterdir()):
        assert sha256(path) == sha256(whole / "edited" / path.name)
    assert not list((folder / "edited").glob(".*.part"))


@pytest.mark.parametrize(("refresh", "killed_after"), [(1, 4), (3, 5)])
def test_killed_inside_a_turn_it_goes_on_after_its_last_saved_step_with_the_same_bits(
    folder, tmp_path_factory, refresh, killed_after
):
    """With a context refresh that is before the last full step: what is kept of the context is not saved."""
    (folder / "photos" / "coffee.png").unlink()
    whole = tmp_path_factory.mktemp("whole")
    goes_on_after = max(step for step in range(1, killed_after + 1) if can_resume(step, 7, refresh))
    how = ("--steps", "7", "--context-refresh", str(refresh))
    assert run(folder, "--quiet", "--output", str(whole), *how).returncode == 0
    counts = tmp_path_factory.mktemp("counts")
    failing = {
        "KONTEXT_TUI_CHECKPOINT_SECONDS": "0",
        "KONTEXT_TUI_FAILPOINT": f"mid_step:kill:{killed_after}",
        "KONTEXT_TUI_FAILPOINT_COUNT": str(counts),
    }
    done = run(folder, *how, "--db", "other.db", **failing)
    assert done.returncode == 0, done.stderr
    assert f"goes on after step {goes_on_after} of 7" in done.stderr
    computed = (counts / "mid_step").stat().st_size
    assert computed == 7 + (killed_after - goes_on_after) + 3  # no step that was saved is computed twice
    for name in ("dogs.turn-1.png", "dogs.png"):
        assert sha256(folder / "edited" / name) == sha256(whole / name)
    record = read_metadata(whole / "dogs.png")
    assert [record.get("context_refresh", 1), *(t.get("context_refresh", 1) for t in record["turns"])] == [
        refresh
    ] * 3
    assert rows(folder / "other.db", "SELECT count(*) FROM checkpoints") == [(0,)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing_running_and_says_so(folder, number, code):
    process = start(folder, "--steps", "300")
    wait_until(lambda: "running" in turn_states(folder))
    process.send_signal(number)
    assert process.wait(30) == code
    assert rows(folder / "jobs.db", "SELECT DISTINCT state FROM jobs") == [("queued",)]
    assert "released" in process.stderr.read()


def test_two_runs_at_once_edit_each_picture_once(folder):
    make_pictures(folder / "photos", 3)
    processes = [start(folder, "--json"), start(folder, "--json")]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    jobs = [[json.loads(line) for line in out.splitlines()] for out, _ in outputs]
    assert [len(each) for each in jobs] == [5, 5]
    made = [sum(not t["reused"] for job in each for t in job["turns"]) for each in jobs]
    assert sum(made) == 10
    assert rows(folder / "jobs.db", "SELECT count(*), max(attempt) FROM jobs") == [(5, 1)]


def test_wrong_pictures_fail_with_their_names_and_the_good_ones_are_done(folder):
    (folder / "photos" / "bad.jpg").write_bytes((folder / "photos" / "dogs.jpg").read_bytes()[:300])
    os.mkfifo(folder / "photos" / "pipe.png")
    done = run(folder, "--json")
    assert done.returncode == 1
    by_name = {Path(job["input"]).name: job for job in map(json.loads, done.stdout.splitlines())}
    assert {name: job["state"] for name, job in by_name.items()} == {
        "bad.jpg": "dead", "pipe.png": "dead", "dogs.jpg": "done", "coffee.png": "done",
    }  # fmt: skip
    assert by_name["bad.jpg"]["error"]["kind"] == "input"
    assert "bad.jpg" in by_name["bad.jpg"]["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_not_there_is_exit_code_4_and_the_next_run_does_it(folder):
    done = run(folder, "--gpus", "63")
    assert done.returncode == 4
    assert "no GPU 63" in done.stderr
    assert run(folder, "--gpus", "fast").returncode == 2
    assert run(folder, "--gpus", "cpu", "--quiet").returncode == 0


@pytest.mark.parametrize("output", ["photos", "photos/edited"])
def test_results_inside_the_input_folder_never_become_inputs(folder, output):
    before = {path.name: sha256(path) for path in (folder / "photos").iterdir()}
    for _ in range(2):
        done = run(folder, "--output", output, "--json", "--steps", "1")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2
    assert {name: sha256(folder / "photos" / name) for name in before} == before


def test_a_runtime_that_cannot_keep_the_context_is_refused_in_a_line(folder):
    for runtime in ("onnx", "tensorrt"):
        done = run(folder, "--runtime", runtime, "--context-refresh", "2")
        assert done.returncode == 4
        assert f"the {runtime} runtime cannot keep the context between steps" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert run(folder, "--context-refresh", "0").returncode == 2
    assert turn_states(folder) == []


def test_the_model_size_and_another_format_by_name(folder):
    with (folder / "edits.yaml").open("a") as script:
        script.write("output_size: model\n")
    done = run(folder, "--output", "made/{stem}.webp", "--steps", "1", "--quiet")
    assert done.returncode == 0
    with Image.open(folder / "made" / "dogs.webp") as image:
        assert (image.format, image.size) == ("WEBP", (208, 320))
    assert read_metadata(folder / "made" / "dogs.webp")["model"] == "kontext-tiny"
