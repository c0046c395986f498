"""From a model's folder to tensors that can edit: the heavy half of `core.edit.models`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from core.edit.models import ModelSpec
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
    """A loaded model: diffusers' and transformers' own parts, plus the prompts it has encoded so far."""

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


def load(spec: ModelSpec, folder: Path, device: torch.device, *, transformer: bool = True) -> Model:
    """Load every part of the model: BF16 on a GPU, float32 on a CPU (where BF16 takes twenty times as long).

    transformer: False leaves it out, for a runtime that has its own.

    Raises UnavailableError where the files are not what their names say.
    """
    _quiet()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return Model(
            spec=spec,
            device=device,
            dtype=dtype,
            transformer=_on(FluxTransformer2DModel, folder / "transformer", device, torch_dtype=dtype)
            if transformer
            else None,
            guidance_embeds=bool(FluxTransformer2DModel.load_config(folder / "transformer")["guidance_embeds"]),
            vae=_on(AutoencoderKL, folder / "vae", device, torch_dtype=dtype),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            text_encoder=_on(CLIPTextModel, folder / "text_encoder", device, dtype=dtype),
            tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            text_encoder_2=_on(T5EncoderModel, folder / "text_encoder_2", device, dtype=dtype),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"{spec.name} cannot be loaded from {folder}: {reason}") from error


def shrink(model: Model) -> bool:
    """Work in less memory: text encoders on the CPU, VAE in tiles (which may change a result in the last bits).

    False where that is done already.
    """
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if model.vae.use_tiling:
        return False
    model.vae.enable_tiling()
    model.text_encoder.to("cpu")
    model.text_encoder_2.to("cpu")
    return True


@torch.inference_mode()
def encode_prompt(model: Model, text: str) -> Prompt:
    """Encode a prompt, once per text: CLIP's pooled output and T5's tokens, as FluxKontextPipeline does."""
    prompt = model.prompts.pop(text, None)
    if prompt is None:
        clip_ids = _tokens(model.tokenizer, text, model.tokenizer.model_max_length)
        t5_ids = _tokens(model.tokenizer_2, text, model.spec.text_tokens)
        prompt = Prompt(
            embeddings=model.text_encoder_2(t5_ids.to(model.text_encoder_2.device))[0].to("cpu", model.dtype),
            pooled=model.text_encoder(clip_ids.to(model.text_encoder.device)).pooler_output.to("cpu", model.dtype),
        )
    model.prompts[text] = prompt  # the last used stands last
    while len(model.prompts) > MAX_PROMPTS:
        del model.prompts[next(iter(model.prompts))]
    return Prompt(prompt.embeddings.to(model.device), prompt.pooled.to(model.device))


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
