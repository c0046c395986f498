"""`accept`, `reject`, `redo`, `branch`, `review list|clear|withdraw|export`: the morning's work without the screen.

A result is named by its job and turn, `3.2`; a job's number alone means all of its finished turns.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ExitCode, UsageError
from kontext_tui.cli import options as opt
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from core.jobs.results import Decision, Pick

app = typer.Typer(
    help="Results and what was decided about them: list, clear, withdraw, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Picks = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RESULT]...", help="JOB.TURN such as 3.2, or JOB for all its turns.", show_default=False),
]
OnePick = Annotated[str, typer.Argument(metavar="RESULT", help="JOB.TURN, such as 3.2.", show_default=False)]
Rest = Annotated[bool, typer.Option("--rest", help="Every result that nothing has been decided about.")]
Name = Annotated[
    str, typer.Option("--name", metavar="TEXT", help="Only pictures whose name holds this.", show_default=False)
]
TurnSeed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="This seed; else a new one.", show_default=False)
]
TurnSteps = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Other denoising steps.", show_default=False)
]
TurnGuidance = Annotated[
    float | None, typer.Option("--guidance", metavar="X", help="Another guidance.", show_default=False)
]
TurnRefresh = Annotated[
    int | None,
    typer.Option("--context-refresh", metavar="K", help="Another context refresh; 1 is exact.", show_default=False),
]


def accept(
    results: Picks = None, rest: Rest = False, name: Name = "", db: opt.Db = None, json: opt.Json = False
) -> None:
    """Accept results: `review export` copies them. A decision can be changed at any time."""
    _decide(results, rest, name, "accepted", db, json)


def reject(
    results: Picks = None, rest: Rest = False, name: Name = "", db: opt.Db = None, json: opt.Json = False
) -> None:
    """Reject results. Their files stay; `review export` leaves them out."""
    _decide(results, rest, name, "rejected", db, json)


def redo(
    result: OnePick,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Another prompt; keeps the seed.", show_default=False)
    ] = None,
    seed: TurnSeed = None,
    steps: TurnSteps = None,
    guidance: TurnGuidance = None,
    context_refresh: TurnRefresh = None,
    with_later: Annotated[
        bool, typer.Option("--with-later", help="Make the turns that lead on from it again too.")
    ] = False,
    db: opt.Db = None,
    json: opt.Json = False,
) -> None:
    """Have a result made again, beside the old one; a worker comes to it as to any job."""
    from core.jobs import review

    change = review.Change(prompt, seed, steps, guidance, context_refresh)
    with opt.open_queue(db, create=False) as conn:
        made = review.redo(conn, _pick(result), change, with_later=with_later)
        _tell_queued(conn, made, json)


def branch(
    result: Annotated[
        str,
        typer.Argument(
            metavar="RESULT", help="JOB.TURN to go on from; JOB.0 is the job's input.", show_default=False
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="What to change.", show_default=False)],
    seed: TurnSeed = None,
    steps: TurnSteps = None,
    guidance: TurnGuidance = None,
    context_refresh: TurnRefresh = None,
    db: opt.Db = None,
    json: opt.Json = False,
) -> None:
    """Go on from a result with another prompt: a new turn beside those there are."""
    from core.jobs import review

    with opt.open_queue(db, create=False) as conn:
        made = review.branch(conn, _pick(result), review.Change(prompt, seed, steps, guidance, context_refresh))
        _tell_queued(conn, [made], json)


def list_(
    which: Annotated[
        str | None,
        typer.Option("--only", metavar="WORD", help="undecided, accepted or rejected.", show_default=False),
    ] = None,
    name: Name = "",
    changed: Annotated[
        bool, typer.Option("--changed", help="Say how much each turn changed its picture (reads the files).")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 50,
    db: opt.Db = None,
    json: opt.Json = False,
) -> None:
    """Finished turns and what was decided about them."""
    from core.jobs import results
    from core.jobs.records import get_job, get_turns
    from kontext_tui.cli.report import clock, print_json, print_table

    if which not in (None, "undecided", "accepted", "rejected"):
        raise UsageError(f"there is no decision {which!r}: undecided, accepted or rejected")
    with opt.open_queue(db, create=False) as conn:
        found = []
        scope = results.Scope(which, name)  # type: ignore[arg-type]
        for pick in results.results(conn, scope, limit=limit):
            job, turns = get_job(conn, pick.job_id), get_turns(conn, pick.job_id)
            found.append((job, turns, next(turn for turn in turns if turn.turn == pick.turn)))
        tally = results.tally(conn, results.Scope(name=name))
    if json:
        for job, turns, turn in found:
            print_json(_result_object(job, turns, turn, changed))
        return
    rows = [
        (
            f"{job.id}.{turn.turn}",
            turn.review or "",
            job.name,
            str(turn.seed),
            *([_share(job, turns, turn)] if changed else []),
            clock(turn.reviewed_at),
            turn.prompt,
        )
        for job, turns, turn in found
    ]
    headings = ("result", "decision", "picture", "seed", *(["changed"] if changed else []), "at", "prompt")
    print_table(headings, rows, right=(3, 4) if changed else (3,))
    left = f", the first {limit} of them here" if len(found) == limit < tally.all else ""
    print(
        f"{tally.undecided} undecided, {tally.accepted} accepted, {tally.rejected} rejected{left}",
        file=sys.stderr,
    )


def clear(results: Picks = None, db: opt.Db = None, json: opt.Json = False) -> None:
    """Take decisions back."""
    _decide(results, False, "", None, db, json)


def withdraw(result: OnePick, db: opt.Db = None) -> None:
    """Take back a redo or a branch that no worker has begun."""
    from core.jobs import review

    with opt.open_queue(db, create=False) as conn:
        review.withdraw(conn, [_pick(result)])
    print(f"{result}: withdrawn")


def export(
    folder: Annotated[Path, typer.Argument(help="Where the copies go; made if needed.", show_default=False)],
    every_turn: Annotated[
        bool, typer.Option("--every-turn", help="Also accepted turns that lead to another accepted one.")
    ] = False,
    db: opt.Db = None,
    json: opt.Json = False,
) -> None:
    """Copy accepted results to a folder, with the record of their review in review.jsonl. Replaces no file."""
    from core.jobs import exports
    from kontext_tui.cli.report import print_json

    with opt.open_queue(db, create=False) as conn:
        done = exports.export(conn, folder.absolute(), every_turn=every_turn)
    lost = [each for each in done if each.outcome in ("missing", "changed")]
    for each in done:
        if json:
            print_json({**_pick_object(each.pick), "outcome": each.outcome, "source": each.source, "path": each.path})
        elif each.path:
            print(safe_text(each.path))
    for each in lost:
        what = "is gone" if each.outcome == "missing" else "is not the picture that was accepted any more"
        print(f"{each.pick}: {safe_text(each.source)} {what}; look at it again", file=sys.stderr)
    if not json:
        copied, there = (sum(each.outcome == word for each in done) for word in ("copied", "there"))
        print(f"{copied} copied" + (f", {there} there already" if there else ""), file=sys.stderr)
    if lost:
        raise typer.Exit(ExitCode.JOBS_FAILED)


for _name, _function in {"list": list_, "clear": clear, "withdraw": withdraw, "export": export}.items():
    app.command(_name)(_function)


def _decide(
    results: list[str] | None, rest: bool, name: str, decision: Decision | None, db: Path | None, json: bool
) -> None:
    from core.jobs import review
    from kontext_tui.cli.report import print_json

    if not results and not rest:
        raise UsageError("name results such as 3.2, or whole jobs (see --help)")
    if name and not rest:
        raise UsageError("--name goes with --rest")
    with opt.open_queue(db, create=False) as conn:
        before = review.decide(conn, _picks(conn, results or []), decision)
        if rest and decision:
            before |= review.decide_rest(conn, decision, name=name)
    for pick, old in before.items():
        if json:
            print_json({**_pick_object(pick), "review": decision, "before": old})
        else:
            was = f" (was {old})" if old and old != decision else ""
            print(f"{pick}: {decision or 'undecided'}{was}")
    if not before:
        print("no such results", file=sys.stderr)


def _tell_queued(conn: sqlite3.Connection, made: Sequence[Pick], json: bool) -> None:
    from core.jobs.records import get_job, get_turns
    from kontext_tui.cli.report import print_json

    job = get_job(conn, made[0].job_id)
    turns = {turn.turn: turn for turn in get_turns(conn, job.id)}
    for pick in made:
        turn = turns[pick.turn]
        if json:
            keys = ("redo_of", "from_turn", "prompt", "seed", "steps", "guidance", "context_refresh")
            values = {key.removesuffix("_turn"): getattr(turn, key) for key in keys}
            print_json({**_pick_object(pick), **values, "output": turn.output_path, "state": job.state})
        else:
            print(f"{pick}: {job.state}, seed {turn.seed}, goes to {safe_text(turn.output_path)}")


def _picks(conn: sqlite3.Connection, words: Sequence[str]) -> list[Pick]:
    from core.jobs.records import get_turns, state_of
    from core.jobs.results import Pick

    picks: list[Pick] = []
    for word in words:
        if "." in word:
            picks.append(_pick(word))
            continue
        job = _number(word, word)
        state_of(conn, job)
        done = [Pick(job, turn.turn) for turn in get_turns(conn, job) if turn.state == "done"]
        if not done:
            raise UsageError(f"job {job} has no finished turn yet")
        picks.extend(done)
    return list(dict.fromkeys(picks))


def _pick(word: str) -> Pick:
    from core.jobs.results import Pick

    job, dot, turn = word.partition(".")
    if not dot:
        raise UsageError(f"{word!r} names no turn: write JOB.TURN, such as {word}.1")
    return Pick(_number(job, word), _number(turn, word))


def _number(digits: str, word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", digits):
        raise UsageError(f"{word!r} names no result: write JOB.TURN, such as 3.2, or a job's number")
    return int(digits)


def _pick_object(pick: Pick) -> dict[str, Any]:
    return {"job": pick.job_id, "turn": pick.turn}


def _result_object(job: Any, turns: list[Any], turn: Any, changed: bool) -> dict[str, Any]:
    result = {
        "job": job.id,
        "turn": turn.turn,
        "review": turn.review,
        "reviewed_at": turn.reviewed_at,
        "input": job.input_path,
        "from": turn.from_turn,
        "redo_of": turn.redo_of,
        "prompt": turn.prompt,
        "seed": turn.seed,
        "output": turn.output_path,
        "sha256": turn.output_sha256,
    }
    if changed:
        found = _difference(job, turns, turn)
        result["changed"] = None if found is None else {"share": round(found.share, 4), "mean": round(found.mean, 4)}
    return result


def _share(job: Any, turns: list[Any], turn: Any) -> str:
    found = _difference(job, turns, turn)
    return "?" if found is None else f"{found.share:.0%}"


def _difference(job: Any, turns: list[Any], turn: Any) -> Any:
    """How much a turn changed the picture it started from; None where one of them cannot be read."""
    from core.edit import difference, images
    from core.errors import InputError

    source = next((t.output_path for t in turns if t.turn == turn.from_turn), job.input_path)
    try:
        return difference.measure(images.load(Path(source)).rgb, images.load(Path(turn.output_path)).rgb)
    except InputError:
        return None
