"""FLUX.1 Kontext [dev]'s shapes with random weights, as a folder in diffusers' layout: what takes a model takes it.

    python -m quant.random_folder FOLDER                                        # 33 GB
    python -m quant.random_folder FOLDER --double 1 --single 1 --heads 2 --tokens 128     # a slice

For trying at full size, with no download, what a real model does to memory, disk and time. Pictures are noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from quant.random_weights import FULL, TEXT_TOKENS, Size, make_model, make_spec, make_transformer


def write(folder: Path, size: Size) -> None:
    """Write the model; the folder must not exist yet. Made on the GPU where there is one."""
    import torch

    from core.edit.loading import pick_device
    from core.edit.models import MODELS, SPEC_FILE

    folder.mkdir(parents=True)
    device = pick_device("auto")
    transformer = make_transformer(size, device, torch.bfloat16)
    transformer.save_pretrained(folder / "transformer")
    del transformer
    model = make_model(size, device, torch.bfloat16, None)
    for name in ("vae", "scheduler", "text_encoder", "text_encoder_2"):
        getattr(model, name).save_pretrained(folder / name)
    tiny = MODELS["kontext-tiny"].folder
    assert tiny is not None
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny / name, folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    if size != FULL:
        spec = {"text_tokens": TEXT_TOKENS, "sizes": make_spec(size).sizes}
        (folder / SPEC_FILE).write_text(json.dumps(spec))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quant.random_folder")
    parser.add_argument("folder", type=Path)
    for name in ("double", "single", "heads", "tokens"):
        parser.add_argument(f"--{name}", type=int, default=getattr(FULL, name))
    options = parser.parse_args()
    write(options.folder, Size(options.double, options.single, options.heads, options.tokens))


if __name__ == "__main__":
    main()
