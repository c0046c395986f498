"""`quantize`: a smaller version of a model, calibrated on pictures and prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import UnavailableError, UsageError
from kontext_tui.cli import options as opt
from kontext_tui.cli.steps import say
from kontext_tui.cli.steps import steps as steps_told


def quantize(
    model: Annotated[str, typer.Option(metavar="M", help="kontext-tiny, kontext-dev or a folder.")] = "kontext-dev",
    precision: Annotated[str, typer.Option("--precision", "-p", metavar="P", help="fp8, fp4 or fp4-svd.")] = "fp8",
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures and a pairs.jsonl, not the 72 that ship.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only this many pairs.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Steps of a calibration edit.")] = 8,
    refine: Annotated[
        bool, typer.Option(help="Choose weights and scales on real inputs, or leave ModelOpt's maxima and rounding.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="A new folder, not the store.", show_default=False),
    ] = None,
    device: opt.Device = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Calibrate a model and write it in FP8 or FP4 as a checkpoint; `run --precision` then uses it."""
    _require_extra()
    opt.end_cleanly()
    from quant.recipes import find_recipe

    recipe = find_recipe(precision)
    if recipe.rank and not refine:
        raise UsageError(f"{precision}: refinement is what finds its low-rank branch; leave --no-refine out")
    if output is not None and output.exists():
        raise UsageError(f"{output} exists already; name a folder that does not")

    from core.edit.artifacts import make
    from core.edit.models import find_spec, locate
    from core.edit.store import model_hash
    from quant.pairs import read_pairs

    spec = find_spec(model)
    folder = locate(spec, download=True)
    chosen = read_pairs(pairs, limit=limit, on_skip=lambda line: say(line, quiet=quiet))
    key = model_hash(folder / "transformer")

    def build(out: Path) -> dict[str, Any]:
        from core.edit.loading import load, pick_device  # torch, diffusers, transformers: some seconds
        from quant.quantize import quantize as write

        loaded = load(spec, folder, pick_device(device))
        with steps_told(quiet=quiet) as report:
            facts = write(
                loaded, recipe, chosen, out, model_hash=key, steps=steps, refined=refine, on_progress=report
            )
        return {**facts, "model": model}

    if output is not None:
        result, facts = output, write_folder(output, build)
    else:
        parts: dict[str, str | int | float] = {
            "model": key, "precision": precision, "recipe": recipe.digest() if refine else "max",
            "calibration": f"{chosen.digest}-{steps}",
        }  # fmt: skip
        artifact = make("checkpoint", parts, build, on_wait=lambda line: say(line, quiet=quiet))
        result, facts = artifact.folder, artifact.facts
    weights = sum(path.stat().st_size for path in result.glob("*.safetensors"))
    if json:
        from kontext_tui.cli.report import print_json

        print_json({"checkpoint": str(result), "precision": precision, "model": key, "bytes": weights, **facts})
    else:
        print(result)


def write_folder(output: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Build beside `output` and rename; interrupted, nothing is left. Raises OutputError where it cannot be."""
    import os
    import shutil
    import tempfile

    from core.edit.store import disk_error
    from core.errors import KontextError, OutputError

    part: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
        facts = build(part)
        part.chmod(0o755)
        part.rename(output)
        return facts
    except KontextError:
        raise
    except Exception as error:
        if (number := disk_error(error)) is None:
            raise
        raise OutputError(f"{output} cannot be written: {os.strerror(number)}") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _require_extra() -> None:
    from importlib.util import find_spec

    if find_spec("modelopt") is None:
        raise UnavailableError("quantizing needs NVIDIA ModelOpt: pip install 'kontext-tui[quant]'")
