"""A worker: claims jobs, edits their turns, has the results published. Killed at any moment, the next one goes on.

What is finished stays finished: a turn's result gets its name before the turn is marked done, and the hash stored
just before lets a restart adopt a file whose worker died in between. While one turn is computed the result of the
turn before is on its way to the disk, so a worker may hold two jobs: one it computes and one it saves.
"""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from core.errors import KontextError
from core.jobs import claims, control
from core.jobs.claims import Cancelled, Claim, StaleClaim
from core.jobs.failpoints import failpoint
from core.jobs.failures import Failure, Remedy, backoff_ms, classify
from core.jobs.saver import Held
from core.jobs.turns import edit_turns
from core.jobs.workbench import Stopped as Stopped
from core.jobs.workbench import Worker as Worker

ROOM_BYTES = 64 << 20
"""Free space at which a queue that a full disk paused goes on."""
POLL_SECONDS = 0.5
"""How often a worker with nothing to do looks again."""


class BrokenDevice(KontextError):
    """The GPU fails everything this process asks of it from now on: only a new process helps."""

    kind = "cuda"


def drain(worker: Worker, *, batch_id: int | None = None, wait: Callable[[], bool] = lambda: False) -> None:
    """Work until nothing is left to claim and `wait` says not to wait for more.

    Raises Stopped, BrokenDevice, and StaleClaim where a job was taken from this worker.
    """
    worker.batch_id = batch_id
    worker.open()
    try:
        _work(worker, wait)
    except Stopped:
        if worker.leaving is not None:
            raise worker.leaving from None
        raise
    finally:
        _wind_up(worker)
        worker.close()
        with suppress(sqlite3.Error):  # who finds the process gone says it
            claims.stop_worker(worker.conn, worker.id)


def _work(worker: Worker, wait: Callable[[], bool]) -> None:
    while True:
        _settle_failed(worker)
        claims.rescue(worker.conn)
        reopened = worker.saver.take_reopened()
        held = reopened or _claim(worker)
        if worker.stop():
            if held is not None:
                claims.release(worker.conn, held.claim)
            raise Stopped("told to stop")
        if held is not None:
            run_job(worker, held, again=held is reopened)
        elif not worker.saver.quiet:
            worker.saver.wait()
        elif wait():
            worker.last_step = None
            time.sleep(POLL_SECONDS)
            control.resume_when_room(worker.conn)
        else:
            return


def _claim(worker: Worker) -> Held | None:
    """The next job, while one at most is still being saved."""
    if worker.stop():
        return None
    worker.saver.make_place()
    claim = claims.claim(worker.conn, worker.id, batch_id=worker.batch_id)
    if claim is None:
        return None
    failpoint("after_claim")
    worker.tell("claimed", claim, name=claim.job.name, attempt=claim.job.attempt)
    return Held(claim)


def run_job(worker: Worker, held: Held, *, again: bool = False) -> None:
    """Compute what is left of a job and hand it over to be saved; or end it: dead, cancelled, waiting for a retry, or
    back in the queue.

    A job that a worker died under is at work alone: whichever of two jobs killed their worker, the next time it is
    known. Raises StaleClaim where a job was taken from this worker: who was given up for dead is not to go on.
    """
    start = time.perf_counter()
    alone = held.claim.job.deaths > 0
    if alone:
        worker.saver.wait()
    try:
        try:
            edit_turns(worker, held, partial(_check, worker, held), again=again)
        finally:
            held.seconds += time.perf_counter() - start
        worker.saver.finish(held)
        if alone:
            worker.saver.wait()
    except BaseException as error:
        _end(worker, held, error)


def _check(worker: Worker, held: Held) -> None:
    """Between two steps: raise what went wrong in another thread with this job, and settle it where it is another."""
    worker.scribe.check(held.claim)
    _settle_failed(worker, held)


def _settle_failed(worker: Worker, at_work: Held | None = None) -> None:
    """End jobs whose results could not be saved. Raises the error of the one at work, for it to be ended where it is
    computed, and Stopped where this worker has to end."""
    for held in worker.saver.take_failed():
        assert held.error is not None
        if held is at_work:
            raise held.error
        if at_work is not None and classify(held.error).remedy is Remedy.SMALLER:
            worker.saver.keep_failed(held)  # until no edit is under way: what gives up memory may be in use
            continue
        try:
            _end(worker, held, held.error)
        except BaseException as error:
            worker.leaving = error
            raise Stopped("a result could not be saved") from error


def _end(worker: Worker, held: Held, error: BaseException) -> None:
    """End an attempt as what ended it asks for, after its earlier turns were saved. Raises where the worker is to end
    too."""
    worker.saver.wait(held)
    worker.saver.forget(held)
    claim, told_to_end = held.claim, isinstance(error, Stopped | KeyboardInterrupt)
    why = held.error if told_to_end and held.error is not None else error
    match why:
        case Cancelled():
            claims.cancel_claimed(worker.conn, claim)
            worker.tell("cancelled", claim)
        case StaleClaim():
            worker.tell("stale", claim, message=str(why))
            raise why
        case Stopped() | KeyboardInterrupt():
            _release(worker, claim)
            raise why
        case sqlite3.Error():
            # The queue itself refuses: no fault of the job's, and nothing that could be written down about it.
            with suppress(sqlite3.Error):
                _release(worker, claim)
            raise why
        case Exception():
            # Whatever it is, the night goes on: the reason stands beside this job and the next one is taken.
            trace = None if isinstance(why, KontextError) else "".join(traceback.format_exception(why))
            with suppress(StaleClaim):
                _fail(worker, claim, classify(why), trace)
        case _:
            raise why
    if told_to_end:
        raise error


def _wind_up(worker: Worker) -> None:
    """Before this worker ends: what is being saved is saved, and what cannot be goes back."""
    worker.saver.wait()
    for held in worker.saver.take_failed():
        with suppress(Exception):
            assert held.error is not None
            _end(worker, held, held.error)
    while reopened := worker.saver.take_reopened():
        with suppress(Exception):
            _release(worker, reopened.claim)


def _fail(worker: Worker, claim: Claim, failure: Failure, trace: str | None) -> None:
    """End an attempt as its failure asks for. Raises BrokenDevice where this process can do no more."""
    kind, message, remedy = failure.kind, failure.message, failure.remedy
    if remedy is Remedy.PAUSE:
        folder = Path(claim.job.output_path).parent
        control.pause(worker.conn, message, control.Room(str(folder), ROOM_BYTES))
        _release(worker, claim, message)
        worker.tell("paused", claim, message=message)
        return
    failures = claims.failures(worker.conn, claim) + 1
    tried = failures >= claim.job.max_attempts
    given_up = worker.studio.make_room() if remedy is Remedy.SMALLER and not tried else ""
    if remedy is Remedy.DEAD or tried or (remedy is Remedy.SMALLER and not given_up):
        claims.fail_job(worker.conn, claim, kind, message, trace)
        worker.tell("dead", claim, kind=kind, message=message)
    else:
        delay = backoff_ms(failures) if remedy is Remedy.LATER else 0
        message += f"; from now on {given_up}" if given_up else ""
        claims.retry_later(worker.conn, claim, kind, message, trace, delay)
        worker.tell("failed", claim, kind=kind, message=message, retry_seconds=delay / 1000)
    if remedy is Remedy.NEW_PROCESS:
        raise BrokenDevice(message)


def _release(worker: Worker, claim: Claim, reason: str = "") -> None:
    with suppress(StaleClaim):
        claims.release(worker.conn, claim, reason)
    worker.tell("released", claim)
