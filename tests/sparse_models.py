"""FLUX.1 Kontext [dev] by its sizes: real headers and configs over files with holes, which take no disk."""

from __future__ import annotations

import json
from pathlib import Path

T5_LAYER = {name: [10240 if name.startswith("w") else 4096, 4096] for name in (*"qkvo", "wi_0", "wi_1", "wo")}
CLIP_LAYER = {name: [768, 3072 if name.startswith("f") else 768] for name in (*"qkvo", "fc1", "fc2")}
SHAPES = {
    "transformer": {"blocks.weight": [11_901_408_320]},
    "text_encoder": {
        "embeddings": [49408, 768], **{f"{n}.{name}": shape for n in range(12) for name, shape in CLIP_LAYER.items()},
    },
    "text_encoder_2": {
        "shared": [32128, 4096], **{f"{n}.{name}": shape for n in range(24) for name, shape in T5_LAYER.items()},
    },
    "vae": {"decoder": [83_819_683]},
}  # fmt: skip
"""Numbers of parameters as published: 23.8 GB, 0.25, 9.5 and 0.17 in BF16."""
CONFIGS = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel", "num_layers": 19, "num_single_layers": 38,
        "num_attention_heads": 24, "attention_head_dim": 128,
    },
    "text_encoder": {},
    "text_encoder_2": {"d_ff": 10240},
    "vae": {"block_out_channels": [128, 256, 512, 512]},
}  # fmt: skip


def make_dev(folder: Path) -> Path:
    """A folder that `core.edit.models.check_folder` takes for whole."""
    for part in ("tokenizer", "tokenizer_2", "scheduler", *SHAPES):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    for part, shapes in SHAPES.items():
        (folder / part / "config.json").write_text(json.dumps(CONFIGS[part]))
        header, end = {}, 0
        for name, shape in shapes.items():
            size = 2
            for length in shape:
                size *= length
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        raw = json.dumps(header).encode()
        with (folder / part / "model.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + end)
    return folder
