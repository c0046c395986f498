"""What of an ONNX graph matters before it is parsed or trusted: its names, its number formats, its files and hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.edit import artifacts
from core.edit.runtimes.trt_api import INPUTS, OUTPUT
from core.errors import UnavailableError, UsageError

NUMBER_FORMATS = {"bf16": "bf16", "fp8": "fp8", "fp4": "fp4", "fp4-svd": "fp4"}
"""The format of a precision's weights."""


def onnx_hash(onnx_path: Path) -> str:
    """SHA-256 over a graph and the files its weights lie in, in the graph's order."""
    hashes = [artifacts.file_hash(path) for path in read_graph(onnx_path).files(onnx_path)]
    return hashes[0] if len(hashes) == 1 else artifacts.key_of("onnx", {str(i): h for i, h in enumerate(hashes)})


@dataclass(frozen=True)
class Graph:
    """What of an ONNX graph matters before it is parsed: names, number formats, files of weights."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    formats: frozenset[str]
    external: tuple[str, ...]

    def files(self, onnx_path: Path) -> list[Path]:
        return [onnx_path, *(onnx_path.parent / name for name in self.external)]

    def check(self, onnx_path: Path, precision: str) -> None:
        """Raise UsageError where this is not a Kontext transformer in this precision, or its weights are missing."""
        self.check_interface(onnx_path)
        wanted = NUMBER_FORMATS[precision]
        if wanted != "bf16" and wanted not in self.formats:
            held = ", ".join(sorted(self.formats)) or "no low-precision"
            raise UsageError(f"{onnx_path}: holds {held} weights, so it is not a graph in {precision}")

    def check_interface(self, onnx_path: Path) -> None:
        """Raise UsageError where this is not a Kontext transformer, or its weights are missing."""
        missing = [name for name in INPUTS if name not in self.inputs]
        missing += [f"output {OUTPUT}"] if OUTPUT not in self.outputs else []
        unknown = [name for name in self.inputs if name not in INPUTS]
        if missing or unknown:
            problem = f"is without {', '.join(missing)}" if missing else f"also wants {', '.join(unknown)}"
            raise UsageError(f"{onnx_path}: not the graph of a Kontext transformer: it {problem}")
        for file in self.files(onnx_path):
            if not file.is_file():
                raise UsageError(f"{file} is missing: {onnx_path.name} keeps weights in it")


def read_graph(onnx_path: Path) -> Graph:
    """Look into an ONNX file without its external weights."""
    try:
        import onnx
    except ImportError:
        raise UnavailableError("onnx is not installed: `pip install 'kontext-tui[rtx]'` brings it") from None
    if not onnx_path.is_file():
        raise UsageError(f"{onnx_path}: there is no such file")
    try:
        model = onnx.load(str(onnx_path), load_external_data=False)
    except Exception as error:  # protobuf's own, of several modules
        raise UsageError(f"{onnx_path}: is not an ONNX graph ({type(error).__name__})") from None
    types = {onnx.TensorProto.FLOAT4E2M1: "fp4", onnx.TensorProto.FLOAT8E4M3FN: "fp8"}
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    formats, external = set(), dict[str, None]()
    for tensor in [*model.graph.initializer, *constants]:
        formats |= {types[tensor.data_type]} if tensor.data_type in types else set()
        external.update({entry.value: None for entry in tensor.external_data if entry.key == "location"})
    initialized = {tensor.name for tensor in model.graph.initializer}
    return Graph(
        tuple(each.name for each in model.graph.input if each.name not in initialized),
        tuple(each.name for each in model.graph.output),
        frozenset(formats),
        tuple(external),
    )
