"""Adding, claiming, ending: what the queue keeps, read back through a second connection."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, make_pictures, rows

from core import script as scripts
from core.edit.models import find_spec
from core.errors import UsageError
from core.inputs import find_inputs
from core.jobs import claims, control, queue, turn_states
from core.jobs.database import connect
from core.jobs.failures import backoff_ms
from core.jobs.records import counts, get_job, get_turns, list_jobs, story


def enqueue(conn: sqlite3.Connection, folder: Path, again: bool = False, **overrides: object) -> queue.Added:
    text = "input: photos\noutput: edited\nmodel: kontext-tiny\nsteps: 2\nturns: [make it night, add fog]\n"
    script = scripts.parse(text, file="edits.yaml", folder=folder, overrides=overrides)
    spec = find_spec(script.model)
    return queue.add(conn, script, spec, queue.plan(script, find_inputs(script), spec), again=again)


@pytest.fixture
def db(tmp_path):
    make_pictures(tmp_path / "photos", 3)
    conn = connect(tmp_path / "jobs.db")
    yield conn
    conn.close()


def test_an_exact_edit_keeps_its_key_and_a_faster_one_is_another(db, tmp_path):
    exact = enqueue(db, tmp_path).jobs
    assert set(enqueue(db, tmp_path, context_refresh=1).jobs.items()) == {(job, "waiting") for job in exact}
    faster = enqueue(db, tmp_path, context_refresh=4).jobs
    assert set(faster.values()) == {"new"}
    assert [turn.context_refresh for turn in get_turns(db, next(iter(faster)))] == [4, 4]


@pytest.fixture
def worker_id(db):
    return claims.register_worker(db, "test", "0")


def finish(conn: sqlite3.Connection, claim: claims.Claim) -> None:
    for turn in get_turns(conn, claim.job.id):
        turn_states.start_turn(conn, claim, turn.turn, precision="fp32", runtime="test")
        turn_states.stage_turn(
            conn, claim, turn.turn, output_path=turn.output_path, sha256="0", size=1, step_ms=[1.0],
            seconds=1.0, peak_bytes=1,
        )  # fmt: skip
        turn_states.finish_turn(conn, claim, turn.turn)
    claims.finish_job(conn, claim)


def test_every_job_is_on_disk_with_its_turns_and_seeds(db, tmp_path):
    added = enqueue(db, tmp_path, seed=7)
    assert list(added.jobs.values()) == ["new"] * 3
    stored = rows(tmp_path / "jobs.db", "SELECT job_id, turn, from_turn, prompt, steps, guidance FROM turns")
    assert [r[1:] for r in stored[:2]] == [(1, 0, "make it night", 2, 2.5), (2, 1, "add fog", 2, 2.5)]
    assert len({r[0] for r in rows(tmp_path / "jobs.db", "SELECT seed FROM turns WHERE turn = 1")}) == 3


def test_a_pictures_seed_does_not_depend_on_its_neighbours(db, tmp_path):
    enqueue(db, tmp_path, seed=7)
    before = rows(tmp_path / "jobs.db", "SELECT name, seed FROM jobs JOIN turns ON id = job_id WHERE turn = 1")
    make_pictures(tmp_path / "photos", 1, prefix="a-new-first-one")
    other = connect(tmp_path / "other.db")
    enqueue(other, tmp_path, seed=7)
    after = rows(tmp_path / "other.db", "SELECT name, seed FROM jobs JOIN turns ON id = job_id WHERE turn = 1")
    assert set(before) < set(after)


def test_one_named_picture_uses_the_scripts_seed_as_it_stands(db, tmp_path):
    added = enqueue(db, tmp_path, seed=7, input=str(tmp_path / "photos" / "picture-0.png"))
    assert [turn.seed for turn in get_turns(db, next(iter(added.jobs)))] == [7, 8]


def test_asking_twice_queues_once_and_a_changed_picture_is_a_new_job(db, tmp_path):
    first = enqueue(db, tmp_path)
    second = enqueue(db, tmp_path)
    assert second.jobs == dict.fromkeys(first.jobs, "waiting")
    make_pictures(tmp_path / "photos", 1, colour="red")
    third = enqueue(db, tmp_path)
    assert sorted(third.jobs.values()) == ["new", "waiting", "waiting"]
    assert counts(db)["queued"] == 4


def test_two_programs_that_add_at_once_queue_each_picture_once(db, tmp_path):
    make_pictures(tmp_path / "photos", 40)
    barrier = threading.Barrier(4)

    def add() -> None:
        conn = connect(tmp_path / "jobs.db")
        barrier.wait()
        enqueue(conn, tmp_path)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(tmp_path / "jobs.db", "SELECT count(*), count(DISTINCT input_path) FROM jobs") == [(40, 40)]


def test_a_finished_job_is_done_before_until_its_file_goes(db, tmp_path, worker_id):
    added = enqueue(db, tmp_path, input=str(tmp_path / "photos" / "picture-0.png"))
    job_id = next(iter(added.jobs))
    finish(db, claims.claim(db, worker_id))
    for turn in get_turns(db, job_id):
        Path(turn.output_path).parent.mkdir(exist_ok=True)
        Path(turn.output_path).write_bytes(b"x")
    same = {"input": str(tmp_path / "photos" / "picture-0.png")}
    assert enqueue(db, tmp_path, **same).jobs == {job_id: "done"}
    Path(get_job(db, job_id).output_path).unlink()
    assert enqueue(db, tmp_path, **same).jobs == {job_id: "again"}
    assert get_job(db, job_id).state == "queued"


def test_again_makes_a_new_job_with_a_name_of_its_own(db, tmp_path, worker_id):
    enqueue(db, tmp_path, input=str(tmp_path / "photos" / "picture-0.png"))
    finish(db, claims.claim(db, worker_id))
    added = enqueue(db, tmp_path, again=True, input=str(tmp_path / "photos" / "picture-0.png"))
    job = get_job(db, next(iter(added.jobs)))
    assert added.count("new") == 1
    assert Path(job.output_path).name == "picture-0-2.png"


def test_two_pictures_of_one_stem_get_two_results(db, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "picture-0.jpg")
    enqueue(db, tmp_path)
    paths = [r[0] for r in rows(tmp_path / "jobs.db", "SELECT output_path FROM turns")]
    assert len(set(paths)) == len(paths) == 8


def test_a_name_that_is_not_utf8_is_kept(db, tmp_path):
    source = tmp_path / "photos" / "picture-0.png"
    odd = os.fsdecode(os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")
    source.rename(odd)
    added = enqueue(db, tmp_path)
    jobs = {get_job(db, job_id).input_path for job_id in added.jobs}
    assert odd in jobs


def test_claims_go_by_priority_then_age_and_are_never_shared(db, tmp_path, worker_id):
    ids = list(enqueue(db, tmp_path).jobs)
    db.execute("UPDATE jobs SET priority = 5 WHERE id = ?", (ids[2],))
    taken = [claims.claim(db, worker_id).job.id for _ in ids]
    assert taken == [ids[2], ids[0], ids[1]]
    assert claims.claim(db, worker_id) is None


def test_the_claim_reads_one_row_of_an_index(db):
    plan = " ".join(row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {claims.NEXT_WAITING}"))
    assert "jobs_waiting" in plan
    assert "TEMP B-TREE" not in plan


def test_a_paused_queue_gives_nothing(db, tmp_path, worker_id):
    enqueue(db, tmp_path)
    db.execute("INSERT INTO settings VALUES ('paused', 'by hand', 0)")
    assert claims.claim(db, worker_id) is None


def test_a_late_worker_changes_nothing(db, tmp_path, worker_id):
    enqueue(db, tmp_path)
    late = claims.claim(db, worker_id)
    claims.release(db, late)
    successor = claims.claim(db, worker_id)
    assert successor.job.id == late.job.id
    before = rows(tmp_path / "jobs.db", "SELECT * FROM jobs")
    with pytest.raises(claims.StaleClaim):
        turn_states.start_turn(db, late, 1, precision="fp32", runtime="test")
    with pytest.raises(claims.StaleClaim):
        claims.finish_job(db, late)
    with pytest.raises(claims.StaleClaim):
        claims.fail_job(db, late, "error", "late")
    assert rows(tmp_path / "jobs.db", "SELECT * FROM jobs") == before


def test_cancel_hits_its_target_alone_and_a_running_job_hears_of_it(db, tmp_path, worker_id):
    ids = list(enqueue(db, tmp_path).jobs)
    running = claims.claim(db, worker_id)
    assert control.cancel(db, [running.job.id, ids[1]]) == {ids[0]: "running", ids[1]: "queued"}
    with pytest.raises(claims.Cancelled):
        turn_states.beat(db, running, 1, [1.0])
    claims.cancel_claimed(db, running)
    assert [get_job(db, i).state for i in ids] == ["cancelled", "cancelled", "queued"]
    with pytest.raises(UsageError, match="no job 99"):
        control.cancel(db, [99])


def test_retry_keeps_the_turns_that_are_done(db, tmp_path, worker_id):
    enqueue(db, tmp_path)
    claim = claims.claim(db, worker_id)
    turn_states.start_turn(db, claim, 1, precision="fp32", runtime="test")
    turn_states.stage_turn(
        db, claim, 1, output_path="/x.png", sha256="0", size=1, step_ms=[1.0], seconds=1.0, peak_bytes=1
    )
    turn_states.finish_turn(db, claim, 1)
    claims.fail_job(db, claim, "input", "no good")
    assert get_job(db, claim.job.id).error == "no good"
    assert control.retry(db, [claim.job.id]) == {claim.job.id: "dead"}
    assert [t.state for t in get_turns(db, claim.job.id)] == ["done", "pending"]
    assert get_job(db, claim.job.id).error is None


def test_interruptions_do_not_count_as_failures(db, tmp_path, worker_id):
    [job_id, *others] = enqueue(db, tmp_path).jobs
    control.hold(db, others)
    for _ in range(4):
        claim = claims.claim(db, worker_id)
        claims.release(db, claim, "no room")
    claim = claims.claim(db, worker_id)
    assert (claim.job.attempt, claims.failures(db, claim)) == (5, 0)
    claims.retry_later(db, claim, "error", "RuntimeError", None, 0)
    claim = claims.claim(db, worker_id)
    assert claims.failures(db, claim) == 1
    claims.fail_job(db, claim, "error", "RuntimeError")
    control.retry(db, [job_id])
    assert claims.failures(db, claims.claim(db, worker_id)) == 0
    told = [event for event in story(db, job_id) if event["what"] in ("claimed", "released")][:2]
    assert told[0]["worker"]["device"] == "test"
    assert told[1]["data"] == {"reason": "no room"}


def test_counts_follow_every_change(db, tmp_path, worker_id):
    enqueue(db, tmp_path)
    claim = claims.claim(db, worker_id)
    assert (counts(db)["queued"], counts(db)["running"]) == (2, 1)
    finish(db, claim)
    with db:
        db.execute("DELETE FROM jobs WHERE state = 'queued'")
    by_hand = dict(rows(tmp_path / "jobs.db", "SELECT state, count(*) FROM jobs GROUP BY state"))
    assert {s: n for s, n in counts(db).items() if n} == by_hand == {"done": 1}


def test_a_dead_processs_jobs_are_rescued_and_a_living_ones_are_not(db, tmp_path, worker_id):
    enqueue(db, tmp_path)
    mine = claims.claim(db, worker_id)
    code = (
        "import sys; from pathlib import Path; from core.jobs import claims; from core.jobs.database import connect\n"
        "c = connect(Path(sys.argv[1])); claims.claim(c, claims.register_worker(c, 'x', '0')); sys.exit()"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "jobs.db"], cwd=ROOT, check=True)
    assert counts(db)["running"] == 2
    rescued = claims.rescue(db)
    [job_id] = [event.job_id for event in rescued]
    assert job_id != mine.job.id
    assert get_job(db, job_id).state == "queued"
    assert "lost" in [event["what"] for event in story(db, job_id)]


def test_a_thousand_small_pictures_are_queued_in_under_five_seconds(db, tmp_path):
    make_pictures(tmp_path / "photos", 1000)
    start = time.perf_counter()
    assert len(enqueue(db, tmp_path).jobs) == 1000
    assert time.perf_counter() - start < 5
    start = time.perf_counter()
    assert len(list_jobs(db, limit=1000)) == 1000
    assert counts(db)["queued"] == 1000
    assert time.perf_counter() - start < 0.5


def test_waits_between_attempts_double_to_a_cap_with_chance():
    shortest = [backoff_ms(attempt, lambda low, high: low) for attempt in range(1, 12)]
    longest = [backoff_ms(attempt, lambda low, high: high) for attempt in range(1, 12)]
    assert longest[:4] == [15_000, 30_000, 60_000, 120_000]
    assert longest[-1] == 15 * 60_000
    assert [2 * each for each in shortest] == longest
    assert len({backoff_ms(3) for _ in range(20)}) > 10  # not all of a night's jobs at the same moment
