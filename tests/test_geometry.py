"""Sizes: the nearest bucket, and the way there and back without losing pixels or sharpness."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.edit.geometry import (
    KONTEXT_BUCKETS,
    distortion,
    from_working,
    to_working,
    working_size,
)

SIDES = st.integers(1, 20_000)


def photograph(size: tuple[int, int]) -> Image.Image:
    """Detail at every scale, as in a photograph: noise whose amplitude falls with its frequency."""
    noise = np.random.default_rng(3).normal(size=(size[1], size[0], 3))
    frequency = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.fftfreq(size[0])[None])[..., None]
    detail = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / (frequency + 0.01) ** 1.4, axes=(0, 1)).real
    return Image.fromarray(np.clip(128 + 45 * detail / detail.std(), 0, 255).astype(np.uint8))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """In dB."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_the_buckets_are_those_kontext_was_trained_on() -> None:
    assert len(set(KONTEXT_BUCKETS)) == len(KONTEXT_BUCKETS) == 17
    assert all((height, width) in KONTEXT_BUCKETS for width, height in KONTEXT_BUCKETS)
    tokens = [width * height // 256 for width, height in KONTEXT_BUCKETS]
    assert (min(tokens), max(tokens)) == (4042, 4150)
    assert all(side % 16 == 0 for size in KONTEXT_BUCKETS for side in size)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((4000, 3000), (1184, 880)),
        ((3000, 4000), (880, 1184)),
        ((6000, 4000), (1248, 832)),
        ((1920, 1080), (1392, 752)),
        ((1000, 1000), (1024, 1024)),
        ((1, 5000), (672, 1568)),
    ],
)
def test_a_picture_gets_the_bucket_of_its_shape(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert working_size(*size, KONTEXT_BUCKETS) == bucket


@given(SIDES, SIDES)
def test_no_other_bucket_is_nearer(width: int, height: int) -> None:
    def distance(bucket: tuple[int, int]) -> float:
        return abs(log(width / height) - log(bucket[0] / bucket[1]))

    assert distance(working_size(width, height, KONTEXT_BUCKETS)) <= min(map(distance, KONTEXT_BUCKETS)) + 1e-12


@given(SIDES, SIDES)
def test_a_picture_on_its_side_gets_the_bucket_on_its_side(width: int, height: int) -> None:
    across, along = working_size(width, height, KONTEXT_BUCKETS)
    if width != height:
        assert working_size(height, width, KONTEXT_BUCKETS) == (along, across)


@given(st.permutations(KONTEXT_BUCKETS), SIDES, SIDES)
def test_the_order_of_the_buckets_does_not_matter(buckets: list[tuple[int, int]], width: int, height: int) -> None:
    assert working_size(width, height, buckets) == working_size(width, height, KONTEXT_BUCKETS)


def test_of_equally_near_buckets_the_one_with_more_pixels_then_the_wider() -> None:
    assert working_size(10, 10, [(256, 256), (512, 512)]) == (512, 512)
    assert working_size(10, 10, [(128, 256), (256, 128)]) == (256, 128)


def test_the_tiny_model_has_one_size() -> None:
    assert working_size(4000, 3000, ((256, 256),)) == (256, 256)


@pytest.mark.parametrize(
    ("size", "bucket", "percent"),
    [((1920, 1080), (1392, 752), 4.12), ((1080, 1920), (752, 1392), 4.12), ((3, 2), (1248, 832), 0)],
)
def test_distortion_is_in_per_cent(size: tuple[int, int], bucket: tuple[int, int], percent: float) -> None:
    assert distortion(size, bucket) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize("size", [(1024, 683), (683, 1024), (100, 90), (1, 1), (1, 5000), (257, 3)])
def test_a_result_has_exactly_the_pictures_size(size: tuple[int, int]) -> None:
    working = to_working(photograph(size), (256, 256))
    assert working.size == (256, 256)
    assert from_working(working, size).size == size


def test_a_picture_of_the_working_size_is_not_touched() -> None:
    image = photograph((256, 256))
    assert to_working(image, (256, 256)) is image
    assert from_working(image, (256, 256)) is image


def test_nothing_is_cropped() -> None:
    image = Image.new("RGB", (600, 200), "black")
    image.paste("white", (0, 0, 20, 200))
    image.paste("white", (580, 0, 600, 200))
    working = to_working(image, (256, 256))
    assert [working.getpixel((x, 128)) for x in (2, 128, 253)] == [(255,) * 3, (0,) * 3, (255,) * 3]


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_flat_colour_stays_what_it_is(level: int) -> None:
    flat = Image.new("RGB", (256, 256), (level, level, 255 - level))
    assert to_working(from_working(flat, (1000, 700)), (256, 256)).tobytes() == flat.tobytes()


def test_five_trips_there_and_back_lose_little() -> None:
    first = photograph((256, 256))
    plain = turn = first
    for _ in range(5):
        turn = to_working(from_working(turn, (1024, 683)), (256, 256))
        plain = plain.resize((1024, 683), Image.Resampling.BICUBIC).resize((256, 256), Image.Resampling.BICUBIC)
    assert psnr(turn, first) > 34
    assert psnr(turn, first) > psnr(plain, first) + 6
