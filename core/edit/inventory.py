"""What this machine has to edit with: models, what was made of them, what is broken and why. Quick, and no torch.

Only names, sizes, owners and manifests are looked at; nothing large is read, nothing is built or downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any, Literal

from core.edit import artifacts
from core.edit.artifacts import Artifact
from core.edit.models import MODELS, ModelSpec, check_folder, find_spec, hub_folder
from core.edit.runtimes import PRECISIONS, verdicts
from core.edit.runtimes.trt_api import FLAVOURS
from core.edit.runtimes.verdicts import Verdict
from core.edit.store import known_model_hash
from core.errors import UnavailableError

KINDS = ("checkpoint", "onnx", "engine")
Standing = Literal["ok", "broken", "old", "refused", "unverified"]


@dataclass(frozen=True)
class Model:
    """A model by the name that commands take. `bytes`: of all its files; 0 where there are none."""

    name: str
    state: Literal["there", "half", "missing"]
    folder: Path | None
    bytes: int
    reason: str | None
    """Why it cannot be used; None where it can."""
    key: str | None
    """`artifacts.model_hash` of its transformer, where that is known without reading much."""


@dataclass(frozen=True)
class Made:
    """An artifact of the store and how it stands. `model`: the name it was made by, None where nothing says."""

    artifact: Artifact
    model: str | None
    precision: str | None
    standing: Standing
    reason: str | None
    """Why it is not used, or not yet; None where it is."""
    verdicts: tuple[Verdict, ...] = ()
    """Of an engine: what its proofs came to, on whichever GPUs."""


@dataclass(frozen=True)
class Inventory:
    """Models, the known ones first; artifacts, the newest first; the last comparison of each model that has one."""

    models: tuple[Model, ...]
    made: tuple[Made, ...]
    comparisons: Mapping[str, Mapping[str, Any]]

    def of(self, model: str, precision: str | None = None, kind: str | None = None) -> list[Made]:
        """What was made of a model, in a precision, of a kind: the newest first."""
        return [
            made
            for made in self.made
            if made.model == model and precision in (None, made.precision) and kind in (None, made.artifact.kind)
        ]

    def strays(self) -> list[Made]:
        """What belongs to no model that is listed: its manifest cannot be read."""
        names = {model.name for model in self.models}
        return [made for made in self.made if made.model not in names or made.precision not in PRECISIONS]


def look() -> Inventory:
    """The inventory as it is now: milliseconds, however large the models are."""
    proofs = verdicts.recall_all()
    kept = [artifact for artifact in artifacts.list_all() if artifact.kind in KINDS]
    named = dict.fromkeys(name for artifact in kept if (name := _model_of(artifact)))
    models = tuple(_model(name) for name in (*MODELS, *(name for name in named if name not in MODELS)))
    keys = {model.name: model.key for model in models}
    made = tuple(_made(artifact, keys, proofs) for artifact in kept)
    found = {model.name: comparison(model.key) for model in models}
    return Inventory(models, made, {name: each for name, each in found.items() if each is not None})


def keep_comparison(key: str, outcome: Mapping[str, Any]) -> None:
    """Keep what a comparison of a model's precisions came to, in the place of the last. key: its `model_hash`."""
    artifacts.write_small(_comparison_name(key), json.dumps(outcome).encode())


def comparison(key: str | None) -> Mapping[str, Any] | None:
    """The last comparison kept of the model with this `model_hash`."""
    kept = artifacts.read_small(_comparison_name(key)) if key else None
    try:
        outcome = json.loads(kept) if kept else None
    except ValueError:
        return None
    return outcome if isinstance(outcome, dict) and isinstance(outcome.get("precisions"), dict) else None


def _comparison_name(key: str) -> str:
    return f"comparisons/{key}.json"


def _model(name: str) -> Model:
    try:
        spec = find_spec(name)
        folder = spec.folder or hub_folder(spec)
    except UnavailableError as error:
        return Model(name, "missing", None, 0, str(error), None)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # links lead to the hub's blobs
    reason = _refusal(spec, folder)
    key = known_model_hash(folder / "transformer") if reason is None else None
    return Model(name, "half" if reason else "there", folder, size, reason, key)


def _refusal(spec: ModelSpec, folder: Path) -> str | None:
    try:
        check_folder(folder, spec.name)
    except UnavailableError as error:
        return str(error)
    return None


def _model_of(artifact: Artifact) -> str | None:
    name = artifact.facts.get("model")
    return name if isinstance(name, str) and name else None


def _made(artifact: Artifact, keys: Mapping[str, str | None], proofs: Mapping[str, list[Verdict]]) -> Made:
    model, precision = _model_of(artifact), artifact.parts.get("precision")
    found: tuple[Verdict, ...] = ()
    standing: Standing = "ok"
    reason = artifacts.problem(artifact)
    if reason is not None:
        standing = "broken"
    elif keys.get(model or "") not in (None, artifact.parts.get("model")):
        standing, reason = "old", f"made of other weights than {model} has now: make it again"
    elif artifact.kind == "engine":
        found = tuple(proofs.get(verdicts.engine_hash(artifact), ()))
        standing, reason = _engine_standing(artifact, found)
    return Made(artifact, model, str(precision) if precision else None, standing, reason, found)


def _engine_standing(artifact: Artifact, found: tuple[Verdict, ...]) -> tuple[Standing, str | None]:
    if (here := _installed(str(artifact.parts.get("flavour")))) not in (None, artifact.parts.get("version")):
        return "old", f"built by version {artifact.parts.get('version')}, and {here} is installed: build it again"
    failed = [verdict for verdict in found if not verdict.passed]
    if failed:
        return "refused", f"{failed[0]}, on {failed[0].gpu} with driver {failed[0].driver}"
    if not found:
        return "unverified", "not yet compared with the unquantized model on a GPU: its first use does, or verify"
    return "ok", None


@cache
def _installed(flavour: str) -> str | None:
    """The version of a TensorRT that is installed, without importing it; None where there is none to ask."""
    known = FLAVOURS.get(flavour)
    for name in known.modules if known else ():
        if find_module(name) is not None:
            for package in _packages_of(name):
                try:
                    return version(package)
                except PackageNotFoundError:
                    continue
    return None


def _packages_of(module: str) -> list[str]:
    base = module.removesuffix("_bindings").replace("_", "-")
    return [f"{base}-cu13-bindings", f"{base}-cu12-bindings", f"{base}-bindings", base]
