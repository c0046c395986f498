"""`compare`: what a precision costs, on your own pictures."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UsageError
from kontext_tui.cli import options as opt
from kontext_tui.cli.steps import steps as steps_told

if TYPE_CHECKING:
    from quant.evaluate import BlockLoss, Edited
    from quant.quality_set import Subject

Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", "-p", metavar="P", help="To compare with bf16; may be repeated.", show_default="all"),
]
Refreshes = Annotated[
    list[int] | None,
    typer.Option(
        "--context-refresh", metavar="K", min=2, max=100, show_default=False,
        help="Each precision with this context refresh too, and bf16 alone unless --precision names more; may be "
        "repeated.",
    ),
]  # fmt: skip
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="Asked of each --input; may be repeated.", show_default=False),
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a contact sheet: input, each precision, difference.", show_default=False
    ),
]


def compare(
    model: Annotated[str, typer.Option(metavar="M", help="kontext-tiny, kontext-dev or a folder.")] = "kontext-dev",
    precision: Precisions = None,
    runtime: Annotated[str, typer.Option(metavar="R", help="auto, torch, onnx or tensorrt.")] = "auto",
    input: Annotated[
        list[Path] | None,
        typer.Option("--input", "-i", metavar="FILE", help="Pictures, not the edits that ship.", show_default=False),
    ] = None,
    prompt: Prompts = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures, prompts and exact targets: a pairs.jsonl as `quantize --pairs` reads.",
            show_default=False,
        ),
    ] = None,
    steps: opt.Steps = None,
    context_refresh: Refreshes = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The seed of every edit.")] = 7,
    sheet: Sheet = None,
    device: opt.Device = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """The same edits in several precisions: how near they come to the unquantized model, how fast, how large."""
    from core.edit.models import find_spec, locate
    from core.edit.runtimes import PRECISIONS, Choice, choose

    if unknown := [name for name in precision or () if name not in PRECISIONS]:
        raise UsageError(f"there is no precision {unknown[0]!r}: name one of {', '.join(PRECISIONS)}")
    _check_words(input, prompt, pairs)
    subjects = _subjects(input, prompt, pairs)
    spec = find_spec(model)
    folder = locate(spec, download=True)
    refreshes = sorted(set(context_refresh or []))
    wanted = precision or (["bf16"] if refreshes else [name for name in PRECISIONS if name != "bf16"])
    choices = {
        name: choose(runtime, name, spec.name, folder, keep_context=bool(refreshes))
        for name in wanted
        if name != "bf16"
    }

    from core.edit.loading import load, pick_device
    from core.edit.runtimes.opening import open_runtime
    from core.edit.runtimes.torch_runtime import TorchRuntime
    from quant.evaluate import block_losses, contact_sheet, edit_all, named_blocks, summarize

    loaded = load(spec, folder, pick_device(device))
    settings: dict[str, Any] = {"steps": steps or spec.steps, "guidance": spec.guidance, "seed": seed}
    edits: dict[str, list[Edited]] = {}
    losses: dict[str, list[BlockLoss]] = {}
    total, done = (1 + len(choices)) * (1 + len(refreshes)) * len(subjects), count(1)
    with steps_told(quiet=quiet) as report:

        def advance() -> None:
            report("editing", next(done), total)

        report("editing", 0, total)
        plain = open_runtime(Choice("torch", "bf16", "the reference"), loaded)
        edits["bf16"] = edit_all(loaded, plain, subjects, **settings, on_done=advance)
        for k in refreshes:
            edits[_row("bf16", k)] = edit_all(
                loaded, plain, subjects, **settings, context_refresh=k, reference=edits["bf16"], on_done=advance
            )
        for name, choice in choices.items():
            run = open_runtime(choice, loaded)
            edits[name] = edit_all(loaded, run, subjects, **settings, reference=edits["bf16"], on_done=advance)
            for k in refreshes:
                edits[_row(name, k)] = edit_all(
                    loaded, run, subjects, **settings, context_refresh=k, reference=edits["bf16"], on_done=advance
                )
            if isinstance(run, TorchRuntime):
                others = dict(named_blocks(run.transformer))
                losses[name] = block_losses(loaded, others, subjects[0], guidance=spec.guidance, seed=seed)
    sizes = {name: _weight_bytes(choice.artifact.folder) for name, choice in choices.items() if choice.artifact}
    sizes["bf16"] = _weight_bytes(folder / "transformer")
    report = {
        name: {**summarize(each), "bytes": sizes.get(name.split()[0]), "runtime": _runtime(choices, name.split()[0])}
        for name, each in edits.items()
    }
    if input is None and pairs is None:
        exact = {name: values for name, values in report.items() if name in PRECISIONS}
        _keep(folder, exact, edits=len(subjects), steps=settings["steps"], seed=seed)
    if sheet:
        contact_sheet(subjects, edits).save(sheet)
    _show(report, losses, edits, json=json)


def _keep(folder: Path, report: dict[str, dict[str, Any]], **settings: int) -> None:
    """The edits that ship are the same for everyone: what they came to is shown again by `models` and the app."""
    from datetime import UTC, datetime

    from core.edit.inventory import keep_comparison
    from core.edit.store import model_hash

    created = datetime.now(UTC).isoformat(timespec="seconds")
    keep_comparison(model_hash(folder / "transformer"), {"precisions": report, "created": created, **settings})


def _check_words(inputs: list[Path] | None, prompts: list[str] | None, pairs: Path | None) -> None:
    if pairs is not None and (inputs or prompts):
        raise UsageError("--pairs brings its own pictures and prompts: leave --input and --prompt out")
    if prompts and not inputs:
        raise UsageError("--prompt needs --input: the edits that ship have prompts of their own")
    if inputs and not prompts:
        raise UsageError("--input needs --prompt: say what to do with the pictures")


def _subjects(inputs: list[Path] | None, prompts: list[str] | None, pairs: Path | None) -> list[Subject]:
    """What is edited; nothing heavy is imported, so that a bad list or picture is told at once."""
    from core.edit import images
    from quant.pairs import read_pairs
    from quant.quality_set import Subject, quality_set

    if pairs is not None:
        found = read_pairs(pairs, fewest=1, on_skip=lambda line: print(line, file=sys.stderr)).pairs
        return [
            Subject(p.image.name, images.load(p.image).rgb, p.prompt, images.load(p.target).rgb if p.target else None)
            for p in found
        ]
    if not inputs or not prompts:
        return quality_set()
    pictures = [(path.name, images.load(path).rgb) for path in inputs]
    return [Subject(name, picture, prompt) for name, picture in pictures for prompt in prompts]


def _show(
    report: dict[str, dict[str, Any]],
    losses: dict[str, list[BlockLoss]],
    edits: dict[str, list[Edited]],
    *,
    json: bool,
) -> None:
    from kontext_tui.cli.models import print_comparison
    from kontext_tui.cli.report import print_json, print_table

    if json:
        details = {
            name: [
                {
                    "input": e.subject,
                    "prompt": e.prompt,
                    "to_bf16": vars(e.to_reference) if e.to_reference else None,
                    "to_target": vars(e.to_target) if e.to_target else None,
                }
                for e in each
            ]
            for name, each in edits.items()
        }
        worst = {name: [vars(loss) for loss in each] for name, each in losses.items()}
        print_json({"precisions": report, "edits": details, "blocks": worst})
        return
    print_comparison(report)
    for name, each in losses.items():
        worst = sorted(each, key=lambda loss: -loss.error)[:5]
        print(f"\n{name}: blocks that lose most, each on its own (relative error of the output)")
        print_table((), [(loss.block, f"{loss.error:.4f}") for loss in worst], right=(1,))


def _row(precision: str, refresh: int) -> str:
    return f"{precision} refresh {refresh}"


def _runtime(choices: dict[str, Any], name: str) -> str:
    return choices[name].runtime if name in choices else "torch"


def _weight_bytes(folder: Path) -> int:
    """Of the files that hold weights."""
    suffixes = {".safetensors", ".data", ".onnx", ".engine"}
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in suffixes)
