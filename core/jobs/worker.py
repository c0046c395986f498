"""A worker: claims jobs, edits their turns, publishes the results. Killed at any moment, the next one goes on.

What is finished stays finished: a turn's result gets its name before the turn is marked done, and the hash stored
just before lets a restart adopt a file whose worker died in between.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core import __version__
from core.edit import images, outputs
from core.edit.studio import Session, Studio
from core.errors import KontextError
from core.jobs import checkpoints, claims, control, previews
from core.jobs.checkpoints import Checkpointer
from core.jobs.claims import Cancelled, Claim, StaleClaim
from core.jobs.events import Event, Listener, ignore
from core.jobs.failpoints import failpoint
from core.jobs.failures import Failure, Remedy, backoff_ms, classify
from core.jobs.previews import Easel
from core.jobs.provenance import describe, lineage
from core.jobs.records import Turn, get_turns

BEAT_SECONDS = 0.5
"""How often progress inside a turn is stored, at most."""
ROOM_BYTES = 64 << 20
"""Free space at which a queue that a full disk paused goes on."""
POLL_SECONDS = 0.5
"""How often a worker with nothing to do looks again."""


class Stopped(KontextError):
    """The worker was told to stop; the job goes back into the queue."""

    kind = "stopped"


class BrokenDevice(KontextError):
    """The GPU fails everything this process asks of it from now on: only a new process helps."""

    kind = "cuda"


@dataclass
class Worker:
    """A worker at work on one queue. `stop` is asked between steps."""

    conn: sqlite3.Connection
    studio: Studio
    listener: Listener = ignore
    stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = checkpoints.SECONDS
    id: int = field(init=False)
    easel: Easel = field(init=False)
    batch_id: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.id = claims.register_worker(self.conn, self.studio.device, __version__)
        self.easel = previews.easel_for(self.conn, self.id)

    def tell(self, what: str, claim: Claim | None = None, turn: int | None = None, **data: object) -> None:
        self.listener(Event(what, claim.job.id if claim else None, turn, dict(data)))


def drain(worker: Worker, *, batch_id: int | None = None, wait: Callable[[], bool] = lambda: False) -> None:
    """Work until nothing is left to claim and `wait` says not to wait for more.

    Raises Stopped, BrokenDevice, and StaleClaim where a job was taken from this worker.
    """
    worker.batch_id = batch_id
    try:
        while True:
            claims.rescue(worker.conn)
            claim = None if worker.stop() else claims.claim(worker.conn, worker.id, batch_id=batch_id)
            if worker.stop():
                if claim is not None:
                    claims.release(worker.conn, claim)
                raise Stopped("told to stop")
            if claim is not None:
                failpoint("after_claim")
                run_job(worker, claim)
            elif wait():
                time.sleep(POLL_SECONDS)
                control.resume_when_room(worker.conn)
            else:
                return
    finally:
        worker.easel.clear()
        with suppress(sqlite3.Error):  # who finds the process gone says it
            claims.stop_worker(worker.conn, worker.id)


def run_job(worker: Worker, claim: Claim) -> None:
    """Bring one claimed job to an end: done, dead, cancelled, waiting for a retry, or back in the queue.

    Raises StaleClaim where the job was taken from this worker: who was given up for dead is not to go on.
    """
    start = time.perf_counter()
    worker.tell("claimed", claim, name=claim.job.name, attempt=claim.job.attempt)
    try:
        _edit_turns(worker, claim)
        failpoint("before_commit_done")
        while not claims.finish_job(worker.conn, claim):
            _edit_turns(worker, claim, again=True)
        failpoint("after_commit")
        worker.tell("done", claim, seconds=time.perf_counter() - start)
    except Cancelled:
        claims.cancel_claimed(worker.conn, claim)
        worker.tell("cancelled", claim)
    except StaleClaim as error:
        worker.tell("stale", claim, message=str(error))
        raise
    except (Stopped, KeyboardInterrupt):
        _release(worker, claim)
        raise
    except sqlite3.Error:
        # The queue itself refuses: no fault of the job's, and nothing that could be written down about it.
        with suppress(sqlite3.Error):
            _release(worker, claim)
        raise
    except Exception as error:
        # Whatever it is, the night goes on: the reason stands beside this job and the next one is taken.
        with suppress(StaleClaim):
            _fail(worker, claim, classify(error), None if isinstance(error, KontextError) else traceback.format_exc())


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


def _edit_turns(worker: Worker, claim: Claim, *, again: bool = False) -> None:
    """Compute what is left of a job. again: turns were added since this worker began it."""
    job = claim.job
    turns = _settle(worker, claim)
    for turn in turns:
        if turn.state == "done" and not again:
            worker.tell("turn_done", claim, turn.turn, output=turn.output_path, seconds=turn.seconds, reused=True)
    todo = [turn for turn in turns if turn.state != "done"]
    if not todo:
        return
    picture = images.load(Path(job.input_path))
    for text in picture.notes:
        claims.note(worker.conn, claim, text)
        worker.tell("note", claim, text=text)
    _require_place(claim, Path(job.output_path))
    outputs.check_folder(Path(job.output_path).parent)
    worker.tell("loading", claim, model=job.model)
    # By all turns, so that one that is made anew runs in what it ran in before.
    refresh = max(turn.context_refresh for turn in turns)
    session = worker.studio.open(
        job.model, job.precision, job.runtime, keep_context=refresh > 1, prompts=[turn.prompt for turn in todo],
        upcoming=lambda: claims.upcoming_prompts(worker.conn, job.model, batch_id=worker.batch_id),
    )  # fmt: skip
    paths = {turn.turn: Path(turn.output_path) for turn in turns}
    for turn in todo:
        if worker.stop():  # told in the last step of the turn before, whose result was worth the moment
            raise Stopped("told to stop")
        # An earlier result is read from its file, not from memory: a restart must see the very same picture.
        source = images.load(paths[turn.from_turn]) if turn.from_turn else picture
        paths[turn.turn] = _edit_turn(worker, claim, session, turn, turns, source, picture)


def _settle(worker: Worker, claim: Claim) -> list[Turn]:
    """Clear up after earlier attempts.

    A result whose worker died between naming the file and saying so is adopted, one whose file has gone is forgotten,
    and files that a dead worker left half-way are removed.
    """
    tokens = claims.earlier_tokens(worker.conn, claim)
    turns = get_turns(worker.conn, claim.job.id)
    for turn in _looked_after(turns):
        for token in tokens:
            outputs.part_path(Path(turn.output_path), token).unlink(missing_ok=True)
        if turn.state not in ("saving", "done"):
            continue
        whole = outputs.matches(Path(turn.output_path), turn.output_sha256, turn.output_bytes)
        if turn.state == "saving" and whole:
            claims.finish_turn(worker.conn, claim, turn.turn)
        elif not whole:
            claims.redo_turn(worker.conn, claim, turn.turn)
    return get_turns(worker.conn, claim.job.id)


def _looked_after(turns: list[Turn]) -> list[Turn]:
    """The turns whose files must stand: all of the script's, or, for a redo or a branch asked for in review, those it
    starts from. What a person has done since with the job's other pictures, such as throw them away, is theirs."""
    wanted = [turn for turn in turns if turn.state != "done"]
    needed = {each.turn for turn in wanted for each in lineage(turns, turn)}
    if all(turn.added_at is None for turn in wanted):
        needed |= {turn.turn for turn in turns if turn.added_at is None}
    return [turn for turn in turns if turn.turn in needed]


def _edit_turn(
    worker: Worker,
    claim: Claim,
    session: Session,
    turn: Turn,
    turns: list[Turn],
    source: images.Picture,
    picture: images.Picture,
) -> Path:
    """Compute one turn and publish its result; returns the file's path."""
    start = time.perf_counter()
    checkpointer = Checkpointer(worker.conn, claim, session, turn, source.sha256, worker.checkpoint_seconds)
    resume, times = checkpointer.resume()
    step = resume.step if resume else 0
    claims.start_turn(worker.conn, claim, turn.turn, precision=session.precision, runtime=session.runtime, step=step)
    worker.tell("turn", claim, turn.turn, prompt=turn.prompt, steps=turn.steps, seed=turn.seed, turns=len(turns))
    if resume is not None:
        worker.tell("resumed", claim, turn.turn, step=step, steps=turn.steps)
    last_beat = start

    def on_step(step: int, ms: float, latents: object, outlook: Callable[[], object]) -> None:
        nonlocal last_beat
        times.append(ms)
        worker.tell("step", claim, turn.turn, step=step, steps=turn.steps, ms=ms, turns=len(turns))
        if worker.stop() and step < turn.steps:
            checkpointer.save(step, latents, times)
            raise Stopped("told to stop")
        if time.perf_counter() - last_beat >= BEAT_SECONDS:
            last_beat = time.perf_counter()
            claims.beat(worker.conn, claim, turn.turn, times)
        checkpointer.after_step(step, latents, times)
        if step < turn.steps:
            size = source.rgb.size
            worker.easel.after_step(claim.job.id, turn.turn, step, size, lambda: session.sketch(outlook(), size))
        failpoint("mid_step")

    model_size = claim.job.output_size == "model"
    edit = session.edit(
        source.rgb,
        turn.prompt,
        seed=turn.seed,
        steps=turn.steps,
        guidance=turn.guidance,
        context_refresh=turn.context_refresh,
        keep_model_size=model_size,
        on_step=on_step,
        resume=resume,
    )
    result = images.unflatten(edit.image, picture.alpha)
    metadata = describe(
        claim.job, turns, turn, input_sha256=picture.sha256, precision=session.precision, runtime=session.runtime
    )
    data = outputs.encode(result, Path(turn.output_path).suffix, metadata)

    def stage(path: Path) -> None:
        claims.stage_turn(
            worker.conn,
            claim,
            turn.turn,
            output_path=str(path),
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            step_ms=times,
            seconds=time.perf_counter() - start,
            peak_bytes=session.peak_bytes(),
        )

    _require_place(claim, Path(turn.output_path))
    path = _publish(data, Path(turn.output_path), claim, stage)
    claims.finish_turn(worker.conn, claim, turn.turn)
    worker.tell(
        "turn_done",
        claim,
        turn.turn,
        turns=len(turns),
        output=str(path),
        seconds=time.perf_counter() - start,
        model_seconds=edit.model_seconds,
        step_ms=times,
        peak_bytes=session.peak_bytes(),
        reused=False,
    )
    return path


def _require_place(claim: Claim, path: Path) -> None:
    """A link that came into the output folder since the job was added leads no result out of it."""
    outputs.require_inside(Path(claim.job.output_folder), path)


def _publish(data: bytes, path: Path, claim: Claim, stage: Callable[[Path], None]) -> Path:
    """Give the result its name, whole or not at all. A name that was taken meanwhile is left to its owner."""
    while True:
        part = outputs.write_part(data, path, claim.token)
        try:
            stage(path)
            failpoint("before_rename")
            outputs.publish(part, path)
            failpoint("after_rename")
            return path
        except FileExistsError:
            path = outputs.free_name(path, os.path.lexists)
        finally:
            part.unlink(missing_ok=True)
