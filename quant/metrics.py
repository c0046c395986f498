"""How near one picture is to another: PSNR, SSIM, FLIP and, where it is installed, LPIPS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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
    network = lpips_network()
    learned = None if network is None else float(network(one * 2 - 1, two * 2 - 1))
    return Closeness(psnr(ours, theirs), float(ssim), float(flip), learned)


@cache
def lpips_network() -> Any:
    """LPIPS on AlexNet, which takes [1, 3, height, width] in -1..1; None without the extra or AlexNet's weights
    (torchvision fetches them once)."""
    try:
        import lpips

        return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except (ImportError, OSError):
        return None


def psnr(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Peak signal to noise in dB of arrays in 0..1."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
