"""The artifact store: checkpoints, ONNX graphs and engines made on this machine, keyed by what they are made of.

    <store>/<kind>/<key>/            a whole artifact: its files and manifest.json, under its name in one rename
    <store>/<kind>/.<key>.part/      one being made or removed; without a living process behind it, swept away
    <store>/locks/<kind>-<key>       held (flock) while that key is made: the kernel frees it with its process
    <store>/small/                   timing caches, runtime caches and outcomes of checks: see `write_small`

`make` builds or finds, `find` looks up, `check` says why an artifact must not be used. An engine is native code and
a checkpoint is big, so files of another owner, or that others may write, are refused, and so are half ones.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import __version__, paths
from core.edit.store import check_owner, delete, errors_named, locked, own_folder, sync, unusable
from core.edit.store import file_hash as file_hash
from core.edit.store import model_hash as model_hash
from core.edit.store import read_small as read_small
from core.edit.store import sha256 as sha256
from core.edit.store import write_small as write_small
from core.errors import OutputError, UnavailableError

MANIFEST = "manifest.json"
VERSIONED = ("torch", "diffusers", "nvidia-modelopt", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13-bindings")

Part = str | int | float
Build = Callable[[Path], Mapping[str, Any]]
"""Writes an artifact's files into the folder it is given and returns facts for the manifest (JSON values)."""


@dataclass(frozen=True)
class Artifact:
    """A folder in the store. `manifest` is empty where it cannot be read; then `check` says why."""

    kind: str
    key: str
    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def parts(self) -> dict[str, Part]:
        return dict(self.manifest.get("parts", {}))

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.manifest.get("facts", {}))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(entry["size"]) for entry in self.manifest.get("files", {}).values())

    def file(self, suffix: str) -> Path:
        """The first of its files with this ending, such as `.onnx`."""
        names = sorted(name for name in self.manifest.get("files", {}) if name.endswith(suffix))
        if not names:
            raise UnavailableError(f"{self.folder}: holds no *{suffix}")
        return self.folder / str(names[0])


def key_of(kind: str, parts: Mapping[str, Part]) -> str:
    """SHA-256 of the kind and the parts as canonical JSON."""
    canonical = json.dumps([kind, dict(parts)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def make(
    kind: str, parts: Mapping[str, Part], build: Build, *, on_wait: Callable[[str], None] | None = None
) -> Artifact:
    """The artifact made of these parts: the one in the store if it is whole, else a new one from `build`.

    Of two that make the same key at once, one builds; the other waits, is told so by a line to `on_wait`, and finds
    it. `build` failed, interrupted or killed leaves no artifact. OutputError where the store cannot be written.
    """
    key = key_of(kind, parts)
    with errors_named():
        found = _usable(kind, key)
        if found is not None:
            return found
        _sweep()
        with locked(kind, key, on_wait):
            return _usable(kind, key) or _build(kind, key, dict(parts), build)


def find(kind: str, **parts: Part) -> list[Artifact]:
    """The whole artifacts of a kind that are made of at least these parts, the newest first."""
    matching = (a for a in list_all(kind) if all(a.parts.get(name) == value for name, value in parts.items()))
    return [artifact for artifact in matching if problem(artifact) is None]


def list_all(kind: str | None = None) -> list[Artifact]:
    """Everything in the store under a key's name, broken ones too, the newest first."""
    folders = (f for f in paths.artifacts().glob(f"{kind or '*'}/*") if _is_key(f.name) and f.parent.name != "small")
    found = [Artifact(f.parent.name, f.name, f, _read_manifest(f)) for f in folders]
    return sorted(found, key=lambda a: str(a.manifest.get("created", "")), reverse=True)


def problem(artifact: Artifact) -> str | None:
    """Why an artifact must not be used, as `check` without `deep` finds it; None where it may."""
    try:
        check(artifact, deep=False)
    except UnavailableError as error:
        return str(error)
    return None


def check(artifact: Artifact, *, deep: bool) -> None:
    """Raise UnavailableError, naming the file, where an artifact is half, corrupt or another's.

    Looks at owners, modes and sizes; `deep` reads every file too and compares its SHA-256 (about 1.5 GB/s).
    """
    _check(artifact, sha256 if deep else None)


def check_once(artifact: Artifact) -> None:
    """`check` before loading: deep the first time and after any change to a file, quick ever after."""
    _check(artifact, file_hash)


def _check(artifact: Artifact, digest: Callable[[Path], str] | None) -> None:
    if artifact.folder != _final(artifact.kind, artifact.key):
        raise unusable(artifact.folder, "lies outside the store")
    check_owner(artifact.folder.parent)
    check_owner(artifact.folder)
    check_owner(artifact.folder / MANIFEST)
    manifest = artifact.manifest
    if not manifest:
        raise unusable(artifact.folder / MANIFEST, "is not a manifest")
    if key_of(artifact.kind, artifact.parts) != artifact.key or manifest["key"] != artifact.key:
        raise unusable(artifact.folder / MANIFEST, "is the manifest of another artifact")
    for name, entry in manifest["files"].items():
        path = artifact.folder / name
        check_owner(path)
        if path.stat().st_size != entry["size"]:
            raise unusable(path, f"is {path.stat().st_size:,} bytes long and not the recorded {entry['size']:,}")
        if digest is not None and digest(path) != entry["sha256"]:
            raise unusable(path, "is corrupt (its SHA-256 is not the recorded one)")


def remove(artifact: Artifact) -> None:
    """Take an artifact out of the store: at once by name, then its files."""
    with errors_named(), locked(artifact.kind, artifact.key, None):
        part = _part(artifact.kind, artifact.key)
        delete(part)
        with suppress(FileNotFoundError):
            artifact.folder.rename(part)
        delete(part)


def _build(kind: str, key: str, parts: dict[str, Part], build: Build) -> Artifact:
    """Build under the key's lock."""
    folder, part = _final(kind, key), _part(kind, key)
    delete(part)
    if folder.exists() or folder.is_symlink():
        folder.rename(part)  # not usable, and ours: it gives way
        delete(part)
    own_folder(part)
    try:
        began = time.perf_counter()
        facts = dict(build(part))
        manifest = {
            "kind": kind,
            "key": key,
            "parts": parts,
            "facts": facts,
            "seconds": round(time.perf_counter() - began, 3),
            "versions": _versions(),
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "files": _seal(part),
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _seal_file(part / MANIFEST)
        sync(part)
        part.rename(folder)
        sync(folder.parent)
    except BaseException:
        delete(part)
        raise
    return Artifact(kind, key, folder, manifest)


def _seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Make every file ours alone to write, sync it, and list it with its hash and size."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise OutputError(f"{path}: an artifact holds plain files only")
        if path.is_dir():
            path.chmod(0o700)
            sync(path)
            continue
        _seal_file(path)
        files[str(path.relative_to(folder))] = {"sha256": sha256(path), "size": path.stat().st_size}
    return files


def _seal_file(path: Path) -> None:
    path.chmod(0o600)
    sync(path)


def _usable(kind: str, key: str) -> Artifact | None:
    """The artifact under this key; None where there is none, or a broken one of ours; raises where another's."""
    folder = _final(kind, key)
    if not folder.is_dir():
        return None
    check_owner(folder)
    artifact = Artifact(kind, key, folder, _read_manifest(folder))
    return artifact if problem(artifact) is None else None


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        names = [Path(name) for name in manifest["files"]]
        sizes = [(int(entry["size"]), str(entry["sha256"])) for entry in manifest["files"].values()]
        inside = not any(name.is_absolute() or ".." in name.parts for name in names)
        complete = isinstance(manifest["parts"], dict) and isinstance(manifest["facts"], dict) and "key" in manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return manifest if inside and complete and len(sizes) == len(names) else {}


def _sweep() -> None:
    """Delete what killed processes left behind."""
    for part in paths.artifacts().glob("*/.*.part"):
        kind, key = part.parent.name, part.name[1:-5]
        if _is_key(key):
            with suppress(BlockingIOError), locked(kind, key, None, wait=False):
                delete(part)


def _final(kind: str, key: str) -> Path:
    return paths.artifacts() / kind / key


def _part(kind: str, key: str) -> Path:
    return paths.artifacts() / kind / f".{key}.part"


def _is_key(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def _versions() -> dict[str, str]:
    versions = {"kontext-tui": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
