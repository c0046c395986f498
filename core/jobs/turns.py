"""The turns of a claimed job: what is left of them is computed, one after another, and handed over to be saved.

Nothing here waits for a disk while there is something to compute: the next picture is read, and the last result
brought to its size, encoded and written, by the worker's threads (`core.jobs.workbench`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path

from core.edit import outputs, source
from core.edit.source import Result, Source
from core.edit.studio import Session
from core.jobs import claims, turn_states
from core.jobs.checkpoints import Checkpointer
from core.jobs.claims import Claim
from core.jobs.failpoints import failpoint
from core.jobs.prefetch import Ahead
from core.jobs.provenance import describe, lineage
from core.jobs.records import Turn, get_turns
from core.jobs.saver import Held, Place, Save, require_place
from core.jobs.workbench import Stopped, Worker

BEAT_SECONDS = 0.5
"""How often progress inside a turn is stored, at most."""

Check = Callable[[], None]
"""Raises what went wrong in another thread with the job at hand."""


def edit_turns(worker: Worker, held: Held, check: Check, *, again: bool = False) -> None:
    """Compute what is left of a job. again: turns were added since this worker began it."""
    claim = held.claim
    job = claim.job
    turns = _settle(worker, claim)
    for turn in turns:
        if turn.state == "done" and not again:
            worker.tell("turn_done", claim, turn.turn, output=turn.output_path, seconds=turn.seconds, reused=True)
    todo = [turn for turn in turns if turn.state != "done"]
    if not todo:
        return
    picture = worker.prefetcher.take(Path(job.input_path), job.model)
    for text in picture.notes:
        claims.note(worker.conn, claim, text)
        worker.tell("note", claim, text=text)
    require_place(claim, Path(job.output_path))
    outputs.check_folder(Path(job.output_path).parent)
    worker.tell("loading", claim, model=job.model)
    # By all turns, so that one that is made anew runs in what it ran in before.
    refresh = max(turn.context_refresh for turn in turns)
    session = worker.studio.open(
        job.model, job.precision, job.runtime, keep_context=refresh > 1, prompts=[turn.prompt for turn in todo],
        upcoming=lambda: claims.upcoming_prompts(worker.conn, job.model, batch_id=worker.batch_id),
    )  # fmt: skip
    picture = picture.fit(session.sizes)
    made: dict[int, Place] = {}
    last: Save | None = None
    for turn, following in zip_longest(todo, todo[1:]):
        if worker.stop():  # told in the last step of the turn before, whose result was worth the moment
            raise Stopped("told to stop")
        start = time.perf_counter()
        if not turn.from_turn:
            begin = picture
        elif last is not None and last.turn == turn.from_turn and last.place.path.suffix.lower() in source.LOSSLESS:
            begin = last.result.source(last.digest.result).fit(session.sizes)
        else:
            begin = _from_file(worker, held, made, turns, turn.from_turn, check).fit(session.sizes)
        last = None  # its picture is the saver's alone from here
        last = _edit_turn(worker, held, check, session, turn, turns, begin, picture, start)
        if following is not None and following.from_turn == turn.turn:
            last.result.whole(hurry=True)  # by all processors, before the saver begins with it by itself
        worker.saver.make_room()
        check()
        worker.saver.save(last)
        made[turn.turn] = last.place


def _from_file(
    worker: Worker, held: Held, made: dict[int, Place], turns: list[Turn], number: int, check: Check
) -> Source:
    """An earlier turn's result, when it is one of this attempt after it was saved."""
    path = next(Path(turn.output_path) for turn in turns if turn.turn == number)
    if number in made:
        worker.saver.wait(held)
        check()
        path = made[number].path
    return worker.prefetcher.take(path, held.claim.job.model)


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
            turn_states.finish_turn(worker.conn, claim, turn.turn)
        elif not whole:
            turn_states.redo_turn(worker.conn, claim, turn.turn)
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
    held: Held,
    check: Check,
    session: Session,
    turn: Turn,
    turns: list[Turn],
    begin: Source,
    picture: Source,
    start: float,
) -> Save:
    """Compute one turn; returns what is to be saved. begin: what it starts from; picture: the job's."""
    claim = held.claim
    job = claim.job
    checkpointer = Checkpointer(
        worker.conn, worker.scribe, claim, session, turn, begin.sha256, worker.checkpoint_seconds
    )
    resume, times = checkpointer.resume()
    step = resume.step if resume else 0
    turn_states.start_turn(
        worker.conn, claim, turn.turn, precision=session.precision, runtime=session.runtime, step=step
    )
    worker.tell("turn", claim, turn.turn, prompt=turn.prompt, steps=turn.steps, seed=turn.seed, turns=len(turns))
    worker.prefetcher.look(Ahead(worker.batch_id, job.model, session.sizes))
    if resume is not None:
        worker.tell("resumed", claim, turn.turn, step=step, steps=turn.steps)
    last_beat, pause, begun = start, None, False  # type: float, float | None, bool

    def on_step(step: int, ms: float, latents: object, outlook: Callable[[], object]) -> None:
        nonlocal last_beat, pause, begun
        if not begun:
            begun, pause = True, worker.since_last_step(ms)
        times.append(ms)
        worker.tell("step", claim, turn.turn, step=step, steps=turn.steps, ms=ms, turns=len(turns))
        if worker.stop() and step < turn.steps:
            checkpointer.save(step, latents, times, now=True)
            raise Stopped("told to stop")
        check()
        if time.perf_counter() - last_beat >= BEAT_SECONDS:
            last_beat = time.perf_counter()
            worker.scribe.put("beat", claim, partial(_beat, claim, turn.turn, list(times)))
        checkpointer.after_step(step, latents, times)
        if step < turn.steps:
            _preview(worker, session, claim, turn.turn, step, begin.size, outlook)
        failpoint("mid_step")
        worker.last_step = time.perf_counter()

    edit = session.edit(
        begin.rgb,
        turn.prompt,
        seed=turn.seed,
        steps=turn.steps,
        guidance=turn.guidance,
        context_refresh=turn.context_refresh,
        keep_model_size=True,  # the way back is made while the next turn is at work
        on_step=on_step,
        resume=resume,
    )
    worker.scribe.drop()
    seconds = time.perf_counter() - start
    result = Result(edit.image, None if job.output_size == "model" else begin.size, picture.alpha)
    metadata = describe(
        job, turns, turn, input_sha256=picture.sha256(), precision=session.precision, runtime=session.runtime
    )
    return Save(
        held, turn.turn, Place(Path(turn.output_path)), result, metadata, times, seconds, session.peak_bytes(),
        {"turns": len(turns), "model_seconds": edit.model_seconds, "pause_ms": pause},
    )  # fmt: skip


def _beat(claim: Claim, turn: int, times: list[float], conn: sqlite3.Connection) -> None:
    turn_states.beat(conn, claim, turn, times)


def _preview(
    worker: Worker,
    session: Session,
    claim: Claim,
    turn: int,
    step: int,
    size: tuple[int, int],
    outlook: Callable[[], object],
) -> None:
    """Have a sketch of where the turn is going put out, where somebody looks."""
    if not worker.easel.asked():
        return
    with suppress(Exception):  # no picture is worth a turn
        # Here, not in the scribe's thread: what uses the GPU is in nobody's way, and it is a millisecond or two.
        image = session.sketch(outlook(), size)
        worker.scribe.put("preview", claim, lambda conn: worker.easel.paint(claim.job.id, turn, step, size, image))
