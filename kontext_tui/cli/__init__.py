"""The commands: one module per group. stdout is data, stderr is narration.

Nothing heavy is imported here or at the top of those modules: `--help` and the light commands start at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from kontext_tui.cli import about, jobs, run

app = typer.Typer(
    help="Edit photographs by sentences with FLUX.1 Kontext: queue them, run them overnight, look in the morning.",
    no_args_is_help=True,
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("add")(jobs.add)
app.command("work")(run.work)
app.command("status")(jobs.status)
app.command("list")(jobs.list_)
app.command("show")(jobs.show)
app.command("retry")(jobs.retry)
app.command("cancel")(jobs.cancel)
app.command("locate")(about.locate)
app.command("schema")(about.schema)
app.command("doctor")(about.doctor)
