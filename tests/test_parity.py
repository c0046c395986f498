"""The sampler gives bit for bit what diffusers' FluxKontextPipeline gives, on a CPU in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core.edit import editor
from core.edit.loading import Model
from core.edit.runtimes.torch_runtime import TorchRuntime


@pytest.fixture(scope="module")
def pipeline(tiny: Model):
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline(
        scheduler=tiny.scheduler,
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        tokenizer=tiny.tokenizer,
        text_encoder_2=tiny.text_encoder_2,
        tokenizer_2=tiny.tokenizer_2,
        transformer=tiny.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("size", "seed", "steps", "guidance", "prompt"),
    [
        ((256, 256), 7, 8, 2.5, "Add a red balloon at the top left"),
        ((256, 256), 2**40 + 1, 3, 4.0, "make it black and white"),
        ((320, 208), 0, 5, 2.5, "Remove the cat."),
        ((192, 336), 11, 2, 1.0, "turn the sky green, whatever that may be; " * 12),  # cut at 48 tokens
        ((64, 48), 3, 12, 2.5, "ünïcödé ☂ prompt"),
    ],
)
def test_same_bits_as_the_diffusers_pipeline(tiny, pipeline, photo, size, seed, steps, guidance, prompt):
    image = photo.resize(size)
    expected = pipeline(
        image=image,
        prompt=prompt,
        height=size[1],
        width=size[0],
        max_area=size[0] * size[1],
        _auto_resize=False,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=tiny.spec.text_tokens,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    latents, step_ms = editor.edit_latents(
        tiny,
        TorchRuntime(tiny.transformer),
        editor.to_pixels(image, tiny),
        prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
    )
    result = editor.to_image(editor.decode(tiny, latents, *size))
    assert len(step_ms) == steps
    assert np.array_equal(np.asarray(result), np.asarray(expected))


def test_the_latents_are_equal_before_rounding_to_8_bits(tiny, pipeline, photo):
    image = photo.resize((256, 256))
    arguments = {"seed": 5, "steps": 4, "guidance": 2.5}
    expected = pipeline(
        image=image,
        prompt="add fog",
        height=256,
        width=256,
        max_area=256 * 256,
        _auto_resize=False,
        num_inference_steps=4,
        guidance_scale=2.5,
        max_sequence_length=tiny.spec.text_tokens,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    runtime = TorchRuntime(tiny.transformer)
    latents, _ = editor.edit_latents(tiny, runtime, editor.to_pixels(image, tiny), "add fog", **arguments)
    assert torch.equal(latents, expected)


def test_another_seed_gives_another_picture(tiny, photo):
    runtime, pixels = TorchRuntime(tiny.transformer), editor.to_pixels(photo.resize((64, 64)), tiny)
    one, two = (
        editor.edit_latents(tiny, runtime, pixels, "add a cat", seed=seed, steps=2, guidance=2.5)[0]
        for seed in (1, 2)
    )
    assert not torch.equal(one, two)
    assert isinstance(photo, Image.Image)
