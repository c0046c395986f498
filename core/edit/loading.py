"""From a model's folder to tensors that can edit: the heavy half of `core.edit.models`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from core.edit import native
from core.edit.models import ModelSpec
from core.edit.placement import CONTEXT_BYTES, EVERYTHING, TILE, Encoders, Placement
from core.edit.shelf import Shelf
from core.errors import UnavailableError

MAX_PROMPTS = 512
"""Encoded prompts kept in main memory; one of kontext-dev takes 4 MiB."""


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt: T5's [1, text tokens, joint width] and CLIP's pooled [1, pooled width]."""

    embeddings: Tensor
    pooled: Tensor


@dataclass
class Model:
    """A loaded model: diffusers' and transformers' own parts, plus the prompts it has encoded so far.

    encoders: how the text encoders come to the device when there is something to encode; shelf: where they lie
    otherwise, None where they stay.
    """

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    transformer: Any
    """None where another runtime predicts."""
    guidance_embeds: bool
    vae: Any
    scheduler: Any
    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any
    prompts: dict[str, Prompt] = field(default_factory=dict)
    encoders: Encoders = "stay"
    shelf: Shelf | None = None

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def pick_device(device: str = "auto") -> torch.device:
    """`auto`: the first CUDA GPU where there is one, else the CPU. Raises UnavailableError for a GPU not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UnavailableError(f"there is no {device} here ({count} CUDA GPUs); use `--device cpu` or `auto`")
    return chosen


def limit_memory(device: torch.device, limit: int | None, *, beside: int = 0) -> None:
    """Let this process take at most `limit` bytes of a GPU, its context and what others hold `beside` torch included;
    what a model that has gone left cached goes back first."""
    if device.type != "cuda":
        return
    gc.collect()
    torch.cuda.empty_cache()
    if limit is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        share = max(0, limit - CONTEXT_BYTES - beside) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device.index or 0)


def load(
    spec: ModelSpec,
    folder: Path,
    device: torch.device,
    *,
    transformer: bool = True,
    placement: Placement = EVERYTHING,
    prompts: Sequence[str] = (),
    upcoming: Callable[[], Sequence[str]] = tuple,
) -> Model:
    """Load every part of the model: BF16 on a GPU, float32 on a CPU (where BF16 takes twenty times as long).

    transformer: False leaves it out, for a runtime that has its own. prompts: encoded before the transformer takes
    the room, where the text encoders do not stay; upcoming: as for `encode_prompts`.

    Raises UnavailableError where the files are not what their names say.
    """
    _quiet()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    stay = placement.encoders == "stay"
    home = device if stay else torch.device("cpu")
    with _refusals(spec, folder):
        model = Model(
            spec=spec,
            device=device,
            dtype=dtype,
            transformer=None,
            guidance_embeds=bool(FluxTransformer2DModel.load_config(folder / "transformer")["guidance_embeds"]),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            text_encoder=_on(CLIPTextModel, folder / "text_encoder", home, dtype=dtype),
            tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            text_encoder_2=_on(T5EncoderModel, folder / "text_encoder_2", home, dtype=dtype),
        )
    if not stay:
        model.encoders, model.shelf = placement.first, Shelf(model.text_encoder, model.text_encoder_2)
        encode_prompts(model, prompts, upcoming)
        model.encoders = placement.encoders
    with _refusals(spec, folder):
        model.vae = fast_vae(_on(AutoencoderKL, folder / "vae", device, torch_dtype=dtype), device)
        if transformer:
            model.transformer = _on(FluxTransformer2DModel, folder / "transformer", device, torch_dtype=dtype)
    if placement.tiled:
        _tile(model.vae)
    return model


def fast_vae(vae: Any, device: torch.device) -> Any:
    """On a GPU, in place: pictures channels last, as tensor cores read them, where norms can leave them so. With
    torch's own norms, which want them first, that order takes longer than the other."""
    if device.type != "cuda" or not native.can_compile():
        return vae
    from core.edit.native.vae import quicken

    return vae.to(memory_format=torch.channels_last) if quicken(vae) else vae


@contextmanager
def _refusals(spec: ModelSpec, folder: Path) -> Iterator[None]:
    """What libraries raise at files that are not what their names say, as UnavailableError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"{spec.name} cannot be loaded from {folder}: {reason}") from error


def rearrange(model: Model, placement: Placement) -> None:
    """Place a loaded model's parts anew. Tiles may change a picture in its last bits; where encoders lie does not."""
    parts = (model.text_encoder, model.text_encoder_2)
    if placement.encoders == "stay" and model.shelf is not None:
        model.shelf = None
        for part in parts:
            part.to(model.device)
    elif placement.encoders != "stay" and model.shelf is None:
        model.shelf = Shelf(*parts)
    model.encoders = placement.encoders
    if placement.tiled:
        _tile(model.vae)
    else:
        model.vae.disable_tiling()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _tile(vae: Any) -> None:
    """Let a VAE work in tiles of `TILE` pixels a side."""
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)


def encode_prompt(model: Model, text: str) -> Prompt:
    """A prompt's encoding on the model's device: CLIP's pooled output and T5's tokens, as FluxKontextPipeline does.

    Encoded now where it is not known yet.
    """
    encode_prompts(model, [text])
    prompt = model.prompts[text]
    return Prompt(prompt.embeddings.to(model.device), prompt.pooled.to(model.device))


def encode_prompts(model: Model, texts: Sequence[str], upcoming: Callable[[], Sequence[str]] = tuple) -> None:
    """Encode what of these prompts is not known yet, each text once; the last `MAX_PROMPTS` are kept.

    upcoming: those that will be asked for later. They are encoded along where the text encoders come whole to the
    GPU for it, which is the dear part.
    """
    if any(text not in model.prompts for text in texts):
        wanted = list(texts)
        if model.encoders == "visit":
            wanted = [*texts, *upcoming()][:MAX_PROMPTS]
        _encode(model, [text for text in dict.fromkeys(wanted) if text not in model.prompts])
    for text in texts:
        model.prompts[text] = model.prompts.pop(text)  # the last used stand last
    while len(model.prompts) > MAX_PROMPTS:
        del model.prompts[next(iter(model.prompts))]


def _encode(model: Model, texts: Sequence[str]) -> None:
    """Add the encodings of texts, with the text encoders on the device for as long as that takes."""
    if model.shelf is not None and model.encoders == "visit":
        try:
            with model.shelf.whole(model.device):
                _encode_here(model, texts)
                return
        except torch.cuda.OutOfMemoryError:  # somebody else has taken what was free: a layer will find room
            model.encoders = "stream"
    with model.shelf.streamed(model.device) if model.shelf is not None else nullcontext():
        _encode_here(model, [text for text in texts if text not in model.prompts])


@torch.inference_mode()
def _encode_here(model: Model, texts: Sequence[str]) -> None:
    for text in texts:
        clip_ids = _tokens(model.tokenizer, text, model.tokenizer.model_max_length)
        t5_ids = _tokens(model.tokenizer_2, text, model.spec.text_tokens)
        model.prompts[text] = Prompt(
            embeddings=model.text_encoder_2(t5_ids.to(model.device))[0].to("cpu", model.dtype),
            pooled=model.text_encoder(clip_ids.to(model.device)).pooler_output.to("cpu", model.dtype),
        )


def _tokens(tokenizer: Any, text: str, length: int) -> Tensor:
    ids: Tensor = tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _on(cls: Any, folder: Path, device: torch.device, **options: Any) -> Any:
    part = cls.from_pretrained(folder, local_files_only=True, **options)
    if absent := [name for name, weight in part.named_parameters() if weight.is_meta]:
        raise ValueError(f"its files lack {absent[0]}, which config.json asks for ({len(absent)} in all)")
    return part.to(device).eval().requires_grad_(False)


def _quiet() -> None:
    """Loading talks to stderr, where our own progress stands."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
