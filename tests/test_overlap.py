"""One turn is computed while the last one is saved and the next picture is read: nothing is lost, doubled, mixed up.

The real worker with the fast editor, in this process where a moment has to be held still, as a process of its own
where it is killed.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_pictures, rows
from fast_worker import FastSession, FastStudio
from PIL import Image
from test_queue import enqueue

from core.edit import geometry, images, outputs, source
from core.edit.models import MODELS
from core.edit.source import Result
from core.jobs import board, claims, control, turn_states
from core.jobs.database import connect
from core.jobs.events import Event
from core.jobs.prefetch import Ahead, Prefetcher
from core.jobs.records import get_job, get_turns
from core.jobs.saver import Save
from core.jobs.scribe import Scribe
from core.jobs.worker import Stopped, Worker, drain

SECONDS = 30.0


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for never came"
        time.sleep(0.005)


@dataclass
class Studio(FastStudio):
    """Does `before` when an edit begins, given how many there were."""

    sizes: tuple[tuple[int, int], ...] = ()
    before: Callable[[int], None] = lambda number: None
    edits: int = 0

    def open(self, *arguments, **options):
        studio = self

        class Session(FastSession):
            def edit(self, *arguments, **options):
                studio.edits += 1
                studio.before(studio.edits)
                return super().edit(*arguments, **options)

        session = Session(self.log)
        session.sizes = self.sizes
        return session


@dataclass
class Shop:
    """A folder with pictures, a queue, and a worker that runs in this process."""

    folder: Path
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = self.folder / "jobs.db"
        self.conn = connect(self.database)
        self.studio = Studio("test", self.folder / "log")
        self.stop = threading.Event()

    def fill(self, pictures: int = 2, **options) -> list[int]:
        make_pictures(self.folder / "photos", pictures)
        return list(enqueue(self.conn, self.folder, **{"turns": ["make it night"], **options}).jobs)

    def worker(self) -> Worker:
        return Worker(connect(self.database), self.studio, self.events.append, self.stop.is_set)

    def at(self, what: str, job: int, turn: int | None = None) -> int:
        """When it was told, as a place among the events."""
        found = [i for i, e in enumerate(self.events) if (e.what, e.job_id) == (what, job) and turn in (None, e.turn)]
        return found[0]

    def states(self) -> list[str]:
        return [row[0] for row in rows(self.database, "SELECT state FROM jobs ORDER BY id")]

    def parts(self) -> list[Path]:
        return list(self.folder.rglob(".*.part"))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


# ---------------------------------------------------------------- what goes on at once


def test_the_next_turn_and_the_next_job_are_computed_while_the_last_result_is_saved(shop, monkeypatch):
    """Each file gets its name only when the edit after it has begun: one after another, this would never end."""
    first, second = shop.fill(turns=["make it night", "add fog"])
    publish, published = outputs.publish, []

    def held_back(part, final):
        published.append(final)
        wait_for(lambda: shop.studio.edits > len(published) or len(published) == 4)
        publish(part, final)

    monkeypatch.setattr(outputs, "publish", held_back)
    drain(shop.worker())
    assert shop.states() == ["done", "done"]
    assert shop.at("turn", first, 2) < shop.at("turn_done", first, 1)
    assert shop.at("turn", second, 1) < shop.at("turn_done", first, 2) < shop.at("done", first)
    for job in (first, second):
        told = [shop.at(*each) for each in (("claimed", job), ("turn", job, 1), ("turn_done", job, 1),
                                            ("turn_done", job, 2), ("done", job))]  # fmt: skip
        assert told == sorted(told)
        assert [e.data["seconds"] > 0 for e in shop.events if (e.what, e.job_id) == ("done", job)] == [True]
    pauses = [e.data["pause_ms"] for e in shop.events if e.what == "turn_done"]
    assert pauses[0] is None
    assert all(pause > 0 for pause in pauses[1:])
    story = rows(shop.database, "SELECT job_id, turn FROM events WHERE what = 'turn_done' ORDER BY id")
    assert story == [(first, 1), (first, 2), (second, 1), (second, 2)]


def test_one_result_waits_at_most(shop, monkeypatch):
    shop.fill(4)
    release, run, at_work = threading.Event(), Save.run, []

    def slow(save, conn, tell):
        at_work.append(save.turn)
        release.wait(SECONDS)
        return run(save, conn, tell)

    monkeypatch.setattr(Save, "run", slow)
    thread = threading.Thread(target=drain, args=(shop.worker(),))
    thread.start()
    wait_for(lambda: shop.studio.edits == 2)
    time.sleep(0.3)
    assert (len(at_work), shop.studio.edits) == (1, 2)  # the second result waits in the worker's hands
    release.set()
    thread.join(SECONDS)
    assert shop.states() == ["done"] * 4


def test_a_job_that_a_worker_died_under_is_at_work_alone(shop):
    first, second, third = shop.fill(3)
    shop.conn.execute("UPDATE jobs SET deaths = 1 WHERE id = ?", (second,))
    drain(shop.worker())
    assert shop.states() == ["done"] * 3
    assert shop.at("done", first) < shop.at("turn", second)
    assert shop.at("done", second) < shop.at("claimed", third)


def test_a_turn_asked_for_while_the_job_is_saved_is_made_by_the_same_worker(shop, monkeypatch):
    from core.jobs import review
    from core.jobs.results import Pick

    first, _ = shop.fill()
    finish = claims.finish_job
    asked = []

    def meanwhile(conn, claim):
        if claim.job.id == first and not asked:
            asked.append(review.branch(shop.conn, Pick(first, 1), review.Change(prompt="add fog")))
        return finish(conn, claim)

    monkeypatch.setattr(claims, "finish_job", meanwhile)
    drain(shop.worker())
    assert shop.states() == ["done", "done"]
    assert [turn.state for turn in get_turns(shop.conn, first)] == ["done", "done"]
    assert rows(shop.database, "SELECT max(attempt) FROM jobs") == [(1,)]


# ---------------------------------------------------------------- the same pictures


def photo(size: tuple[int, int], *, alpha: bool = False) -> Image.Image:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1] // 7 + 1, size[0] // 7 + 1, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    if alpha:
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(400, 300), (256, 256), (90, 140), None])
def test_a_result_in_memory_is_what_its_file_gives_back(tmp_path, size, alpha):
    made = photo((256, 256))
    mask = Image.linear_gradient("L").resize(size or (300, 200)) if alpha else None
    result = Result(made, size, mask)
    path = tmp_path / "result.png"
    path.write_bytes(outputs.encode(result.whole(), ".png", {"prompt": "x"}))
    kept, read = result.source(lambda: ""), source.load(path)
    assert kept.size == read.size == (size or (256, 256))
    assert kept.rgb.tobytes() == read.rgb.tobytes()
    assert (kept.alpha is None, read.alpha is None) == (not alpha, not alpha)
    if alpha:
        assert kept.alpha.tobytes() == read.alpha.tobytes()
    assert kept.fit([(256, 256), (320, 192)]).rgb.tobytes() == read.fit([(256, 256), (320, 192)]).rgb.tobytes()


@pytest.mark.parametrize("alpha", [False, True])
def test_a_chain_gives_the_same_bytes_as_one_that_reads_every_result_from_its_file(tmp_path, monkeypatch, alpha):
    digests = []
    for name, lossless in (("kept", source.LOSSLESS), ("read", ())):
        monkeypatch.setattr(source, "LOSSLESS", lossless)
        (tmp_path / name).mkdir()
        shop = Shop(tmp_path / name)
        shop.studio.sizes = ((64, 64), (80, 48))
        (shop.folder / "photos").mkdir()
        photo((150, 100), alpha=alpha).save(shop.folder / "photos" / "a.png")
        turns = [{"prompt": "make it night"}, {"prompt": "add fog"}, {"prompt": "blur the image", "from": 1}]
        [job] = enqueue(shop.conn, shop.folder, turns=turns, seed=4).jobs
        drain(shop.worker())
        assert all(images.sha256(Path(t.output_path)) == t.output_sha256 for t in get_turns(shop.conn, job))
        digests.append([turn.output_sha256 for turn in get_turns(shop.conn, job)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bands_of_a_resize_are_the_whole_to_the_bit(monkeypatch, mode):
    monkeypatch.setattr(geometry, "BAND_PIXELS", 1)
    for threads in (2, 3, 8):
        monkeypatch.setattr(geometry, "_threads", lambda threads=threads: threads)
        for size, to in (((301, 203), (120, 77)), ((120, 77), (301, 203)), ((64, 5), (64, 200)), ((3, 3), (900, 2))):
            image = photo(size).convert(mode)
            assert geometry.resize(image, to).tobytes() == image.resize(to, Image.Resampling.LANCZOS).tobytes()


def test_a_picture_of_a_models_size_is_taken_as_it_is():
    for spec in MODELS.values():
        assert [geometry.working_size(*size, spec.sizes) for size in spec.sizes] == list(spec.sizes)


# ---------------------------------------------------------------- reading ahead


def test_the_next_picture_is_read_ahead_and_taken_only_while_it_is_the_same_file(shop):
    shop.fill(3)
    photos = shop.folder / "photos"
    reader = Prefetcher(connect(shop.database))
    claims.claim(shop.conn, claims.register_worker(shop.conn, "test", "0"))
    ahead = Ahead(None, "kontext-tiny", ((64, 64),))
    reader.look(ahead)
    wait_for(lambda: list(reader._kept) == [photos / "picture-1.png"])  # one worker, one picture ahead
    taken = reader.take(photos / "picture-1.png", "kontext-tiny")
    assert (reader.hits, taken.size, taken.rgb.size) == (1, (24, 16), (64, 64))
    assert taken.sha256() == images.sha256(photos / "picture-1.png")
    for change in ("another picture", "another model", "gone"):
        reader.look(ahead)
        wait_for(lambda: list(reader._kept) == [photos / "picture-1.png"])
        if change == "another picture":
            Image.new("RGB", (24, 16), "lime").save(photos / "picture-1.png")
        if change == "gone":
            (photos / "picture-1.png").unlink()
            with pytest.raises(images.InputError, match="no such file"):
                reader.take(photos / "picture-1.png", "kontext-tiny")
        else:
            model = "another" if change == "another model" else "kontext-tiny"
            taken = reader.take(photos / "picture-1.png", model)
            assert (taken.rgb.size, taken.sha256()) == ((24, 16), images.sha256(photos / "picture-1.png"))
    assert reader.hits == 1
    reader.close()


def test_what_is_likely_next_is_guessed_by_the_order_of_claims(shop):
    first, second, third, fourth = shop.fill(4, turns=["make it night", "add fog"])
    name = {job: Path(get_job(shop.conn, job).input_path) for job in (first, second, third, fourth)}

    def guess(limit=4, model="kontext-tiny", batch=None):
        return claims.next_pictures(shop.conn, model, batch_id=batch, limit=limit)

    assert guess() == [name[first]]
    control.prioritise(shop.conn, [third], 5)
    assert guess() == guess(batch=1) == [name[third]]
    claimed = [claims.claim(shop.conn, claims.register_worker(shop.conn, "test", "0")) for _ in "ab"]
    assert [claim.job.id for claim in claimed] == [third, first]
    assert guess() == guess(batch=1) == [name[second], name[fourth]]  # two workers: either may be next
    assert guess(limit=1) == [name[second]]
    assert guess(model="another") == guess(batch=2) == []
    control.pause(shop.conn, "a test")
    assert guess() == []


def test_a_wrong_guess_and_a_broken_picture_change_nothing(shop):
    jobs = shop.fill(4)
    (shop.folder / "photos" / "picture-2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    worker = shop.worker()

    def reorder(number):
        if number == 1:
            wait_for(lambda: worker.prefetcher._kept)
            control.prioritise(shop.conn, [jobs[3]], 5)

    shop.studio.before = reorder
    drain(worker)
    assert shop.states() == ["done", "done", "dead", "done"]
    claimed = [e.job_id for e in shop.events if e.what == "claimed"]
    assert claimed == [jobs[0], jobs[3], jobs[1], jobs[2]]
    assert "picture-2.png: broken" in get_job(shop.conn, jobs[2]).error
    for job in (jobs[0], jobs[1], jobs[3]):
        record = outputs.read_metadata(Path(get_job(shop.conn, job).output_path))
        assert record["input"]["sha256"] == images.sha256(Path(get_job(shop.conn, job).input_path))


# ---------------------------------------------------------------- what goes wrong


def test_killed_while_one_job_is_saved_and_the_next_computed_nothing_is_lost_or_doubled(tmp_path):
    make_pictures(tmp_path / "photos", 3)
    database, log = tmp_path / "jobs.db", tmp_path / "log"
    conn = connect(database)
    enqueue(conn, tmp_path, turns=["make it night"], seed=3)
    (tmp_path / "count").mkdir()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "KONTEXT_TUI_FAILPOINT_COUNT": str(tmp_path / "count"),
    }  # fmt: skip
    parts: list[int] = []

    def start(**extra: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, ROOT / "tests" / "fast_worker.py", database, log]
        return subprocess.Popen(command, env={**environment, **extra})

    def count(what: str) -> int:
        return int(rows(database, f"SELECT count(*) FROM {what}")[0][0])

    for begun, point in ((2, "before_rename"), (4, "after_rename")):
        worker = start(KONTEXT_TEST_STEP_MS="300", KONTEXT_TUI_FAILPOINT=f"{point}:hang")
        wait_for(lambda n=begun: log.exists() and len(log.read_text().splitlines()) == n)
        wait_for(lambda: count("turns WHERE state = 'saving' AND output_sha256 IS NOT NULL"))
        wait_for(lambda: count("turns WHERE state = 'running'"))
        assert count("jobs WHERE state = 'running'") == 2
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        parts.append(len(list((tmp_path / "edited").glob(".*.part"))))
    assert parts == [1, 0]  # the second worker took away what the first one had left, and died when it had no part
    assert start(KONTEXT_TEST_STEP_MS="0").wait(60) == 0
    assert rows(database, "SELECT state, count(*) FROM jobs GROUP BY state") == [("done", 3)]
    assert sorted(path.name for path in (tmp_path / "edited").iterdir()) == [f"picture-{n}.png" for n in range(3)]
    for path, digest in rows(database, "SELECT output_path, output_sha256 FROM turns"):
        assert images.sha256(Path(path)) == digest
    assert rows(database, "SELECT job_id, count(*) FROM events WHERE what = 'turn_done' GROUP BY job_id") == [
        (1, 1), (2, 1), (3, 1)
    ]  # fmt: skip
    assert len(log.read_text().splitlines()) == 4 + 2  # what had its name is adopted, the other two are made


def test_an_error_of_saving_is_that_jobs_and_the_one_at_work_goes_on(shop, monkeypatch):
    first, second, _ = shop.fill(3)
    write = outputs.write_part
    failed = threading.Event()

    def fails(data, final, token):
        if final.name == "picture-0.png":
            wait_for(lambda: shop.studio.edits == 2)  # the next one is at work
            failed.set()
            raise outputs.OutputError("the folder is gone; make it again")
        return write(data, final, token)

    monkeypatch.setattr(outputs, "write_part", fails)
    shop.studio.before = lambda number: failed.wait(SECONDS) if number == 2 else None
    drain(shop.worker())
    assert shop.states() == ["dead", "done", "done"]
    job = get_job(shop.conn, first)
    assert (job.error_kind, job.error) == ("output", "the folder is gone; make it again")
    assert [turn.state for turn in get_turns(shop.conn, first)] == ["pending"]
    assert rows(shop.database, "SELECT outcome FROM attempts ORDER BY job_id") == [("dead",), ("done",), ("done",)]
    assert shop.at("dead", first) < shop.at("done", second)
    assert shop.parts() == []


def test_a_turn_whose_result_cannot_be_saved_ends_the_one_that_goes_on_from_it(shop, monkeypatch):
    [job] = shop.fill(1, turns=[{"prompt": "make it night"}, {"prompt": "add fog", "steps": 400}])
    monkeypatch.setenv("KONTEXT_TEST_STEP_MS", "5")

    def fails(data, final, token):
        wait_for(lambda: shop.studio.edits == 2)
        raise OSError("a cable was pulled")

    monkeypatch.setattr(outputs, "write_part", fails)
    drain(shop.worker())
    [(state, kind, error)] = rows(shop.database, "SELECT state, error_kind, error FROM jobs")
    assert (state, kind, error) == ("failed", "error", "OSError: a cable was pulled")
    assert [turn.state for turn in get_turns(shop.conn, job)] == ["pending", "pending"]
    assert len([e for e in shop.events if e.what == "step"]) < 300
    assert "cable" in rows(shop.database, "SELECT traceback FROM attempts")[0][0]


def test_a_full_disk_releases_the_job_that_met_it_and_pauses_the_queue(shop, monkeypatch):
    shop.fill(3)
    publish = outputs.publish

    def full(part, final):
        if final.name == "picture-0.png" and shop.studio.edits < 3:
            wait_for(lambda: shop.studio.edits == 2)
            part.unlink()
            raise OSError(28, "No space left on device")
        publish(part, final)

    monkeypatch.setattr(outputs, "publish", full)
    drain(shop.worker())
    assert shop.states() == ["queued", "done", "queued"]  # what was claimed goes on to its end
    assert "No space" in control.paused(shop.conn)
    control.resume(shop.conn)
    drain(shop.worker())
    assert shop.states() == ["done"] * 3


def test_cancelling_a_job_that_is_being_saved_ends_it_alone(shop, monkeypatch):
    first, _ = shop.fill()
    encode, done = outputs.encode, []

    def cancelled_meanwhile(image, suffix, record):
        if not done:
            done.append(record)
            wait_for(lambda: shop.studio.edits == 2)
            control.cancel(shop.conn, [first])
        return encode(image, suffix, record)

    monkeypatch.setattr(outputs, "encode", cancelled_meanwhile)
    drain(shop.worker())
    assert shop.states() == ["cancelled", "done"]
    assert not Path(get_job(shop.conn, first).output_path).exists()
    assert shop.parts() == []


def test_told_to_stop_it_saves_what_is_pending_and_keeps_the_step(shop, monkeypatch):
    _, second, _ = shop.fill(3, steps=40)
    monkeypatch.setenv("KONTEXT_TEST_STEP_MS", "5")
    publish = outputs.publish

    def slow(part, final):
        monkeypatch.setattr(outputs, "publish", publish)
        wait_for(lambda: shop.studio.edits == 2)
        shop.stop.set()
        time.sleep(0.2)  # the step in which it is told ends long before
        publish(part, final)

    monkeypatch.setattr(outputs, "publish", slow)
    with pytest.raises(Stopped):
        drain(shop.worker())
    assert shop.states() == ["done", "queued", "queued"]
    [(job, step)] = rows(shop.database, "SELECT job_id, step FROM checkpoints")
    assert job == second
    assert 0 < step < 40
    assert shop.parts() == []


def test_a_worker_whose_saved_job_was_taken_from_it_ends_and_gives_the_one_at_work_back(shop, monkeypatch):
    first, _ = shop.fill(steps=300)
    monkeypatch.setenv("KONTEXT_TEST_STEP_MS", "5")
    publish = outputs.publish

    def late(part, final):
        wait_for(lambda: shop.studio.edits == 2)
        shop.conn.execute("UPDATE jobs SET claim_token = 'another' WHERE id = ?", (first,))
        publish(part, final)

    monkeypatch.setattr(outputs, "publish", late)
    with pytest.raises(claims.StaleClaim):
        drain(shop.worker())
    assert shop.states() == ["running", "queued"]  # the first is somebody else's now
    assert [turn.state for turn in get_turns(shop.conn, first)] == ["saving"]
    assert shop.parts() == []


# ---------------------------------------------------------------- what is shown and noted


def test_the_board_shows_the_job_at_work_and_says_that_the_other_is_saved(shop):
    shop.fill(2, turns=["make it night", "add fog"])
    worker = claims.register_worker(shop.conn, "cuda:0", "0")
    one = claims.claim(shop.conn, worker)
    turn_states.start_turn(shop.conn, one, 1, precision="fp8", runtime="torch")
    turn_states.begin_saving(shop.conn, one, 1, [5.0, 5.0])
    turn_states.start_turn(shop.conn, one, 2, precision="fp8", runtime="torch")
    turn_states.beat(shop.conn, one, 2, [7.0])
    row = board.rows(shop.conn, [one.job.id])[one.job.id]
    assert (row.turn, row.step, row.saving, row.turns_done) == (2, 1, False, 0)
    turn_states.begin_saving(shop.conn, one, 2, [7.0, 7.0])
    [running] = board.glance(shop.conn).running
    assert (running.row.id, running.row.saving) == (one.job.id, True)
    time.sleep(0.002)
    two = claims.claim(shop.conn, worker)
    turn_states.start_turn(shop.conn, two, 1, precision="fp8", runtime="torch")
    seen = board.glance(shop.conn)
    assert [job.row.id for job in seen.running] == [two.job.id]
    assert [each.job_id for each in seen.workers] == [two.job.id]
    assert board.rows(shop.conn, [one.job.id])[one.job.id].saving
    claims.release(shop.conn, one)
    assert [turn.state for turn in get_turns(shop.conn, one.job.id)] == ["pending", "pending"]


def test_notes_that_come_late_leave_a_turn_that_is_being_saved_as_it_is(shop):
    shop.fill(1)
    claim = claims.claim(shop.conn, claims.register_worker(shop.conn, "test", "0"))
    turn_states.start_turn(shop.conn, claim, 1, precision="fp8", runtime="torch")
    turn_states.begin_saving(shop.conn, claim, 1, [5.0, 5.0])
    turn_states.beat(shop.conn, claim, 1, [5.0])
    turn_states.save_checkpoint(shop.conn, claim, 1, 1, "{}", b"x")
    assert rows(shop.database, "SELECT state, step FROM turns") == [("saving", 2)]
    assert rows(shop.database, "SELECT count(*) FROM checkpoints") == [(0,)]


def test_of_notes_the_newest_is_written_and_nobody_waits_for_the_disk(shop):
    shop.fill(2)
    worker = claims.register_worker(shop.conn, "test", "0")
    one, two = claims.claim(shop.conn, worker), claims.claim(shop.conn, worker)
    scribe, written, disk = Scribe(connect(shop.database)), [], threading.Event()

    def note(what: str) -> Callable[[sqlite3.Connection], None]:
        def write(conn: sqlite3.Connection) -> None:
            disk.wait(SECONDS)
            written.append(what)

        return write

    scribe.put("beat", one, note("first"))
    wait_for(lambda: scribe._busy)
    for number in range(50):
        scribe.put("beat", one, note(f"beat {number}"))
        scribe.put("checkpoint", one, note(f"checkpoint {number}"))
    disk.set()
    scribe.flush(one)
    assert written == ["first", "beat 49", "checkpoint 49"]

    def fails(conn: sqlite3.Connection) -> None:
        raise claims.Cancelled("job 1 was cancelled")

    scribe.put("beat", one, fails)
    with pytest.raises(claims.Cancelled):
        scribe.flush(one)
    scribe.check(one)  # said once
    scribe.put("beat", one, fails)
    wait_for(lambda: scribe._error)
    scribe.check(two)  # the job it was about has ended
    scribe.check(one)
    disk.clear()
    scribe.put("beat", two, note("last"))
    wait_for(lambda: scribe._busy)
    scribe.put("beat", two, note("never"))
    scribe.drop()
    disk.set()
    scribe.close()
    assert written[-1] == "last"
