"""The model in training: kontext-tiny's folder as float32 modules, grown or made anew, and written back in BF16."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.edit import editor, sampling
from core.edit.loading import Model, load
from core.edit.models import find_spec, locate
from examples.tiny import vocabulary
from examples.tiny.bank import Index
from examples.tiny.words import TEXT_TOKENS

SHIPPED = Path(__file__).parents[2] / "core" / "data" / "kontext-tiny"
GUIDANCE = 2.5
PARTS = ("transformer", "text_encoder", "text_encoder_2")
"""Folders of what is trained; the rest of a model's folder is copied."""


def open_model(folder: Path, device: torch.device) -> Model:
    """A model's folder in float32, with all of it on the device."""
    spec = find_spec(str(folder))
    model = load(spec, locate(spec), torch.device("cpu"))
    for part in (model.transformer, model.vae, model.text_encoder, model.text_encoder_2):
        part.to(device)
    return replace(model, device=device)


def trainable(model: Model) -> nn.ModuleDict:
    """The parts that learn, under their folders' names."""
    net = nn.ModuleDict({name: getattr(model, name) for name in PARTS})
    return net.requires_grad_(True).train()


def with_words(source: Path, target: Path, index: Index) -> None:
    """Copy a model's folder and let its T5 know every word of the templates, each as the mean of its old pieces."""
    from transformers import AutoTokenizer, T5EncoderModel

    copy_model(source, target, leave=set())
    folder, old = target / "tokenizer_2", AutoTokenizer.from_pretrained(source / "tokenizer_2")
    encoder = T5EncoderModel.from_pretrained(source / "text_encoder_2", dtype=torch.float32)
    first = encoder.config.vocab_size
    size = vocabulary.grow(folder / "tokenizer.json", vocabulary.known_words(index))
    if size == first:
        return
    pieces = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(first, size)))
    table = encoder.get_input_embeddings().weight.detach()
    spelled = [old(piece.removeprefix(vocabulary.METASPACE), add_special_tokens=False).input_ids for piece in pieces]
    rows = torch.stack([table[ids].mean(0) for ids in spelled])
    encoder.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[first:] = rows
    save_part(encoder, target / "text_encoder_2")


def more_blocks(folder: Path, count: int) -> None:
    """Put `count` single blocks behind the last, in place: copies of the last ones whose output is 0, so that the
    model predicts what it did and may go on learning from there (a residual network's way to grow)."""
    if not count:
        return
    from diffusers import FluxTransformer2DModel

    old = FluxTransformer2DModel.from_pretrained(folder / "transformer", local_files_only=True)
    config = {**old.config, "num_single_layers": old.config.num_single_layers + count}
    new = FluxTransformer2DModel.from_config(config)
    new.load_state_dict(old.state_dict(), strict=False)  # what is missing follows
    blocks = new.single_transformer_blocks
    first = len(blocks) - count
    with torch.no_grad():
        for index in range(first, len(blocks)):
            blocks[index].load_state_dict(blocks[index - min(count, first)].state_dict())
            blocks[index].proj_out.weight.zero_()
            blocks[index].proj_out.bias.zero_()
    save_part(new, folder / "transformer")


def start_anew(net: nn.ModuleDict, seed: int) -> None:
    """Fresh weights in place, such that the first velocity is 0 and each block may already look at the context.

    adaLN starts with open gates of a half; head 0 of each block asks the rope for the same place of the context image
    (position (1, y, x) from (0, y, x)), which spares the model finding out that most of the picture stays.
    """
    torch.manual_seed(seed)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name in ("text_encoder", "text_encoder_2"):
        for module in net[name].modules():
            net[name]._init_weights(module)
    transformer: Any = net["transformer"]
    width = transformer.inner_dim
    with torch.no_grad():
        for name, module in transformer.named_modules():
            if name.endswith(".linear") and "norm" in name:
                module.weight.zero_()
                module.bias.zero_()
                for gate in {6 * width: (2, 5), 3 * width: (2,)}.get(module.out_features, ()):
                    module.bias[gate * width : (gate + 1) * width] = 0.5
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            _look_at_the_context(block.attn)


def _look_at_the_context(attention: Any) -> None:
    """Bias queries and keys of head 0 so that rope turns them alike at the same place one image further."""
    head = attention.norm_q.weight.numel()
    query, key = torch.zeros(head), torch.zeros(head)
    for pair in (16, 18, 40, 42):  # the quickest two of the rows' and of the columns' frequencies
        query[pair] = key[pair] = 1
    query[0] = 1  # the images' slowest: one step apart is one radian
    key[0], key[1] = math.cos(-1.0), math.sin(-1.0)
    for weights, bias in ((attention.to_q, query), (attention.to_k, key)):
        weights.weight[:head] *= 0.15
        weights.bias[:head] = bias.to(weights.bias)
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(1.4)


def token_ids(model: Model, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """CLIP's and T5's ids, [N, TEXT_TOKENS] each. CLIP looks only backwards, so its padding may be shorter."""
    found = [
        tokenizer(list(prompts), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
        for tokenizer in (model.tokenizer, model.tokenizer_2)
    ]
    return found[0].input_ids, found[1].input_ids


def image_ids(size: tuple[int, int], like: Tensor) -> Tensor:
    """Rope positions [2 T, 3] of a picture of `size` pixels and of its context, as the editor makes them."""
    width, height = (side // 8 for side in size)
    return torch.cat([sampling.token_ids(height, width, context=context, like=like) for context in (False, True)])


def to_tokens(model: Model, image: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in 0..1 as float32 tokens."""
    return sampling.pack(editor.encode(model, (2 * image - 1).to(model.vae.dtype))).float()


def through_vae(model: Model, image: Tensor) -> Tensor:
    """Pictures as they come out of the VAE, in 8-bit levels."""
    tokens = to_tokens(model, image).to(model.vae.dtype)
    pixels = editor.decode(model, tokens, image.shape[3], image.shape[2]).float()
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round() / 255


def velocity(
    net: nn.ModuleDict, noisy: Tensor, context: Tensor, clip: Tensor, t5: Tensor, sigma: Tensor, ids: Tensor
) -> Tensor:
    """The predicted velocity [N, T, 64] of tokens [N, T, 64] at sigma [N], for prompts as ids."""
    prompt = net["text_encoder_2"](input_ids=t5)[0]
    found: Tensor = net["transformer"](
        hidden_states=torch.cat([noisy, context], dim=1),
        encoder_hidden_states=prompt,
        pooled_projections=net["text_encoder"](input_ids=clip).pooler_output,
        timestep=sigma,
        img_ids=ids,
        txt_ids=torch.zeros(t5.shape[1], 3, device=ids.device),
        guidance=torch.full_like(sigma, GUIDANCE),
        return_dict=False,
    )[0]
    return found[:, : noisy.shape[1]]


def copy_model(source: Path, target: Path, leave: set[str]) -> None:
    """A model's folder without some of its parts. Files are written anew: a read-only source gives no such copies."""
    for file in source.rglob("*"):
        inside = file.relative_to(source)
        if file.is_file() and inside.parts[0] not in leave:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / inside)


def write_model(
    source: Path, target: Path, blank: nn.ModuleDict, weights: Mapping[str, Tensor], shard: str = "1GB"
) -> None:
    """A diffusers folder in BF16: `weights` (named as trainable()'s) in the trained parts, the rest copied.

    blank: modules of the same shapes, which are overwritten. shard: the largest file, as "15MB".
    """
    copy_model(source, target, leave=set(PARTS))
    missing = blank.load_state_dict({k: v.detach().cpu() for k, v in weights.items()}, strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"weights that the model has no place for: {missing.unexpected_keys[:3]}")
    for name in PARTS:
        shutil.rmtree(target / name, ignore_errors=True)
        save_part(copy.deepcopy(blank[name]), target / name, shard)


def save_part(module: Any, folder: Path, shard: str = "1GB") -> None:
    """Write a diffusers or transformers module, which becomes BF16; not where it was read from."""
    module.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")
