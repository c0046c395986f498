"""`add`, `status`, `list`, `show`: the queue, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UsageError
from kontext_tui.cli import options as opt
from kontext_tui.figures import size
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from core.jobs.records import Turn
    from kontext_tui.cli.enqueue import Overrides

State = Annotated[
    list[str] | None,
    typer.Option("--state", "-s", metavar="STATE", help="Only jobs in it; may be repeated.", show_default=False),
]


def add(
    script: opt.ScriptFile,
    input: opt.Input = None,
    output: opt.Output = None,
    model: opt.Model = None,
    precision: opt.Precision = None,
    runtime: opt.RuntimeName = None,
    steps: opt.Steps = None,
    seed: opt.Seed = None,
    context_refresh: opt.ContextRefresh = None,
    again: opt.Again = False,
    at: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Start no earlier than this time of day.", show_default=False)
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Start no earlier than in 90m, 2h, 1h30m.", show_default=False)
    ] = None,
    priority: Annotated[int, typer.Option(metavar="N", help="Higher ones are edited first.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Queue nothing: say how many pictures, and what they will take.")
    ] = False,
    db: opt.Db = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Queue a script's pictures; `work` edits them. Asking twice for the same edit queues it once."""
    from kontext_tui.cli.enqueue import Overrides, enqueue, sentence
    from kontext_tui.cli.report import clock

    overrides = Overrides(input, output, model, precision, runtime, steps, seed, context_refresh)
    if dry_run:
        _estimate(script, overrides, db, json=json)
        return
    start = opt.start_time(at, after)
    with opt.open_queue(db) as conn:
        added = enqueue(conn, script, overrides, again=again, quiet=quiet, run_after=start, priority=priority)
    if json:
        from kontext_tui.cli.report import print_json

        print_json({"batch": added.batch_id, "jobs": [{"job": j, "added": how} for j, how in added.jobs.items()]})
    elif not quiet:
        print(sentence(added, clock(start) if start else ""))


def _estimate(script: Path, overrides: Overrides, db: Path | None, *, json: bool) -> None:
    """What adding would queue; the queue itself need not exist."""
    from contextlib import ExitStack

    from core import paths
    from core import script as scripts
    from core.jobs.estimate import look, measured
    from kontext_tui.estimates import told

    prospect = look(scripts.load(script, overrides.given()))
    with ExitStack() as stack:
        there = paths.database(db).exists()
        found = measured(stack.enter_context(opt.open_queue(db, create=False)), prospect) if there else None
    if not json:
        for line in told(prospect, found):
            print(line)
        return
    from kontext_tui.cli.report import print_json

    choice = prospect.choice
    print_json(
        {
            "pictures": prospect.pictures,
            "turns": prospect.turns,
            "steps": prospect.steps,
            "runtime": choice.runtime if choice else None,
            "precision": choice.precision if choice else None,
            "seconds": prospect.steps * found.step_seconds if found else None,
            "peak_bytes": found.peak_bytes if found else None,
            "weight_bytes": prospect.weight_bytes,
            "measured_turns": found.turns if found else 0,
        }
    )


def _refresh(turn: Turn) -> str:
    return f", context refresh {turn.context_refresh}" if turn.context_refresh > 1 else ""


def status(db: opt.Db = None, json: opt.Json = False) -> None:
    """How many jobs there are in each state."""
    from core.jobs.control import paused
    from core.jobs.records import counts
    from kontext_tui.cli.report import print_json, print_table

    with opt.open_queue(db, create=False) as conn:
        numbers = counts(conn)
        reason = paused(conn)
    if json:
        print_json({"jobs": numbers, "paused": reason})
        return
    if reason:
        print(f"paused: {safe_text(reason)}")
    rows = [(state, str(number)) for state, number in numbers.items() if number]
    print_table((), rows or [("no jobs", "")], right=(1,))


def list_(
    state: State = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most this many.")] = 50,
    db: opt.Db = None,
    json: opt.Json = False,
) -> None:
    """The newest jobs: their states, how many turns are done, and the reason beside those that failed."""
    from core.jobs.records import STATES, get_turns, list_jobs
    from kontext_tui.cli.report import clock, job_object, print_json, print_table

    for word in state or ():
        if word not in STATES:
            raise UsageError(f"there is no state {word!r}; states are {', '.join(STATES)}")
    with opt.open_queue(db, create=False) as conn:
        jobs = list_jobs(conn, states=state or (), limit=limit)
        if json:
            for job in jobs:
                print_json(job_object(job, get_turns(conn, job.id)))
            return
        turns = {job.id: get_turns(conn, job.id) for job in jobs}
    rows = [
        (
            str(job.id),
            job.state,
            job.name,
            f"{sum(t.state == 'done' for t in turns[job.id])}/{len(turns[job.id])}",
            job.model,
            clock(job.finished_at or job.started_at or job.created_at),
            job.error or "",
        )
        for job in jobs
    ]
    print_table(("job", "state", "picture", "turns", "model", "at", "reason"), rows, right=(0, 3))


def show(
    job: Annotated[int, typer.Argument(help="A job's number.")], db: opt.Db = None, json: opt.Json = False
) -> None:
    """One job: its turns and its story."""
    from core.jobs.records import get_job, get_turns, story
    from kontext_tui.cli.report import clock, job_object, peak_bytes, print_json, print_table

    with opt.open_queue(db, create=False) as conn:
        found, turns, events = get_job(conn, job), get_turns(conn, job), story(conn, job)
        trace = conn.execute(
            "SELECT traceback FROM attempts WHERE job_id = ? AND traceback IS NOT NULL ORDER BY id DESC",
            (job,),
        ).fetchone()
    if json:
        print_json(job_object(found, turns) | {"story": events, "traceback": trace["traceback"] if trace else None})
        return
    print_table(
        (),
        [
            ("job", str(found.id)),
            ("state", found.state + (f" ({found.error_kind}: {found.error})" if found.error else "")),
            ("input", found.input_path),
            ("output", found.output_path),
            ("model", f"{found.model}, precision {found.precision}, runtime {found.runtime}"),
            *([("memory", f"{size(peak)} at most")] if (peak := peak_bytes(turns)) else []),
            *[
                (
                    f"turn {t.turn}",
                    f"{t.review or t.state}, {_origin(t)}, seed {t.seed}, {len(t.step_ms)}/{t.steps} steps, "
                    f"guidance {t.guidance:g}{_refresh(t)}: {t.prompt}",
                )
                for t in turns
            ],
        ],
    )
    print()
    print_table(
        (),
        [
            (
                clock(event["at"]),
                event["what"] + (f" {event['turn']}" if event["turn"] else ""),
                f"attempt {event['attempt']}" if event["attempt"] else "",
                _told(event),
            )
            for event in events
        ],
    )
    if trace:
        print()
        for line in trace["traceback"].splitlines():
            print(safe_text(line))


def _told(event: dict[str, Any]) -> str:
    """What an event's data say, and with a claim whose it was."""
    facts = [f"{key}: {value}" for key, value in event["data"].items()]
    if event["what"] == "claimed" and (worker := event["worker"]):
        facts.append(f"on {worker['device']}, process {worker['pid']} of {worker['host']}")
    return ", ".join(facts)


def _origin(turn: Turn) -> str:
    start = f"from turn {turn.from_turn}" if turn.from_turn else "from the input"
    return f"{start}, turn {turn.redo_of} again" if turn.redo_of else start
