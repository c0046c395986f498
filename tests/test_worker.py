"""A worker process killed at any moment: the next one goes on, and no finished turn is computed again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, make_pictures, rows
from PIL import Image
from test_queue import enqueue

from core.edit.images import sha256
from core.edit.outputs import read_metadata
from core.jobs import control
from core.jobs.database import connect
from core.jobs.records import get_job, get_turns

TURNS = ["make it night", "add fog", "make it warmer", "blur the image", "invert the colors"]


@pytest.fixture
def place(tmp_path):
    """A folder with pictures and a queue, and a way to start workers on it."""
    return Place(tmp_path)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.database, self.log = folder, folder / "jobs.db", folder / "log"
        self.conn = connect(self.database)

    def start(self, step_ms: float = 0) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, ROOT / "tests" / "fast_worker.py", self.database, self.log],
            env={**os.environ, "PYTHONPATH": str(ROOT), "KONTEXT_TEST_STEP_MS": str(step_ms)},
        )

    def computed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, condition, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "what was waited for never came"
            time.sleep(0.01)


def test_a_drained_queue_has_every_result_whole_and_described(place):
    make_pictures(place.folder / "photos", 3)
    added = enqueue(place.conn, place.folder, turns=TURNS, seed=3)
    assert place.start().wait(60) == 0
    for job_id in added.jobs:
        job, turns = get_job(place.conn, job_id), get_turns(place.conn, job_id)
        assert job.state == "done"
        for turn in turns:
            assert turn.output_sha256 == sha256(Path(turn.output_path))
            with Image.open(turn.output_path) as image:
                assert image.size == (24, 16)
        record = read_metadata(Path(job.output_path))
        assert [t["prompt"] for t in record["turns"]] == TURNS
        assert record["input"]["sha256"] == job.input_sha256
        assert (record["seed"], record["steps"], record["model"]) == (turns[-1].seed, 2, "kontext-tiny")
    assert sorted(path.name for path in (place.folder / "edited").iterdir() if path.name.startswith(".")) == []


def test_killed_again_and_again_the_run_completes_and_no_finished_turn_is_computed_twice(place):
    make_pictures(place.folder / "photos", 4)
    added = enqueue(place.conn, place.folder, turns=TURNS, seed=3)
    random_source, kills = random.Random(5), 0
    while any(get_job(place.conn, job_id).state != "done" for job_id in added.jobs):
        worker = place.start(step_ms=15)
        seen = len(place.computed())
        place.wait_for(lambda w=worker, n=seen: w.poll() is not None or len(place.computed()) > n)
        time.sleep(random_source.uniform(0, 0.12))
        if worker.poll() is None and kills < 12:
            worker.send_signal(signal.SIGKILL)
            kills += 1
        worker.wait(60)
    assert kills >= 5
    # At most two turns, the one at work and the one that is being saved, are lost to each kill.
    assert len(place.computed()) <= len(TURNS) * 4 + 2 * kills
    stored = rows(place.database, "SELECT output_path, output_sha256 FROM turns")
    assert all(sha256(Path(path)) == digest for path, digest in stored)
    make_pictures(place.folder / "again" / "photos", 4)
    uninterrupted = Place(place.folder / "again")  # the same edits without a kill
    enqueue(uninterrupted.conn, uninterrupted.folder, turns=TURNS, seed=3)
    uninterrupted.start().wait(60)
    assert Counter(d for _, d in rows(uninterrupted.database, "SELECT 0, output_sha256 FROM turns")) == Counter(
        digest for _, digest in stored
    )


@pytest.mark.parametrize("moment", ["before the file has its name", "after it, before the queue knows"])
def test_killed_around_the_rename_the_result_is_adopted_or_made_once_more(place, moment, monkeypatch):
    make_pictures(place.folder / "photos", 1)
    added = enqueue(place.conn, place.folder, turns=TURNS[:2], seed=3)
    job_id = next(iter(added.jobs))
    patch = (
        "outputs.publish = lambda part, final: os._exit(9)"
        if moment.startswith("before")
        else "turn_states.finish_turn = lambda *a: os._exit(9)"
    )
    code = (
        f"import os, sys; sys.path[:0] = ['tests']; from pathlib import Path; from core.edit import outputs\n"
        f"from core.jobs import turn_states; import fast_worker\n{patch}\n"
        f"fast_worker.main(Path({str(place.database)!r}), Path({str(place.log)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 9
    first, second = get_turns(place.conn, job_id)
    assert (first.state, second.state) in {("saving", "pending"), ("saving", "running")}  # it may be at the next
    assert len(place.computed()) in (1, 2)
    place.start().wait(60)
    assert get_job(place.conn, job_id).state == "done"
    adopted = moment.startswith("after")
    assert [line.split("\t")[0] for line in place.computed()].count(TURNS[0]) == (1 if adopted else 2)


def test_a_result_that_a_person_removed_is_made_again_and_only_that(place):
    make_pictures(place.folder / "photos", 1)
    job_id = next(iter(enqueue(place.conn, place.folder, turns=TURNS, seed=3).jobs))
    place.start().wait(60)
    before = {turn.turn: turn.output_sha256 for turn in get_turns(place.conn, job_id)}
    Path(get_turns(place.conn, job_id)[2].output_path).unlink()
    assert enqueue(place.conn, place.folder, turns=TURNS, seed=3).jobs == {job_id: "again"}
    place.start().wait(60)
    assert {turn.turn: turn.output_sha256 for turn in get_turns(place.conn, job_id)} == before
    assert len(place.computed()) == len(TURNS) + 1


def test_a_name_taken_meanwhile_is_left_to_its_owner(place):
    make_pictures(place.folder / "photos", 1)
    job_id = next(iter(enqueue(place.conn, place.folder, turns=TURNS[:1]).jobs))
    stranger = Path(get_job(place.conn, job_id).output_path)
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("somebody's own")
    place.start().wait(60)
    job = get_job(place.conn, job_id)
    assert stranger.read_text() == "somebody's own"
    assert Path(job.output_path).name == "picture-0-2.png"
    assert job.state == "done"


def test_a_link_that_came_into_the_output_folder_leads_no_result_out_of_it(place):
    make_pictures(place.folder / "photos" / "a", 1)
    make_pictures(place.folder / "photos" / "b", 1)
    enqueue(place.conn, place.folder)
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    (place.folder / "edited").mkdir(exist_ok=True)
    (place.folder / "edited" / "a").symlink_to(elsewhere)
    assert place.start().wait(60) == 0
    states = rows(place.database, "SELECT name, state, error_kind FROM jobs ORDER BY name")
    assert states == [("a/picture-0.png", "dead", "output"), ("b/picture-0.png", "done", None)]
    assert list(elsewhere.iterdir()) == []


def test_wrong_pictures_die_with_a_reason_and_the_good_ones_are_done(place):
    photos = place.folder / "photos"
    make_pictures(photos, 5)
    (photos / "empty.jpg").touch()
    (photos / "text.png").write_text("not a picture")
    (photos / "cut.png").write_bytes((photos / "picture-0.png").read_bytes()[:60])
    (photos / "folder.png").mkdir()
    os.mkfifo(photos / "pipe.jpg")
    (photos / "nowhere.tif").symlink_to("missing.tif")
    enqueue(place.conn, place.folder)
    assert place.start().wait(60) == 0
    dead = rows(place.database, "SELECT name, error_kind, error, attempt FROM jobs WHERE state = 'dead'")
    assert {row[0] for row in dead} == {"empty.jpg", "text.png", "cut.png", "folder.png", "pipe.jpg", "nowhere.tif"}
    assert all(kind == "input" and name in error and attempt == 1 for name, kind, error, attempt in dead)
    assert rows(place.database, "SELECT count(*) FROM jobs WHERE state = 'done'") == [(5,)]


def test_cancelling_a_running_job_ends_it_between_steps(place):
    make_pictures(place.folder / "photos", 2)
    first, second = enqueue(place.conn, place.folder, steps=200).jobs
    worker = place.start(step_ms=20)
    place.wait_for(lambda: get_job(place.conn, first).state == "running")
    control.cancel(place.conn, [first])
    place.wait_for(lambda: get_job(place.conn, first).state == "cancelled")
    control.cancel(place.conn, [second])
    assert worker.wait(60) == 0
    assert not Path(get_job(place.conn, first).output_path).exists()


def test_a_turn_starts_from_the_result_it_names(place):
    make_pictures(place.folder / "photos", 1)
    turns = ["make it night", "add fog", {"prompt": "add fog", "from": 1}, {"prompt": "make it night", "from": 0}]
    turns = [{"prompt": t} if isinstance(t, str) else t for t in turns]
    job_id = next(iter(enqueue(place.conn, place.folder, turns=[{**t, "seed": 1} for t in turns]).jobs))
    place.start().wait(60)
    digests = [Image.open(turn.output_path).convert("RGB").tobytes() for turn in get_turns(place.conn, job_id)]
    assert digests[1] == digests[2]
    assert digests[0] == digests[3] != digests[1]


def test_transparency_survives_every_turn(place):
    photos = place.folder / "photos"
    photos.mkdir()
    image = Image.new("RGBA", (24, 16), (200, 30, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 8))
    image.save(photos / "logo.png")
    job_id = next(iter(enqueue(place.conn, place.folder).jobs))
    place.start().wait(60)
    with Image.open(get_job(place.conn, job_id).output_path) as result:
        assert result.mode == "RGBA"
        assert result.getpixel((2, 2))[3] == 0
        assert result.getpixel((20, 12))[3] == 255
    notes = rows(place.database, "SELECT data FROM events WHERE what = 'note'")
    assert any("white" in note for (note,) in notes)
