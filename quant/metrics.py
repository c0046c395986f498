"""How near one picture is to another: PSNR, SSIM, FLIP and, where it is installed, LPIPS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Closeness:
    """Of a picture to a reference of the same size, both RGB with 8 bits a channel.

    psnr: dB over all channels, infinite for equal pictures. ssim: structural similarity, 1 for equal pictures
    (Wang et al. 2004). flip: mean perceived difference at arm's length, 0 to 1 (Andersson et al. 2020, LDR).
    lpips: learned distance (Zhang et al. 2018, AlexNet), None without the extra.
    """

    psnr: float
    ssim: float
    flip: float
    lpips: float | None = None


def closeness(image: Image.Image, reference: Image.Image) -> Closeness:
    """How near `image` comes to `reference`."""
    import flip_evaluator
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (np.asarray(each, dtype=np.float32) / 255 for each in (image, reference))
    one, two = (torch.from_numpy(each.transpose(2, 0, 1)[None]) for each in (ours, theirs))
    ssim = structural_similarity_index_measure(one, two, data_range=1.0)
    assert isinstance(ssim, torch.Tensor)
    _, flip, _ = flip_evaluator.evaluate(theirs, ours, "LDR", applyMagma=False)
    return Closeness(psnr(ours, theirs), float(ssim), float(flip))


def psnr(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Peak signal to noise in dB of arrays in 0..1."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
