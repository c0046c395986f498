"""`engine build|list|lint|verify|remove`: TensorRT engines, from ONNX graphs, in the artifact store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ExitCode, UnavailableError, UsageError
from kontext_tui.cli import options as opt
from kontext_tui.cli.steps import steps

if TYPE_CHECKING:
    from core.edit.artifacts import Artifact
    from core.edit.inventory import Made
    from core.edit.models import ModelSpec
    from quant.engine import Progress, Target

app = typer.Typer(
    help="TensorRT engines: build, list, check and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelName = Annotated[str, typer.Option("--model", metavar="M", help="kontext-tiny, kontext-dev or a folder.")]
EnginePrecision = Annotated[str, typer.Option("--precision", metavar="P", help="bf16, fp8, fp4 or fp4-svd.")]
OnnxFile = Annotated[
    Path | None,
    typer.Option("--onnx", metavar="FILE", help="This graph, not the store's; BFL's too.", show_default=False),
]
Key = Annotated[str | None, typer.Argument(metavar="[KEY]", help="First letters of its key.", show_default=False)]
KEY_SHOWN = 12


def build(
    precision: EnginePrecision,
    model: ModelName = "kontext-dev",
    gpu: Annotated[
        str, typer.Option(metavar="GPU", help="auto, or its kind: sm89 (RTX 40), sm120 (RTX 50), ...")
    ] = "auto",
    flavour: Annotated[str, typer.Option(metavar="F", help="auto, tensorrt_rtx or tensorrt.")] = "auto",
    onnx: OnnxFile = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Build an engine from a model's ONNX graph, once; TensorRT-RTX needs no GPU for it."""
    from core.edit import artifacts
    from core.edit.models import find_spec, locate
    from kontext_tui.cli.report import print_json
    from quant import engine
    from quant.onnx_files import onnx_hash

    _check_precision(precision)
    opt.end_cleanly()
    target = engine.choose_target(gpu, flavour)
    engine.check_hardware(target.sm, precision)
    spec = find_spec(model)
    model_key = artifacts.model_hash(locate(spec) / "transformer")
    graph = onnx or _exported(spec, model_key, precision)
    profile = engine.profile_for(spec)
    parts = engine.key_parts(
        model=model_key, onnx=onnx_hash(graph), precision=precision, target=target, profile=profile
    )
    made = False

    def make(folder: Path) -> dict[str, Any]:
        nonlocal made
        made = True
        with steps(quiet=quiet, counted=False) as report:
            title = f"building {spec.name} {precision} for {target.sm}"
            report(title, 0, 1)

            def tell(now: Progress) -> None:
                report(f"{title}: {now.phase}" if sys.stderr.isatty() else title, now.fraction, 1)

            facts = engine.build(
                graph, folder, precision=precision, profile=profile, gpu=target.sm, flavour=target.flavour,
                on_progress=tell,
            )  # fmt: skip
        return {**facts, "model": model}

    artifact = artifacts.make("engine", parts, make, on_wait=_say(quiet))
    if json:
        print_json({**_engine_object(artifact), "built": made})
        return
    _say(quiet)(_sentence(artifact, target, made=made))
    print(artifact.file(".engine"))


def list_(json: opt.Json = False) -> None:
    """The engines of this machine, newest first, with what keeps one from being used."""
    from core.edit import inventory
    from kontext_tui.cli.report import print_json, print_table
    from kontext_tui.figures import size

    found = [made for made in inventory.look().made if made.artifact.kind == "engine"]
    engines = [{**_engine_object(made.artifact), **_standing(made)} for made in found]
    if json:
        print_json(engines)
        return
    columns = ("key", "model", "precision", "gpu", "flavour", "version", "tokens", "created")
    rows = [
        [
            *(str(each[c] or "?")[: KEY_SHOWN if c == "key" else 40] for c in columns),
            size(each["bytes"]),
            "yes" if each["verified"] else "not yet",
            each["state"],
        ]
        for each in engines
    ]
    print_table([*columns, "size", "verified", "state"], rows, right=(len(columns),))


def lint(
    key: Key = None,
    onnx: OnnxFile = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="P", help="With --onnx: what it should be.", show_default=False),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Which products of a graph run in low precision, and what stayed high. Exit code 1 for a broken promise."""
    from kontext_tui.cli.report import print_json, print_table
    from quant.lint import lint as lint_graph
    from quant.onnx_files import read_graph

    if onnx is not None:
        if precision is None:
            raise UsageError("--onnx also wants --precision: what the graph is meant to run in")
        _check_precision(precision)
        graph, layers = onnx, None
    else:
        artifact = _pick(key)
        precision, graph = str(artifact.parts["precision"]), Path(artifact.facts["onnx_path"])
        if not graph.is_file():
            raise UsageError(f"{graph}: the graph this engine was built from is gone; name one with --onnx")
        layers = _layer_types(artifact)
    read_graph(graph).check_interface(graph)
    report = lint_graph(graph, precision)
    if json:
        print_json({**_report_object(report), "engine_layers": layers})
    else:
        print(report)
        if layers:
            print_table(("engine layers take in", "layers"), [(k, str(n)) for k, n in layers.items()], right=(1,))
    if report.problems:
        raise typer.Exit(ExitCode.JOBS_FAILED)


def verify(key: Key = None, json: opt.Json = False, quiet: opt.Quiet = False) -> None:
    """Compare one step of an engine with the unquantized model's, on this GPU. Exit code 4 where they disagree."""
    from core.edit import artifacts
    from core.edit.models import find_spec, locate
    from core.edit.runtimes.trt_api import load_module, require_gpu
    from kontext_tui.cli.report import print_json

    artifact = _pick(key)
    artifacts.check(artifact, deep=True)
    require_gpu(artifact)
    load_module(artifact)
    spec = find_spec(str(artifact.facts.get("model", "")))
    _say(quiet)(f"one step of {spec.name} unquantized, then one of the engine")
    from core.edit.loading import load, pick_device  # torch and diffusers: 5 s, so the machine was looked at first
    from core.edit.runtimes.tensorrt_runtime import verify as compare

    verdict = compare(artifact, load(spec, locate(spec), pick_device(), transformer=False))
    if json:
        print_json({"key": artifact.key, **vars(verdict), "passed": verdict.passed})
    else:
        print(f"{artifact.key[:KEY_SHOWN]}  {'passed' if verdict.passed else 'FAILED'}: {verdict}")
    if not verdict.passed:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def remove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="First letters of their keys.")],
    quiet: opt.Quiet = False,
) -> None:
    """Delete engines from the store, broken ones too."""
    from core.edit import artifacts
    from kontext_tui.figures import size

    for artifact in [_pick(key) for key in keys]:
        artifacts.remove(artifact)
        _say(quiet)(f"removed {artifact.key[:KEY_SHOWN]} ({size(artifact.size)})")


app.command("build")(build)
app.command("list")(list_)
app.command("lint")(lint)
app.command("verify")(verify)
app.command("remove")(remove)


def _check_precision(precision: str) -> None:
    from core.edit.runtimes import PRECISIONS

    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}: name one of {', '.join(PRECISIONS)}")


def _exported(spec: ModelSpec, model_key: str, precision: str) -> Path:
    """The graph that `kontext-tui export` made of a model."""
    from core.edit import artifacts

    found = artifacts.find("onnx", model=model_key, precision=precision)
    if not found:
        commands = (
            [f"kontext-tui quantize --model {spec.name} --precision {precision}"] if precision != "bf16" else []
        )
        commands.append(f"kontext-tui export --model {spec.name} --precision {precision}")
        raise UnavailableError(
            f"there is no {precision} ONNX graph of {spec.name} here: `{' && '.join(commands)}` makes it, "
            "or name one with --onnx"
        )
    artifacts.check(found[0], deep=True)
    return found[0].file(".onnx")


def _pick(key: str | None) -> Artifact:
    """The engine whose key begins so; without a key, the only one there is."""
    from core.edit import artifacts

    engines = artifacts.list_all("engine")
    found = [artifact for artifact in engines if artifact.key.startswith(key or "")]
    if len(found) == 1:
        return found[0]
    if not engines:
        raise UsageError("there are no engines here: `kontext-tui engine build` makes one")
    if not found:
        raise UsageError(f"there is no engine {key!r}: `kontext-tui engine list` shows their keys")
    some = ", ".join(artifact.key[:KEY_SHOWN] for artifact in found[:5])
    more = ", ... (`kontext-tui engine list` shows them all)" if len(found) > 5 else ""
    raise UsageError(f"{len(found)} engines to choose from: name one of {some}{more}")


def _engine_object(artifact: Artifact) -> dict[str, Any]:
    """One engine for `--json` and the list."""
    from core.edit.artifacts import problem

    parts, facts = artifact.parts, artifact.facts
    return {
        "key": artifact.key,
        "model": facts.get("model"),
        "precision": parts.get("precision"),
        "gpu": parts.get("sm"),
        "flavour": parts.get("flavour"),
        "version": parts.get("version"),
        "tokens": parts.get("profile"),
        "bytes": artifact.size,
        "seconds": artifact.manifest.get("seconds"),
        "created": str(artifact.manifest.get("created", ""))[:19],
        "path": str(artifact.folder),
        "state": problem(artifact) or "ok",
    }


def _standing(made: Made) -> dict[str, Any]:
    """Whether an engine has been proven on a GPU, and what keeps it from being used."""
    usable = made.standing in ("ok", "unverified")
    return {"verified": made.standing == "ok", "state": "ok" if usable else made.reason}


def _sentence(artifact: Artifact, target: Target, *, made: bool) -> str:
    from kontext_tui.cli.narrate import duration
    from kontext_tui.figures import size

    what = f"{size(artifact.size)} by {target.flavour} {target.version}, profile {artifact.parts['profile']}"
    took = f"built in {duration(artifact.manifest['seconds'])}" if made else "was there"
    return f"engine {artifact.key[:KEY_SHOWN]} {took}: {what}"


def _layer_types(artifact: Artifact) -> dict[str, int] | None:
    """What the built engine says of its layers; None where its GPU is not here to ask."""
    from core.edit.runtimes import trt_api

    gpu = trt_api.current_gpu()
    if gpu is None or gpu.sm != artifact.parts.get("sm"):
        return None
    from core.edit.runtimes.tensorrt_runtime import count_types, layers

    return count_types(layers(artifact))


def _report_object(report: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _say(quiet: bool) -> Callable[[str], None]:
    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say
