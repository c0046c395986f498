"""The table of what precisions cost, as the command prints it and the app shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kontext_tui.figures import size

_COLUMNS = {"psnr": 1, "psnr_worst": 1, "ssim": 4, "flip": 4, "lpips": 4, "target_psnr": 1, "step_ms": 0}
_NAMES = ("PSNR dB", "worst", "SSIM", "FLIP", "LPIPS", "to target", "ms a step")
HEADINGS = ("precision", "runtime", *_NAMES, "weights")


def table(precisions: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row a precision under HEADINGS. Figures are medians over the edits, PSNR to `target` where one is known."""
    return [
        (
            name,
            str(values.get("runtime", "")),
            *(f"{values[key]:.{digits}f}" if key in values else "" for key, digits in _COLUMNS.items()),
            size(values["bytes"]) if values.get("bytes") else "",
        )
        for name, values in precisions.items()
    ]
