"""`models`, `models remove`: what this machine has to edit with, what was made of it, and what that is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UsageError
from kontext_tui.cli import options as opt

if TYPE_CHECKING:
    from core.edit.artifacts import Artifact
    from core.edit.inventory import Made, Model

app = typer.Typer(
    help="Models, and the checkpoints, ONNX graphs and engines made of them.",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
KEY_SHOWN = 12
KINDS = {"checkpoint": "checkpoint", "onnx": "ONNX graph", "engine": "engine"}


@app.callback()
def models(ctx: typer.Context, json: opt.Json = False) -> None:
    """Models here, what was made of each in which precision, what is broken, and the last comparison."""
    if ctx.invoked_subcommand is not None:
        return
    from core.edit import inventory
    from kontext_tui.cli.report import print_json, print_table
    from kontext_tui.figures import size

    found = inventory.look()
    if json:
        print_json(
            {
                "models": [_model_object(model) for model in found.models],
                "artifacts": [made_object(made) for made in found.made],
                "comparisons": found.comparisons,
            }
        )
        return
    print_table(
        ("model", "state", "size", "where, or why not"),
        [(m.name, m.state, size(m.bytes) if m.bytes else "", m.reason or str(m.folder)) for m in found.models],
        right=(2,),
    )
    if found.made:
        print()
        print_table(
            ("key", "model", "precision", "what", "for", "size", "took", "made", "state"),
            [_row(made) for made in found.made],
            right=(5, 6),
        )
    for name, outcome in found.comparisons.items():
        print(f"\n{name}, compared {outcome.get('created', '')[:10]} over {outcome.get('edits')} edits")
        print_comparison(outcome["precisions"])


@app.command("remove")
def remove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="First letters of their keys.")],
    quiet: opt.Quiet = False,
) -> None:
    """Delete checkpoints, graphs or engines made on this machine, broken ones too. Models are never deleted."""
    from core.edit import artifacts
    from kontext_tui.figures import size

    for artifact in [_pick(key) for key in keys]:
        artifacts.remove(artifact)
        if not quiet:
            what = KINDS.get(artifact.kind, artifact.kind)
            print(f"removed the {what} {artifact.key[:KEY_SHOWN]} ({size(artifact.size)})", file=sys.stderr)


def made_object(made: Made) -> dict[str, Any]:
    """One artifact for `--json`."""
    artifact, parts = made.artifact, made.artifact.parts
    return {
        "key": artifact.key,
        "kind": artifact.kind,
        "model": made.model,
        "precision": made.precision,
        "gpu": parts.get("sm"),
        "flavour": parts.get("flavour"),
        "version": parts.get("version"),
        "tokens": parts.get("profile"),
        "bytes": artifact.size,
        "seconds": artifact.manifest.get("seconds"),
        "created": str(artifact.manifest.get("created", ""))[:19],
        "path": str(artifact.folder),
        "state": made.standing,
        "reason": made.reason,
        "proofs": [{**vars(verdict), "passed": verdict.passed} for verdict in made.verdicts],
    }


def print_comparison(precisions: Mapping[str, Mapping[str, Any]]) -> None:
    """The table of a comparison: medians over the edits, by precision."""
    from kontext_tui.cli.report import print_table
    from kontext_tui.comparison import HEADINGS, table

    rows = table(precisions)
    print_table(HEADINGS, rows, right=range(2, len(HEADINGS)))


def _model_object(model: Model) -> dict[str, Any]:
    folder = str(model.folder) if model.folder else None
    return {"model": model.name, "state": model.state, "path": folder, "bytes": model.bytes, "reason": model.reason}


def _row(made: Made) -> tuple[str, ...]:
    from kontext_tui.figures import short_time, size

    artifact, parts = made.artifact, made.artifact.parts
    seconds = artifact.manifest.get("seconds")
    target = f"{parts.get('sm')} {parts.get('flavour')} {parts.get('version')}" if artifact.kind == "engine" else ""
    return (
        artifact.key[:KEY_SHOWN],
        made.model or "?",
        made.precision or "?",
        KINDS.get(artifact.kind, artifact.kind),
        target if parts else "",
        size(artifact.size),
        short_time(float(seconds)) if seconds is not None else "",
        str(artifact.manifest.get("created", ""))[:10],
        f"{made.standing}: {made.reason}" if made.reason else made.standing,
    )


def _pick(key: str) -> Artifact:
    """The artifact of any kind whose key begins so."""
    from core.edit import artifacts

    found = [artifact for artifact in artifacts.list_all() if artifact.key.startswith(key)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"there is nothing with the key {key!r}: `kontext-tui models` shows the keys")
    some = ", ".join(artifact.key[:KEY_SHOWN] for artifact in found[:5])
    raise UsageError(f"{key!r} begins {len(found)} keys: name one of {some}")
