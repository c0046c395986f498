"""The commands: one module per group. stdout is data, stderr is narration.

Nothing heavy is imported here or at the top of those modules: `--help` and the light commands start at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from kontext_tui.cli import (
    about,
    bench,
    compare,
    control,
    engine,
    export,
    jobs,
    models,
    quantize,
    review,
    run,
    tui,
    web,
)

app = typer.Typer(
    help="Edit photographs by sentences with FLUX.1 Kontext: queue them, run them overnight, look in the morning.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from core import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())  # on a terminal it would be the app: see kontext_tui.__main__


for name, function in {
    "tui": tui.tui,
    "web": web.web,
    "run": run.run,
    "add": jobs.add,
    "work": run.work,
    "status": jobs.status,
    "list": jobs.list_,
    "show": jobs.show,
    "pause": control.pause,
    "resume": control.resume,
    "cancel": control.cancel,
    "retry": control.retry,
    "hold": control.hold,
    "release": control.release,
    "priority": control.priority,
    "accept": review.accept,
    "reject": review.reject,
    "redo": review.redo,
    "branch": review.branch,
    "prune": control.prune,
    "backup": control.backup,
    "quantize": quantize.quantize,
    "export": export.export,
    "compare": compare.compare,
    "bench": bench.bench,
    "locate": about.locate,
    "schema": about.schema,
    "doctor": about.doctor,
}.items():
    app.command(name)(function)
app.add_typer(review.app, name="review")
app.add_typer(models.app, name="models")
app.add_typer(engine.app, name="engine")
