"""What engines' proofs came to, kept in the artifact store; `core.edit.runtimes.proof` makes them. No torch here.

An engine is proven for one GPU and one driver at a time; the name of each kept verdict says which.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from core import paths
from core.edit import artifacts
from core.edit.artifacts import Artifact
from core.edit.runtimes.trt_api import Gpu
from core.errors import UnavailableError

FOLDER = "proofs"


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to: ||engine - reference|| / ||reference|| over the velocity of the image tokens."""

    engine: str
    """SHA-256 of the engine's file."""
    gpu: str
    driver: str
    precision: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN

    def __str__(self) -> str:
        return f"relative error of one step {self.error:.2e}, limit for {self.precision} {self.limit:.0e}"

    def require(self, artifact: Artifact) -> None:
        """Raise UnavailableError where the engine must not serve."""
        if not self.passed:
            raise UnavailableError(
                f"the engine {artifact.key[:12]} computes something else than the model it was made from "
                f"({self}, on {self.gpu} with driver {self.driver}): it is not used"
            )


def keep(artifact: Artifact, gpu: Gpu, verdict: Verdict) -> None:
    """Keep a verdict in the store, in the place of an older one on that GPU and driver."""
    artifacts.write_small(_name(artifact, gpu), json.dumps(asdict(verdict)).encode())


def recall(artifact: Artifact, gpu: Gpu) -> Verdict | None:
    """The verdict kept on this engine on this GPU and driver."""
    return _read(_name(artifact, gpu))


def recall_all() -> dict[str, list[Verdict]]:
    """Every verdict in the store, by the SHA-256 of the engine's file."""
    found: dict[str, list[Verdict]] = {}
    for path in sorted((paths.artifacts() / "small" / FOLDER).glob("*.json")):
        verdict = _read(f"{FOLDER}/{path.name}")
        if verdict is not None:
            found.setdefault(verdict.engine, []).append(verdict)
    return found


def engine_hash(artifact: Artifact) -> str:
    """SHA-256 of an engine's file, as its manifest says."""
    return str(artifact.manifest["files"][artifact.file(".engine").name]["sha256"])


def _read(name: str) -> Verdict | None:
    kept = artifacts.read_small(name)
    try:
        return None if kept is None else Verdict(**json.loads(kept))
    except (ValueError, TypeError):
        return None


def _name(artifact: Artifact, gpu: Gpu) -> str:
    parts = {"engine": engine_hash(artifact), "gpu": gpu.name, "driver": gpu.driver}
    return f"{FOLDER}/{artifacts.key_of('proof', parts)}.json"
