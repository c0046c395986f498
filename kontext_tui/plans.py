"""Which command lines make what is wanted of a model, from what is there already."""

from __future__ import annotations

from core.edit.inventory import Inventory, Made
from kontext_tui.tasks import Command

Goal = str
"""quantize, export or build."""


def to_make(found: Inventory, goal: Goal, model: str, precision: str, gpu: str = "auto") -> tuple[Command, ...]:
    """The goal's command, after those for what it needs and nobody has made yet."""
    usable = {"ok", "unverified"}
    there = {
        kind: any(made.standing in usable for made in found.of(model, precision, kind))
        for kind in ("checkpoint", "onnx")
    }
    commands = []
    if precision != "bf16" and (
        goal == "quantize" or (not there["checkpoint"] and (goal == "export" or not there["onnx"]))
    ):
        commands.append(_command("quantize", model, precision))
    if goal == "export" or (goal == "build" and not there["onnx"]):
        commands.append(_command("export", model, precision))
    if goal == "build":
        commands.append(
            Command(
                f"build {_named(model)} {precision} for {gpu}",
                ("engine", "build", "--model", model, "--precision", precision, "--gpu", gpu),
            )
        )
    return tuple(commands)


def to_compare(found: Inventory, model: str) -> Command | None:
    """A comparison of the precisions that can run here: from a checkpoint; None where there is none."""
    made = [each.precision for each in found.of(model, kind="checkpoint") if each.standing == "ok"]
    chosen = sorted({precision for precision in made if precision})
    if not chosen:
        return None
    options = [part for precision in chosen for part in ("--precision", precision)]
    return Command(f"compare {_named(model)} {', '.join(chosen)}", ("compare", "--model", model, *options, "--json"))


def to_lint(made: Made) -> Command:
    """Which products of a graph, or of an engine's, run in low precision."""
    if made.artifact.kind == "engine":
        args: tuple[str, ...] = ("engine", "lint", made.artifact.key)
    else:
        args = ("engine", "lint", "--onnx", str(made.artifact.file(".onnx")), "--precision", made.precision or "")
    return Command(f"lint {_named(made.model or '?')} {made.precision}", args, shows=True)


def to_verify(made: Made) -> Command:
    return Command(
        f"verify {_named(made.model or '?')} {made.precision}", ("engine", "verify", made.artifact.key), shows=True
    )


def _command(what: str, model: str, precision: str) -> Command:
    return Command(f"{what} {_named(model)} {precision}", (what, "--model", model, "--precision", precision))


def _named(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]
