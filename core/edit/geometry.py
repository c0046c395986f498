"""Sizes: which size a model works at for a picture, and the way there and back to the picture's own pixels.

A model is trained on a few sizes, its buckets. A picture is stretched to the bucket nearest in aspect ratio,
whole, with nothing cropped, and the result is stretched back to exactly the size the picture came with.
All sizes are (width, height) in pixels; all pictures are RGB with 8 bits a channel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Size = tuple[int, int]

BAND_PIXELS = 1 << 20
"""Read or written by a thread that shares in a resize; of fewer, handing over costs more than it saves."""
MAX_THREADS = 8


_PORTRAIT = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
)
KONTEXT_BUCKETS: tuple[Size, ...] = (
    *_PORTRAIT,
    (1024, 1024),
    *((height, width) for width, height in reversed(_PORTRAIT)),
)
"""The 17 sizes FLUX.1 Kontext was trained on, from tallest to widest: 4042 to 4150 tokens each."""


def working_size(width: int, height: int, buckets: Iterable[Size]) -> Size:
    """The bucket with the nearest aspect ratio, by log ratio; of equals the one with more pixels, then the wider.

    Ratios are compared as exact fractions: rounding decides nothing, and a picture lying on its side gets the
    same bucket on its side.
    """
    return min(buckets, key=lambda bucket: (_stretch((width, height), bucket), -bucket[0] * bucket[1], -bucket[0]))


def distortion(size: Size, working: Size) -> float:
    """How much the stretch to the working size changes the aspect ratio, in per cent; 0 is none."""
    return 100 * float(_stretch(size, working) - 1)


def to_working(image: Image.Image, working: Size, *, hurry: bool = True) -> Image.Image:
    """The whole picture at the model's working size. The same object comes back when it already fits.

    hurry: by several threads, where there is that much to do.
    """
    if image.size == working:
        return image
    return resize(image, working, hurry=hurry)


def from_working(image: Image.Image, size: Size, *, hurry: bool = True) -> Image.Image:
    """A result at the picture's own size, such that `to_working` gives it back as nearly as can be. hurry: as there.

    A chain of turns makes this trip once a turn, so what the filters lose adds up. Lanczos both ways loses least.
    When the picture is the larger one, the loss of a trip is also measured and added to the result beforehand
    (resampling is linear), which takes 0.3 s more for 10.7 megapixels. When the picture is smaller it cannot hold
    the result, and the same would only sharpen it.

    Photographs, 8 bits. PSNR of the working image after one and after five trips; of the enlarged image against
    the photograph; overshoot, the mean distance from the range of the neighbouring pixels, in levels of 255:

        enlarged / reduced by     4000x2667 and 1248x832             1024x683 and 256x256
        bilinear / Lanczos        43.4  35.1  38.5 dB   0.000        50.9  43.7  45.2 dB   0.000
        bicubic / Lanczos         48.3  40.2  40.1 dB   0.006        56.2  49.4  46.5 dB   0.006
        Lanczos / bicubic         48.2  40.1  40.8 dB   0.025        56.1  49.4  47.1 dB   0.019
        Lanczos / Lanczos         50.6  42.4  40.8 dB   0.025        58.5  51.7  47.1 dB   0.019
        with the loss added       56.0  48.0  41.3 dB   0.042        62.6  56.1  47.6 dB   0.032
    """
    if image.size == size:
        return image
    if size[0] >= image.width and size[1] >= image.height:
        image = _compensated(image, size, hurry=hurry)
    return resize(image, size, hurry=hurry)


def resize(image: Image.Image, size: Size, *, hurry: bool = True) -> Image.Image:
    """Pillow's Lanczos; in a hurry by several threads, to the bit.

    Pillow resamples rows first, rounds, and then columns: no row knows of another in the first pass and no column in
    the second, so each pass is cut into bands.
    """
    (width, height), threads = size, _threads() if hurry else 1
    bands = min(threads, max(image.width * image.height, width * height) // BAND_PIXELS)
    if bands < 2:
        return image.resize(size, Image.Resampling.LANCZOS)
    if image.width != width:
        image = _in_bands(
            image, (width, image.height), _cuts(image.height, bands), lambda cut: (0, cut[0], image.width, cut[1]),
            lambda cut: (0, cut[0], width, cut[1]),
        )  # fmt: skip
    if image.height != height:
        image = _in_bands(
            image, size, _cuts(width, bands), lambda cut: (cut[0], 0, cut[1], image.height),
            lambda cut: (cut[0], 0, cut[1], height),
        )  # fmt: skip
    return image


def _in_bands(
    image: Image.Image,
    size: Size,
    cuts: list[tuple[int, int]],
    source: Callable[[tuple[int, int]], tuple[int, int, int, int]],
    target: Callable[[tuple[int, int]], tuple[int, int, int, int]],
) -> Image.Image:
    result = Image.new(image.mode, size)

    def work(cut: tuple[int, int]) -> None:
        box = target(cut)
        band = image.crop(source(cut)).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        result.paste(band, box)

    list(_pool().map(work, cuts))
    return result


def _cuts(length: int, bands: int) -> list[tuple[int, int]]:
    edges = [length * index // bands for index in range(bands + 1)]
    return [(start, end) for start, end in pairwise(edges) if start < end]


@cache
def _threads() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MAX_THREADS)


@cache
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(_threads(), thread_name_prefix="resize")


def _compensated(image: Image.Image, size: Size, *, hurry: bool) -> Image.Image:
    """The image plus what a trip to `size` and back takes away from it."""
    import numpy as np  # 0.15 s to import: commands that only look at sizes do without

    there_and_back = resize(resize(image, size, hurry=hurry), image.size, hurry=hurry)
    wanted, got = (np.asarray(each, np.int16) for each in (image, there_and_back))
    return Image.fromarray(np.clip(2 * wanted - got, 0, 255).astype(np.uint8))


def _stretch(size: Size, working: Size) -> Fraction:
    """The ratio of the two aspect ratios, the larger over the smaller: 1 is no distortion."""
    across, along = size[0] * working[1], size[1] * working[0]
    return Fraction(max(across, along), min(across, along))
