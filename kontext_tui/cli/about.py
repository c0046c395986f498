"""`locate`, `schema`, `doctor`: about the program and this machine."""

from __future__ import annotations

import typer

from core.errors import ExitCode
from kontext_tui.cli import options as opt


def locate(db: opt.Db = None, json: opt.Json = False) -> None:
    """Where things lie: the queue, the configuration, artifacts, models."""
    from core import paths
    from core.edit.models import MODELS, locate
    from core.errors import UnavailableError
    from kontext_tui.cli.report import print_json, print_table

    models: dict[str, str | None] = {}
    for name, spec in MODELS.items():
        try:
            models[name] = str(locate(spec))
        except UnavailableError:
            models[name] = None
    places = {
        "database": str(paths.database(db).absolute()),
        "config": str(paths.config_file()),
        "artifacts": str(paths.artifacts()),
    }
    if json:
        print_json({**places, "models": models})
        return
    print_table((), [*places.items(), *((name, path or "not on this machine") for name, path in models.items())])


def schema() -> None:
    """The JSON Schema of the edit script, for editors."""
    from json import dumps

    from core.script import json_schema

    print(dumps(json_schema(), indent=2))


def doctor(db: opt.Db = None, json: opt.Json = False) -> None:
    """Check this machine: versions, devices, models, the queue. Exit code 1 where something needs you."""
    from kontext_tui.cli.checks import run_checks
    from kontext_tui.cli.report import print_json, print_table

    checks = run_checks(db)
    if json:
        print_json([vars(check) for check in checks])
    else:
        print_table((), [({True: "ok", False: "!!", None: "--"}[c.ok], c.name, c.finding) for c in checks])
    if any(check.ok is False for check in checks):
        raise typer.Exit(ExitCode.JOBS_FAILED)
