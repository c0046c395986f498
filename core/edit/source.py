"""What a turn starts from and what comes of it: pictures between the disk and the model, in as little memory as that
takes.

A `Source` is the picture as the model will see it. A `Result` is what the model made of one, on its way to a file and
to the turns that start from it: those get the very pixels that the file gives back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from core.edit import images
from core.edit.geometry import Size, from_working, to_working, working_size

LOSSLESS = (".png",)
"""Suffixes of files whose pixels are those that were written."""


@dataclass(frozen=True)
class Source:
    """A picture to start from."""

    rgb: Image.Image
    """At the picture's own size, or, once it was `fit`, at the model's."""
    size: Size
    """The picture's own."""
    alpha: Image.Image | None
    notes: tuple[str, ...]
    sha256: Callable[[], str]
    """Of the file; of one that is still being written it waits, and raises what went wrong with it."""

    def fit(self, sizes: Sequence[Size], *, hurry: bool = True) -> Source:
        """The picture at the size that a model of these sizes works at; none: at its own."""
        if not sizes:
            return self
        return replace(self, rgb=to_working(self.rgb, working_size(*self.size, sizes), hurry=hurry))


def load(path: Path, *, max_pixels: int = images.MAX_PIXELS) -> Source:
    """Read and decode a picture. Raises InputError."""
    picture = images.load(path, max_pixels=max_pixels)
    return Source(picture.rgb, picture.size, picture.alpha, picture.notes, lambda: picture.sha256)


class Result:
    """What a turn made: the model's picture, brought to its full size and transparency by whoever asks first."""

    def __init__(self, image: Image.Image, size: Size | None, alpha: Image.Image | None) -> None:
        """size: of the result; None is the model's."""
        self._image, self._size, self._alpha = image, size, alpha
        self._lock = threading.Lock()
        self._whole: Image.Image | None = None

    def whole(self, *, hurry: bool = False) -> Image.Image:
        """RGB or RGBA, as it goes into the file. hurry: somebody waits for it who has a GPU to keep busy."""
        with self._lock:
            if self._whole is None:
                image = self._image
                if self._size is not None:
                    image = from_working(image, self._size, hurry=hurry)
                self._whole = images.unflatten(image, self._alpha)
            return self._whole

    def source(self, sha256: Callable[[], str]) -> Source:
        """What `load` gives of the file, where that is `LOSSLESS`."""
        image, alpha = self.whole(hurry=True), None
        if image.mode == "RGBA":
            alpha = image.getchannel("A")
            image = images.flatten(image.convert("RGB"), alpha)
            alpha = alpha if alpha.getextrema() != (255, 255) else None
        return Source(image, image.size, alpha, (), sha256)
