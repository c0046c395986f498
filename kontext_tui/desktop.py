"""Handing a file to the desktop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def open_file(path: str) -> str | None:
    """Open a file with what the desktop opens it with; why not, where that cannot be. Waits for nothing."""
    program = "open" if sys.platform == "darwin" else "xdg-open"
    if not os.path.exists(path):  # noqa: PTH110 - any string may come
        return "the file is gone"
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if program == "xdg-open" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no desktop here (over SSH there is none)"
    nowhere = subprocess.DEVNULL
    try:
        subprocess.Popen([program, path], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    except OSError as error:
        return error.strerror or str(error)
    return None
