"""The twelve edits that precisions are judged by: four photographs that no model here was trained on, three prompts
each. `python -m quant.quality_set PRECISION=CHECKPOINT...` prints PSNR against the float32 edits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from core.errors import UnavailableError

STEPS = 8
SEED = 7
EDITS = {
    "dogs.jpg": ("Make it black and white", "Add a soccer ball at the bottom right", "Turn day into night"),
    "coffee.png": ("Make it cooler", "Add a strawberry on the left", "Turn it into a pencil sketch"),
    "pavilion.jpg": ("Add a balloon at the top right", "Make it golden hour", "Make it look like an old photo"),
    "sunset.jpg": ("Add fog", "Invert the colors", "Add a rocket at the top right"),
}

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


@dataclass(frozen=True)
class Subject:
    """A picture and what to do with it. `target`: the exact result, where there is one."""

    name: str
    image: Image.Image
    prompt: str
    target: Image.Image | None = None


def quality_set(photos: Path = PHOTOS) -> list[Subject]:
    """The twelve, with pictures from `photos`. Raises UnavailableError where they are not (an installed package)."""
    if not (photos / next(iter(EDITS))).is_file():
        raise UnavailableError(f"the twelve edits need the source tree's examples/photos, which are not in {photos}")
    found = []
    for name, prompts in EDITS.items():
        with Image.open(photos / name) as image:
            rgb = image.convert("RGB")
        found += [Subject(Path(name).stem, rgb, prompt) for prompt in prompts]
    return found


def main() -> None:
    """Print a line a checkpoint: PSNR in dB to the unquantized edit, median and worst of the twelve."""
    from argparse import ArgumentParser

    from core.edit.loading import load, pick_device
    from core.edit.models import find_spec, locate
    from core.edit.runtimes.opening import open_checkpoint, open_transformer
    from quant.evaluate import edit_all, summarize

    parser = ArgumentParser(prog="python -m quant.quality_set", description=main.__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="PRECISION=CHECKPOINT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context-refresh", type=int, default=1)
    given = parser.parse_args()
    spec = find_spec("kontext-tiny")
    model = load(spec, locate(spec), pick_device(given.device))
    pictures = quality_set()
    how: dict[str, Any] = {"steps": STEPS, "guidance": spec.guidance, "seed": SEED}
    exact = edit_all(model, open_transformer(model.transformer), pictures, **how)
    print("precision  median  worst  each")
    for argument in given.checkpoints:
        name, _, folder = argument.rpartition("=")
        runtime = open_checkpoint(Path(folder), model)
        edits = edit_all(
            model, runtime, pictures, reference=exact, context_refresh=given.context_refresh, **how
        )  # fmt: skip
        found = summarize(edits)
        each = " ".join(f"{e.to_reference.psnr:.1f}" for e in edits if e.to_reference)
        print(f"{name or runtime.precision:9}  {found['psnr']:6.1f}  {found['psnr_worst']:5.1f}  {each}", flush=True)


if __name__ == "__main__":
    main()
