"""`export`: the ONNX graph of a model or of its quantized checkpoint, into the artifact store."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UnavailableError, UsageError
from kontext_tui.cli import options as opt

if TYPE_CHECKING:
    from core.edit.models import ModelSpec


def export(
    precision: Annotated[str, typer.Option("--precision", metavar="P", help="bf16, fp8, fp4 or fp4-svd.")],
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="kontext-tiny, kontext-dev or a folder.")
    ] = "kontext-dev",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Copy the graph here as well.", show_default=False),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            "--onnx",
            metavar="FILE",
            help="Only check this graph, such as one that BFL publish: its interface and what it runs in.",
            show_default=False,
        ),
    ] = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write a model's transformer as ONNX, once: one graph for every picture size, weights beside it."""
    from core.edit.runtimes import PRECISIONS
    from kontext_tui.cli.report import print_json

    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}: name one of {', '.join(PRECISIONS)}")
    if onnx is not None:
        _check(onnx, precision, json=json, quiet=quiet)
        return
    _need_onnx()
    opt.end_cleanly()
    from core.edit import artifacts
    from core.edit.models import find_spec, locate

    spec = find_spec(model)
    folder = locate(spec) / "transformer"
    model_key = artifacts.model_hash(folder)
    source, checkpoint = (folder, model_key) if precision == "bf16" else _checkpoint(spec, model_key, precision)
    made = False

    def make(target: Path) -> dict[str, Any]:
        nonlocal made
        made = True
        from quant.lint import lint
        from quant.onnx_export import export as write

        facts = write(source, target, precision, spec.text_tokens)
        report = lint(target / "model.onnx", precision, checkpoint=source)
        if report.problems:
            raise UnavailableError(f"the graph breaks what {precision} promises: {'; '.join(report.problems[:3])}")
        return {
            **facts,
            "gemms": report.gemms,
            "bmms": report.bmms,
            "weight_bytes": report.weight_bytes,
            "model": model,
        }

    parts = {"model": model_key, "precision": precision, "checkpoint": checkpoint}
    artifact = artifacts.make("onnx", parts, make, on_wait=lambda line: _say(line, quiet=quiet))
    path = artifact.file(".onnx")
    if output is not None:
        path = _copy(artifact.folder, output)
    facts = artifact.facts
    if json:
        print_json({"key": artifact.key, "path": str(path), "precision": precision, "built": made, **facts})
        return
    seconds = sum(facts["seconds"].values())
    how = f"written in {seconds:.1f} s" if made else "was there already"
    _say(f"{spec.name} {precision}: {facts['nodes']} nodes, {_linears(facts['gemms'])}, {how}", quiet=quiet)
    print(path)


def _check(path: Path, precision: str, *, json: bool, quiet: bool) -> None:
    """A graph from elsewhere: that it is a Kontext transformer's, and what it runs in."""
    _need_onnx()
    from kontext_tui.cli.report import print_json
    from quant.lint import lint
    from quant.onnx_files import read_graph

    read_graph(path).check(path, precision)
    report = lint(path, precision)
    if json:
        print_json({"path": str(path), **vars(report)})
        return
    _say(str(report), quiet=quiet)
    _say(f"`kontext-tui engine build --onnx {path} --precision {precision}` builds it", quiet=quiet)
    print(path)


def _checkpoint(spec: ModelSpec, model_key: str, precision: str) -> tuple[Path, str]:
    """Folder and key of the newest checkpoint of a model in a precision."""
    from core.edit import artifacts

    found = artifacts.find("checkpoint", model=model_key, precision=precision)
    if not found:
        raise UnavailableError(
            f"there is no {precision} checkpoint of {spec.name} here: "
            f"`kontext-tui quantize --model {spec.name} --precision {precision}` makes it"
        )
    artifacts.check(found[0], deep=True)
    return found[0].folder, found[0].key


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"exporting needs {error.name}: `pip install 'kontext-tui[quant]'` brings it"
        ) from None


def _copy(folder: Path, output: Path) -> Path:
    """The graph and its weights, each whole or not at all; the graph last, since it names the weights."""
    from core.errors import OutputError

    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("model.onnx.data", "model.onnx"):
            part = output / f".{name}.part"
            try:
                shutil.copyfile(folder / name, part)
                part.replace(output / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}") from None
    return output / "model.onnx"


def _linears(gemms: dict[str, int]) -> str:
    return ", ".join(f"{count} linears in {name}" for name, count in sorted(gemms.items()))


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)
