"""Writing results: what the files are called, what is in them, and that they are whole or not there at all.

A result is encoded in memory, written and synced under a hidden name in its own folder, and then given its own
name in one step that never replaces anything:

    part = write_part(encode(image, final.suffix, record), final, token)
    publish(part, final)

Killed at any moment, this leaves a `.part` file behind at worst. The same picture and record give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from core.edit import images, metadata
from core.edit.images import shown
from core.edit.metadata import is_result as is_result
from core.edit.metadata import read_metadata as read_metadata
from core.errors import OutputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}  # pixels

PNG_OPTIONS = {"compress_type": zlib.Z_RLE}
"""Filtered rows with run lengths only. 1 MP photographs: 86 ms and 1,423 KiB, against 392 ms and 1,408 KiB of
zlib's default; 10 MP: 0.6 s and 6.8 MB against 1.9 s and 5.8 MB."""
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
"""Full colour resolution. 1 MP photographs: 44.3 dB in 415 KiB and 8 ms; with halved colour 41.9 dB in 323 KiB.
Not `optimize`: it saves 2 % and fails on noise, whose codes outgrow Pillow's buffer."""
WEBP_OPTIONS = {"quality": 95, "method": 4}
"""Lossy, as who asks for WebP asks for small files: 42.4 dB in 263 KiB and 164 ms; lossless takes 1,060 KiB."""

NAME_BYTES = 255  # of a file's name, on nearly every disk
RESERVED_BYTES = 64  # of them kept free for ".turn-12", "-2", and the dots and token of a part file

_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def encode(image: Image.Image, suffix: str, record: Mapping[str, Any]) -> bytes:
    """An RGB or RGBA picture in sRGB as the bytes of a file, with the record in its metadata.

    JPEG has no transparency: there the picture goes on white. See `metadata` for what is written where.
    """
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise OutputError(f"{shown(suffix)}: results are written as {', '.join(FORMATS)}; name one of these")
    if max(image.size) > MAX_SIDE[kind]:
        size, limit = f"{image.width} x {image.height} pixels", f"{MAX_SIDE[kind]:,}"
        raise OutputError(f"a result of {size} is too large for {kind}, which ends at {limit}; name it .png")
    if kind == "JPEG" and image.mode == "RGBA":
        image = images.flatten(image.convert("RGB"), image.getchannel("A"))
    image = image.copy()
    image.info = {}  # Pillow would write the profile and the EXIF data of the picture's origin
    file = BytesIO()
    match kind:
        case "PNG":
            image.save(file, kind, pnginfo=metadata.png_chunks(record), **PNG_OPTIONS)
        case "JPEG":
            image.save(file, kind, exif=metadata.exif(record, metadata.JPEG_ROOM), **_embedded(), **JPEG_OPTIONS)
        case "WEBP":
            image.save(file, kind, exif=metadata.exif(record), **_embedded(), **WEBP_OPTIONS)
    return file.getvalue()


def write_part(data: bytes, final: Path, token: str) -> Path:
    """Write a result whole and synced to the disk, beside where it will be, under a name nobody looks at.

    `token` keeps two workers apart that both believe the job to be theirs. The file gets the permissions of any
    new file (umask). On failure nothing is left and an OutputError is raised; see `is_disk_full`.
    """
    part = part_path(final, token)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags, 0o666)
    except OSError as error:
        raise _output_error(part.parent, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _output_error(part.parent, error) from error
        raise
    return part


def part_path(final: Path, token: str) -> Path:
    """What a result is called while it is written for the claim that `token` names."""
    return final.with_name(_fit(f".{final.name}", f".{token}.part"))


def publish(part: Path, final: Path) -> None:
    """Give a part file its own name, at once and for good: after this it survives a power cut.

    Never replaces a file: FileExistsError, and the part is kept for another name. Any other failure is an
    OutputError, and the part is gone.
    """
    try:
        _move(part, final)
    except FileExistsError:
        raise
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _output_error(final.parent, error) from error
    _sync_folder(final.parent)


def matches(path: Path, sha256: str | None, size: int | None) -> bool:
    """Whether the file that was recorded by its SHA-256 and size in bytes is there, whole."""
    try:
        same_size = path.stat().st_size == size
    except (OSError, ValueError):
        return False
    return same_size and sha256 is not None and images.sha256(path) == sha256


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is a full disk or quota: worth waiting for instead of failing."""
    return any(isinstance(each, OSError) and each.errno in _DISK_FULL for each in (error, error.__cause__))


def final_path(folder: Path, pattern: str, name: str, realpath: Callable[[str], str] = os.path.realpath) -> Path:
    """Where a picture's last result goes: under the name that `pattern` gives.

    `name` is the input's, relative to the folder searched; its subfolders are mirrored below `folder`, and its
    stem stands for `{stem}`. Raises OutputError where a name or a symbolic link leads out of `folder`. realpath: one
    that remembers, for many names.
    """
    # Strings, here and in `require_inside`: a bulk add comes by a hundred thousand times, and paths double its time.
    above, last = os.path.split(name)
    room = NAME_BYTES - RESERVED_BYTES - len(os.fsencode(os.path.basename(pattern)))  # noqa: PTH119
    stem = _fit(os.path.splitext(last)[0], limit=room)  # noqa: PTH122
    final = folder.joinpath(above, pattern.replace("{stem}", stem))
    require_inside(folder, final, realpath)
    return final


def free_paths(final: Path, n_turns: int, taken: Callable[[Path], bool] = lambda path: False) -> list[Path]:
    """Where the results of a job's turns go, the last one's last. Where any is `taken`, all of them are numbered."""
    paths = turn_paths(final, n_turns)
    if any(map(taken, paths)):
        paths = turn_paths(free_name(final, lambda path: any(map(taken, turn_paths(path, n_turns)))), n_turns)
    return paths


def turn_paths(final: Path, n_turns: int) -> list[Path]:
    """The last turn's path and, before it, those of the others: PNG, because the next turn reads them again."""
    return [final.with_name(f"{final.stem}.turn-{turn}.png") for turn in range(1, n_turns)] + [final]


def free_name(path: Path, taken: Callable[[Path], bool]) -> Path:
    """The path, or the first of name-2, name-3, ... that is not taken."""
    numbered, number = path, 1
    while taken(numbered):
        number += 1
        numbered = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return numbered


def check_folder(folder: Path) -> None:
    """Make the folder if it is not there and try to write in it, or raise an OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise _output_error(folder, error) from error


def _embedded() -> dict[str, Any]:
    return {"icc_profile": metadata.srgb_profile(), "xmp": metadata.XMP.encode()}


def _fit(start: str, end: str = "", limit: int = NAME_BYTES) -> str:
    """start + end in at most `limit` bytes: of a longer start, what fits and a hash of all of it."""
    room = limit - len(os.fsencode(end))
    if len(os.fsencode(start)) <= room:
        return start + end
    mark = "~" + hashlib.sha256(os.fsencode(start)).hexdigest()[:8]
    while len(os.fsencode(start)) > room - len(mark):
        start = start[:-1]
    return start + mark + end


def require_inside(folder: Path, path: Path, realpath: Callable[[str], str] = os.path.realpath) -> None:
    """Refuse a path that leads out of the folder, by its own parts or by symbolic links, with an OutputError."""
    start, whole = os.fspath(folder), os.fspath(path)
    base, parent = realpath(start), realpath(os.path.dirname(whole))  # noqa: PTH120
    inside = parent == base or parent.startswith(base.rstrip(os.sep) + os.sep)
    if ".." in whole[len(start) :].split(os.sep) or not inside:  # noqa: PTH206
        raise OutputError(f"{shown(str(path))}: leads out of the output folder; remove the link or rename the input")


def _move(part: Path, final: Path) -> None:
    """Rename without replacing, by the first way this disk knows."""
    for way in (_link, _rename_exclusively, _rename_onto_placeholder):
        try:
            return way(part, final)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED or way is _rename_onto_placeholder:
                raise


def _link(part: Path, final: Path) -> None:
    os.link(part, final, follow_symlinks=False)
    part.unlink(missing_ok=True)


def _rename_exclusively(part: Path, final: Path) -> None:
    """renameat2 with RENAME_NOREPLACE, for disks without hard links: FAT, exFAT."""
    import ctypes

    at_fdcwd, noreplace = -100, 1
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "renameat2")
    if renameat2(at_fdcwd, os.fsencode(part), at_fdcwd, os.fsencode(final), noreplace):
        raise OSError(ctypes.get_errno(), "renameat2", str(final))


def _rename_onto_placeholder(part: Path, final: Path) -> None:
    """For network disks that have neither: reserve the name, then replace the reservation.

    Killed between the two, this leaves an empty file; the other ways leave none.
    """
    os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        part.replace(final)
    except OSError:
        final.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network disks cannot, and the file itself is synced
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(folder: Path, error: OSError | ValueError) -> OutputError:
    """What keeps results from being written, and what to do about it."""
    where = shown(str(folder))
    match getattr(error, "errno", None):
        case errno.EEXIST | errno.ENOTDIR:
            return OutputError(f"{where}: a file is in the way; move it or choose another output folder")
        case errno.EACCES | errno.EPERM:
            return OutputError(f"{where}: no permission to write; change its mode or choose another output folder")
        case errno.EROFS:
            return OutputError(f"{where}: the disk is read-only; choose another output folder")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return OutputError(f"{where}: no space left on the disk; free some")
        case errno.ENOENT:
            return OutputError(f"{where}: the folder is gone; make it again")
        case errno.ELOOP:
            return OutputError(f"{where}: a symbolic link that leads back to itself; remove it")
        case errno.ENAMETOOLONG:
            return OutputError(f"{where}: a name too long for this disk; choose a shorter one")
        case _:
            return OutputError(f"{where}: cannot be written ({shown(str(error))}); choose another output folder")
