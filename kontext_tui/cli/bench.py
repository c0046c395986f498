"""`bench`: how fast this machine edits, and where its time and memory go."""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UnavailableError, UsageError
from kontext_tui.cli import options as opt
from kontext_tui.cli.steps import say
from kontext_tui.cli.steps import steps as steps_told

if TYPE_CHECKING:
    from quant.random_weights import Size

PACKAGES = ("torch", "triton", "diffusers", "transformers", "torchao", "onnxruntime", "tensorrt-rtx-cu13-libs")


def bench(
    model: Annotated[
        str, typer.Option(metavar="M", help="kontext-tiny, kontext-dev or a diffusers folder.")
    ] = "kontext-dev",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="FLUX.1 Kontext's shapes with random weights: no download.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", "-p", metavar="P", help="Only this one; may be repeated.", show_default="all"),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", metavar="R", help="Only these: repeat it.", show_default="all"),
    ] = None,
    calls: Annotated[
        int, typer.Option(metavar="N", min=0, max=1000, help="Timed steps, warm; 0: the batch alone.")
    ] = 12,
    steps: opt.Steps = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=0, max=10_000, help="Pictures of the batch, two turns each; 0: no batch.")
    ] = 20,
    context_refresh: Annotated[int, typer.Option(metavar="K", min=1, max=100, help="Of the batch.")] = 1,
    photo: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Of the batch's pictures, as JPEG, such as 4000x3000.",
            show_default="the model's size, as PNG",
        ),
    ] = None,
    double: Annotated[int, typer.Option(metavar="N", min=1, help="Double blocks of --random-weights.")] = 19,
    single: Annotated[int, typer.Option(metavar="N", min=1, help="Single blocks of --random-weights.")] = 38,
    heads: Annotated[int, typer.Option(metavar="N", min=2, help="Attention heads of --random-weights.")] = 24,
    tokens: Annotated[int, typer.Option(metavar="N", min=8, help="Image and context tokens of it.")] = 8192,
    peer: Annotated[
        bool, typer.Option("--peer", help="diffusers and torchao's FP8 too, where they are installed.")
    ] = False,
    charts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write charts there, as PNG.", show_default=False)
    ] = None,
    no_compile: opt.NoCompile = False,
    gpus: opt.Gpus = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Milliseconds a step, time by module and by kernel, memory, and images an hour, on what is here."""
    from core.edit.models import find_spec, locate
    from core.edit.runtimes import PRECISIONS, RUNTIMES, Choice, choose
    from core.jobs.devices import resolve

    for given, known, option in ((precision, PRECISIONS, "--precision"), (runtime, RUNTIMES, "--runtime")):
        if wrong := next((each for each in given or () if each not in known), None):
            raise UsageError(f"{option} {wrong!r}: give one of {', '.join(known)}")
    if not calls and (peer or not jobs):
        raise UsageError("--calls 0 leaves the batch alone: give --jobs, and no --peer")
    picture = _size(photo)
    if random_weights and [each for each in runtime or () if each != "torch"]:
        raise UsageError("--random-weights has no graph and no engine: leave --runtime out")
    devices = resolve(gpus)
    opt.leave_uncompiled(no_compile)
    spec = None if random_weights else find_spec(model)
    folder = None if spec is None else locate(spec, download=True)
    choices: list[Choice] = []
    missing: dict[str, str] = {}
    for wanted, name in product(precision or PRECISIONS, runtime or RUNTIMES) if spec and folder else ():
        try:
            choices.append(choose(name, wanted, spec.name, folder))
        except UnavailableError as error:
            missing[f"{wanted} {name}"] = str(error)
    if spec and not choices:
        raise UnavailableError(next(iter(missing.values())))

    from quant import bench as benching
    from quant import bench_batch, bench_peers
    from quant.machine import graphics, machine
    from quant.random_weights import Size, make_spec

    with steps_told(quiet=quiet) as tell:
        import torch

        device = torch.device(devices[0])
        size = Size(double, single, heads, tokens) if random_weights else None
        if spec is None or folder is None:
            assert size is not None
            found = benching.random_candidates(size, precision or [], device)
        else:
            found = [benching.candidate(spec, folder, choice, device) for choice in choices]
        batches = len(found) if jobs else 0
        peers = bench_peers.PEERS if peer else ()
        total, done = (len(found) if calls else 0) + len(peers) + batches, 0
        rows, batch, beside, exact = [], [], [], None
        steps = steps or (spec.steps if spec else 28)
        for each in found if calls else ():
            tell("measuring", done, total)
            facts, velocity = benching.measure(each, calls=calls, steps=steps, reference=exact)
            rows.append(facts)
            name = f"{facts['precision']} {each.runtime}"
            tell(_so_far(name, facts), done, total)
            missing |= {f"{name}, compiled": facts["caveat"]} if "caveat" in facts else {}
            exact = velocity if each.precision == "bf16" and exact is None else exact
            done += 1
        for name in peers:
            tell("measuring", done, total)
            done += 1
            if reason := bench_peers.missing(name, device):
                missing[name] = reason
                continue
            make, sample = _diffusers(size, folder, rows[0]["tokens"], device)
            beside.append(bench_peers.measure(name, make, sample, device, calls))
            tell(_so_far(name, beside[-1]), done, total)
        for each in found if jobs else ():
            tell("measuring", done, total)
            batch.append(
                bench_batch.run(
                    spec or make_spec(size or Size()), each.precision, each.runtime, jobs=jobs, steps=steps,
                    devices=devices, size=size, context_refresh=context_refresh if each.runtime == "torch" else 1,
                    photo=picture, on_turn=partial(tell, f"turns of the batch in {each.precision}"),
                )
            )  # fmt: skip
            done += 1
        tell("measuring", total, total)
    report: dict[str, Any] = {
        "model": f"random weights, {double} + {single} blocks" if spec is None else spec.name,
        "machine": {**graphics(), **machine(*PACKAGES)},
        "steps": steps, "rows": rows, "peers": beside, "batch": batch, "missing": missing,
        "published": dict(benching.PUBLISHED),
        "published_beside": any(sum(row["tokens"].values()) > 8000 for row in rows),  # they are of a megapixel
    }  # fmt: skip
    if charts is not None:
        from quant.bench_charts import save

        for file in save(report, charts):
            say(f"wrote {file}", quiet=quiet)
    if json:
        from kontext_tui.cli.report import print_json

        print_json(report)
    else:
        _show(report)


def _so_far(name: str, facts: dict[str, Any]) -> str:
    """Told at once: minutes of measuring may be stopped half-way."""
    return f"{name} takes {facts['ms']['median']} ms a step"


def _size(text: str | None) -> tuple[int, int] | None:
    """WxH in pixels. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch("([1-9][0-9]{1,4})[xX]([1-9][0-9]{1,4})", text)
    if found is None:
        raise UsageError(f"--photo {text!r}: give width and height in pixels, such as 4000x3000")
    return int(found[1]), int(found[2])


def _pauses(pause_ms: dict[str, float | None]) -> str:
    """From the last step of a turn to the first one of the next."""
    return ", ".join("-" if ms is None else f"{ms:.0f}" for ms in pause_ms.values())


def _diffusers(size: Size | None, folder: Path | None, tokens: dict[str, int], device: Any) -> tuple[Any, Any]:
    """The transformer as diffusers loads it, and a call of the shapes that ours was measured at."""
    from quant import bench_peers

    if size is not None:
        return bench_peers.random(size, device)
    assert folder is not None
    return bench_peers.loaded(folder, tokens, device)


def _show(report: dict[str, Any]) -> None:
    from kontext_tui.cli.report import print_table
    from kontext_tui.figures import size
    from quant.bench_charts import charts

    print_table((), [(key, str(value)) for key, value in report["machine"].items()])
    for title, bars in charts(report).items():
        print(f"\n{title}")
        top = max(sum(bar.parts.values()) for bar in bars) or 1
        print_table((), [(bar.label, _bar(bar, top), bar.text) for bar in bars])
        names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
        if len(names) > 1:
            print("   ".join(f"{block} {name}" for block, name in zip(_BLOCKS * 3, names, strict=False)))
    if report["batch"]:
        print("\nA batch through the queue, warm")
        rows = [
            (
                _name(each) + _refresh(each["context_refresh"]),
                f"{each['images_per_hour']:,.0f}",
                f"{each['denoise_share']:.1%}",
                f"{each['seconds_a_turn']:.2f}",
                _pauses(each["pause_ms"]),
                size(each["peak_bytes"]),
                f"{each['turns']} turns of {each['steps']} steps on {', '.join(each['devices'])}",
            )
            for each in report["batch"]
        ]
        print_table(
            ("", "images/h", "denoising", "s a turn", "ms to next job, turn", "peak memory", ""),
            rows,
            right=range(1, 6),
        )
    if errors := [(_name(row), f"{row['error']:.4f}") for row in report["rows"] if "error" in row]:
        print("\nOne step to the unquantized one, relative error")
        print_table((), errors, right=(1,))
    if report["missing"]:
        print("\nNot here")
        print_table((), list(report["missing"].items()))


_BLOCKS = ("█", "▓", "▒", "░", "▚", "▞")
CELLS = 40


def _bar(bar: Any, top: float) -> str:
    """The parts in cells, rounded so that the whole has its right length."""
    text, before = "", 0.0
    for block, value in zip(_BLOCKS * 3, bar.parts.values(), strict=False):
        cells = round(CELLS * (before + value) / top) - round(CELLS * before / top)
        text, before = text + block * cells, before + value
    return text


def _name(facts: dict[str, Any]) -> str:
    return f"{facts['precision']} {facts['runtime']}"


def _refresh(refresh: int) -> str:
    return f", refresh {refresh}" if refresh > 1 else ""
