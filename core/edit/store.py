"""The disk under the artifact store: folders and small files of our own, locks, hashes, and errors in one line.

Nothing that others may write is trusted, a lock cannot outlive its process, and hashes of big files are remembered.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core import paths
from core.errors import KontextError, OutputError, UnavailableError

HASHES = "hashes.json"
QUICK_BYTES = 1 << 28
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_RACY_NS = 2_000_000_000  # a file changed so lately may change again within one tick of its clock


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file that seldom changes, remembered in the store by its path, size, mtime and inode."""
    return _remembered([path])[0]


def model_hash(folder: Path) -> str:
    """What a model's transformer folder holds: its config, every byte of its safetensors, its scales if quantized.

    24 GB take some 15 s the first time; file hashes are remembered as `file_hash` does.
    """
    files = sorted(folder.glob("*.safetensors"))
    configs = [path for name in ("config.json", "kontext-tui-quant.json") if (path := folder / name).is_file()]
    if not files or not configs:
        raise UnavailableError(f"{folder}: holds no config.json and safetensors to make something of")
    hashes = zip([f.name for f in configs + files], _remembered(configs + files), strict=True)
    return hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()


def known_model_hash(folder: Path) -> str | None:
    """`model_hash` where it is known, or found by reading no more than 256 MiB; else None. None of no model, too."""
    files = [path for path in (*folder.glob("*.safetensors"), folder / "config.json") if path.is_file()]
    try:
        known = _known()
        new = (path for path in map(Path.resolve, files) if known.get(str(path), [])[:-1] != _state(path))
        unread = sum(path.stat().st_size for path in new)
        return model_hash(folder) if unread <= QUICK_BYTES else None
    except (OSError, UnavailableError):
        return None


def write_small(name: str, data: bytes) -> Path:
    """Write a small file of the store whole or not at all, in the place of an older one."""
    path = paths.artifacts() / "small" / name
    with errors_named():
        own_folder(path.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def read_small(name: str) -> bytes | None:
    """A small file of the store, None where there is none or it is not ours alone to write."""
    path = paths.artifacts() / "small" / name
    try:
        check_owner(path)
        return path.read_bytes()
    except (OSError, UnavailableError):
        return None


def check_owner(path: Path) -> None:
    try:
        status = path.lstat()
    except OSError:
        raise unusable(path, "is missing") from None
    if stat.S_ISLNK(status.st_mode):
        raise unusable(path, "is a symbolic link")
    if status.st_uid != os.geteuid():
        raise unusable(path, f"belongs to user {status.st_uid}, not to you")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise unusable(path, f"may be written by others (mode {stat.S_IMODE(status.st_mode):03o})")


def unusable(path: Path, reason: str) -> UnavailableError:
    return UnavailableError(f"{path} {reason}: it is not used; remove it and make it again")


_held: set[int] = set()


def _forget_locks() -> None:
    """A forked child would keep its parent's locks beyond the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def locked(kind: str, key: str, on_wait: Callable[[str], None] | None, *, wait: bool = True) -> Iterator[None]:
    """Hold a key's lock; BlockingIOError where another does and we shall not wait."""
    path = paths.artifacts() / "locks" / f"{kind}-{key}"
    own_folder(path.parent)
    descriptor = _lock(path, on_wait, wait=wait)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            path.unlink(missing_ok=True)  # whoever waits on it sees that and opens a new one
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(path: Path, on_wait: Callable[[str], None] | None, *, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if on_wait is not None:
                    on_wait("another process is making this; waiting for it")
                    on_wait = None
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def delete(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def own_folder(path: Path) -> None:
    """Make a folder of the store, and those above it within the store, ours alone."""
    root = paths.artifacts()
    root.parent.mkdir(parents=True, exist_ok=True)
    for each in (root, *(root / parent for parent in reversed(path.relative_to(root).parents[:-1])), path):
        each.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: Exception) -> int | None:
    """The errno of a failed write, also where a library tells it in words (safetensors and ONNX do)."""
    if isinstance(error, OSError):
        return error.errno
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return int(told[1])
    return errno.ENOSPC if "No space left on device" in str(error) else None


@contextmanager
def errors_named() -> Iterator[None]:
    """The disk's refusals as one line; libraries report a full disk as errors of their own."""
    try:
        yield
    except KontextError:
        raise
    except Exception as error:
        where = paths.artifacts()
        number = disk_error(error)
        if number in _DISK_FULL:
            why = "no space left on the disk" if number == errno.ENOSPC else os.strerror(number).lower()
            raise OutputError(f"{where}: {why}; free some (nothing half is kept)") from error
        refused = isinstance(error, OSError) and number in (errno.EACCES, errno.EPERM, errno.EROFS)
        if refused and str(getattr(error, "filename", "")).startswith(str(where)):
            raise OutputError(
                f"{where}: cannot be written ({getattr(error, 'strerror', '')}); set XDG_CACHE_HOME"
            ) from error
        raise


def _remembered(files: list[Path]) -> list[str]:
    """SHA-256 of each file, from memory where neither its size, mtime nor inode has changed."""
    known = _known()
    resolved = [path.resolve() for path in files]
    states = [_state(path) for path in resolved]
    new = [i for i, path in enumerate(resolved) if known.get(str(path), [None])[:-1] != states[i]]
    if new:
        with ThreadPoolExecutor(min(len(new), 4)) as pool:  # hashing lets go of the interpreter's lock
            for i, digest in zip(new, pool.map(lambda i: sha256(resolved[i]), new), strict=True):
                known[str(resolved[i])] = [*states[i], digest]
        newest = time.time_ns() - _RACY_NS
        lasting = {name: entry for name, entry in known.items() if entry[1] < newest and Path(name).exists()}
        with suppress(KontextError):  # a memory only
            write_small(HASHES, json.dumps(lasting).encode())
    return [str(known[str(path)][-1]) for path in resolved]


def _known() -> dict[str, list[Any]]:
    """Size, mtime, inode and SHA-256 of the files that were hashed before."""
    try:
        known = json.loads(read_small(HASHES) or b"{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
