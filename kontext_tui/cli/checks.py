"""What `doctor` looks at."""

from __future__ import annotations

import platform
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core import __version__, paths
from core.edit.models import MODELS, locate
from core.errors import KontextError
from core.jobs.database import connect, damage
from kontext_tui import settings
from kontext_tui.figures import size

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "pillow",
    "numpy",
    "sqlite-utils",
    "pydantic",
    "rich",
    "typer",
)
EXTRAS = {
    "quant": ("nvidia-modelopt", "onnx", "onnxruntime"),
    "gpu": ("nvidia-cudnn-frontend", "nvmath-python"),
    "rtx": ("tensorrt-rtx-cu13-bindings",),
    "tensorrt": ("tensorrt",),
}
"""What extras bring; a machine that only edits may lack them."""


@dataclass(frozen=True)
class Check:
    """One finding. `ok` is None for what is merely told, False for what a person should mend."""

    name: str
    ok: bool | None
    finding: str


def run_checks(db: Path | None) -> list[Check]:
    return [*_versions(), *_devices(), *_limit(), *_models(), *_queue(paths.database(db))]


def _versions() -> Iterator[Check]:
    yield Check("kontext-tui", True, f"{__version__} on Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, "not installed: reinstall kontext-tui")
    for extra, packages in EXTRAS.items():
        for package in packages:
            try:
                yield Check(package, True, version(package))
            except PackageNotFoundError:
                yield Check(package, None, f"not installed; pip install 'kontext-tui[{extra}]' brings it")
    # https://www.sqlite.org/wal.html: two connections that checkpoint at once may damage the file before 3.51.3.
    fixed = sqlite3.sqlite_version_info >= (3, 51, 3)
    note = "" if fixed else " (before 3.51.3: a rare WAL bug; keep backups of a queue that matters)"
    yield Check("SQLite", True if fixed else None, sqlite3.sqlite_version + note)


def _devices() -> Iterator[Check]:
    import torch

    from core.edit import native

    if not torch.cuda.is_available():
        yield Check(
            "GPU",
            None,
            f"none: edits run on the CPU ({torch.get_num_threads()} threads), good for kontext-tiny",
        )
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        memory = f"{size(found.total_memory)}, {size(free)} free"
        yield Check(f"cuda:{index}", True, f"{found.name}, {memory}, sm {found.major}{found.minor}")
    compiles = native.can_compile()
    missing = "no Triton or no C compiler, or KONTEXT_TUI_COMPILE is 0: steps take plain torch, which is slower"
    yield Check("kernels", compiles or None, "Triton compiles them" if compiles else missing)


def _limit() -> Iterator[Check]:
    try:
        limit = settings.max_vram()
    except KontextError as error:
        yield Check("max_vram", False, str(error))
        return
    if limit is not None:
        yield Check("max_vram", True, f"a worker takes at most {size(limit)} of a GPU ({paths.config_file()})")


def _models() -> Iterator[Check]:
    for name, spec in MODELS.items():
        try:
            yield Check(name, True, str(locate(spec)))
        except KontextError as error:
            # The embedded one belongs to the installation; the other is a person's choice.
            yield Check(name, False if spec.folder else None, str(error))


def _queue(path: Path) -> Iterator[Check]:
    if not path.exists():
        yield Check("queue", None, f"{path}: none yet; `add` or `run` makes it")
        return
    try:
        conn = connect(path, create=False)
    except KontextError as error:
        yield Check("queue", False, str(error))
        return
    with closing(conn):
        found = damage(conn)
    free = shutil.disk_usage(path.absolute().parent).free
    mend = f"{path} is damaged ({found}): keep the file and work on with a backup, or start anew with --db"
    yield Check("queue", not found, mend if found else f"{path}: whole")
    yield Check("disk", free > 1 << 30, f"{free / 2**30:.0f} GiB free beside the queue")
