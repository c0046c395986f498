"""Which products of an exported graph run in low precision, and whether the precision's promises are kept.

Read from the graph alone, by following what enters each MatMul back to its DequantizeLinear: a strongly typed builder
runs a product in the type before it. The promises, for fp8, fp4 and fp4-svd:

- every linear inside the blocks runs in E4M3 (fp8) or NVFP4 (fp4, fp4-svd), but for those the checkpoint keeps;
  of an NVFP4 graph, projections to queries, keys and values may run in E4M3;
- both products of every attention run in E4M3, the softmax's output at the fixed scale;
- embedders, `norm_out` and the last `proj_out` stay high, and nothing but products reads a rounded value: no norm;
- NVFP4 block scales are E4M3 with a float32 scale a tensor; codes and scales are, bit for bit, the checkpoint's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from core.edit.quantized import SOFTMAX_SCALE
from quant.onnx_graph import HADAMARD, read, read_index

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
HIGH = {
    "x_embedder": "embedder",
    "context_embedder": "embedder",
    "time_text_embed": "embedder",
    "norm_out": "last modulation",
    "proj_out": "last layer",
}
PROJECTIONS = (".to_q", ".to_k", ".to_v", ".add_q_proj", ".add_k_proj", ".add_v_proj")
BRANCH = "rank-32 branch of its linear"
LINEARS = {"bf16": "bf16", "fp8": "fp8", "fp4": "fp4", "fp4-svd": "fp4"}
DIGEST = "weights_sha256"
"""Key of the graph's metadata: what its low-precision weights were when it was exported (`weights_digest`)."""

_FORMATS: dict[int, str] = {
    TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.FLOAT4E2M1: "fp4", TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT16: "fp16", TensorProto.FLOAT: "fp32",
}  # fmt: skip
_LOW = ("fp8", "fp4")
_MOVES = ("Transpose", "Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze", "Flatten")
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "InstanceNormalization")
_SHOWN = 12


@dataclass
class Report:
    """What a graph runs in: counts of products, modules that stayed high and why, and the promises it breaks."""

    precision: str
    gemms: dict[str, int] = field(default_factory=dict)
    bmms: dict[str, int] = field(default_factory=dict)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    high: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def counts(values: dict[str, int]) -> str:
            return ", ".join(f"{count} {name}" for name, count in sorted(values.items())) or "none"

        megabytes = {name: f"{size / 1e6:.1f} MB {name}" for name, size in sorted(self.weight_bytes.items())}
        why = Counter(self.high.values())
        lines = [
            f"linears    {counts(self.gemms)}",
            f"attention  {counts(self.bmms)} products",
            f"weights    {', '.join(megabytes.values())}",
            *(f"high       {count} {reason}" for reason, count in sorted(why.items())),
            *(f"BROKEN     {problem}" for problem in self.problems[:_SHOWN]),
        ]
        more = len(self.problems) - _SHOWN
        return "\n".join([*lines, f"BROKEN     and {more} more"] if more > 0 else lines)


@dataclass(frozen=True)
class Source:
    """Where an operand comes from: its format, and the initializer it is where it is a weight."""

    format: str
    weight: str | None = None


class Reading:
    """A graph with its edges looked up."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.tensors[node.output[0]] = node.attribute[0].t
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)

    def back(self, name: str) -> str:
        """The value before all that only moves or casts it."""
        while (node := self.makers.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        return name

    def source(self, name: str) -> Source:
        name = self.back(name)
        if name in self.tensors:
            return Source(_FORMATS.get(self.tensors[name].data_type, "other"), name)
        node = self.makers.get(name)
        if node is not None and "DequantizeLinear" in node.op_type:
            return self.codes(node)
        return Source("high")

    def codes(self, node: NodeProto) -> Source:
        """What a DequantizeLinear reads: a stored weight, or what a quantizer made of an activation."""
        codes = self.back(node.input[0])
        if codes in self.tensors:
            kind = self.tensors[codes].data_type
            low = "fp8" if node.op_type == "TRT_FP8DequantizeLinear" else _FORMATS.get(kind, "other")
            return Source(low, codes)
        maker = self.makers.get(codes)
        if maker is None:
            return Source("other")
        if maker.op_type == "TRT_FP4DynamicQuantize":
            return Source("fp4" if codes == maker.output[0] else "scale")
        rounded = self.back(maker.input[0]) if maker.input else ""
        weight = rounded if rounded in self.tensors else None
        if maker.op_type == "TRT_FP8QuantizeLinear":
            return Source("fp8", weight)
        zero = self.tensors.get(maker.input[2]) if len(maker.input) > 2 else None
        kind = zero.data_type if zero is not None else _attribute(maker, "output_dtype", 0)
        return Source(_FORMATS.get(kind, "other") if maker.op_type == "QuantizeLinear" else "other", weight)

    def product_of(self, name: str) -> NodeProto | None:
        """The MatMul before a softmax: back through scaling, masks and casts."""
        for _ in range(8):
            node = self.makers.get(self.back(name))
            if node is None or node.op_type == "MatMul":
                return node
            if node.op_type not in ("Mul", "Div", "Add"):
                return None
            name = next((each for each in node.input if self.back(each) not in self.tensors), node.input[0])
        return None

    def ends(self, name: str) -> list[NodeProto]:
        """The nodes that read a value in the end, through all that only moves or casts it."""
        found = []
        for node in self.readers[name]:
            found += self.ends(node.output[0]) if node.op_type in _MOVES else [node]
        return found


def lint(onnx_path: Path, precision: str, checkpoint: Path | None = None) -> Report:
    """Judge a graph by what `precision` promises. checkpoint: the folder its weights must equal bit for bit;
    without one, they must be what the graph says it was exported with."""
    model = onnx.load(str(onnx_path), load_external_data=False)
    graph, report = Reading(model), Report(precision)
    kept = json.loads(_metadata(model).get("kept", "{}"))
    _judge_linears(graph, report, kept)
    if precision != "bf16":
        _judge_attention(graph, report)
    _judge_readers(graph, report)
    _judge_scales(graph, report)
    _judge_bits(graph, report, onnx_path, checkpoint)
    return report


def _judge_linears(graph: Reading, report: Report, kept: dict[str, str]) -> None:
    wanted = LINEARS[report.precision]
    gemms: Counter[str] = Counter()
    bmms: Counter[str] = Counter()
    for tensor in graph.tensors.values():
        name = _FORMATS.get(tensor.data_type)
        if name is not None:
            report.weight_bytes[name] = report.weight_bytes.get(name, 0) + _bytes(tensor)
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        left, right = (graph.source(name) for name in node.input[:2])
        if (right.weight or "").startswith(HADAMARD):
            continue
        ran = left.format if left.format == right.format and left.format in _LOW else "bf16"
        if left.weight is None and right.weight is None:
            bmms[ran] += 1
            continue
        name = _module(node, right.weight or left.weight)
        gemms[ran] += 1
        reason = _reason(name) if not name.startswith(BLOCKS) else kept.get(name)
        if ran not in _LOW and report.precision != "bf16" and (reason or ".svdquant_lora_" in name):
            report.high[name] = reason or BRANCH
        elif ran not in _LOW and wanted != "bf16":
            half = {left.format, right.format} & set(_LOW)
            why = f"only one side is {half.pop()}" if half else "nothing of it is quantized"
            report.high[name] = why
            report.problems.append(f"{name} runs in bf16, not {wanted}: {why}")
        elif ran in _LOW and (wanted == "bf16" or reason):
            report.problems.append(f"{name} runs in {ran}; it should stay bf16")
        elif ran in _LOW and ran != wanted and not (wanted == "fp4" and name.endswith(PROJECTIONS)):
            report.problems.append(f"{name} runs in {ran}, not {wanted}")
    report.gemms, report.bmms = dict(gemms), dict(bmms)


def _judge_attention(graph: Reading, report: Report) -> None:
    softmaxes = [node for node in graph.nodes if node.op_type == "Softmax"]
    if not softmaxes:
        report.problems.append("there is no softmax: the attention cannot be told to run in fp8")
    for softmax in softmaxes:
        name = _scope(softmax)
        first = graph.product_of(softmax.input[0])
        ends = graph.ends(softmax.output[0])
        rounded = [end for node in ends if "QuantizeLinear" in node.op_type for end in graph.ends(node.output[0])]
        after = [end for node in rounded if "Dequant" in node.op_type for end in graph.ends(node.output[0])]
        after += [node for node in ends if node.op_type == "MatMul"]
        products = {"q k^T": first, "softmax v": next((node for node in after if node.op_type == "MatMul"), None)}
        for what, product in products.items():
            sides = [graph.source(each).format for each in product.input] if product is not None else ["?", "?"]
            if sides != ["fp8", "fp8"]:
                report.problems.append(f"attention {name}: {what} is {' x '.join(sides)}, not fp8 x fp8")
        for node in ends:
            scale = graph.tensors.get(node.input[1]) if "QuantizeLinear" in node.op_type else None
            if scale is not None and abs(float(_values(scale)) / SOFTMAX_SCALE - 1) > 0.01:
                report.problems.append(
                    f"attention {name}: the softmax is rounded at {float(_values(scale)):.3g}, not 1/448"
                )


def _judge_readers(graph: Reading, report: Report) -> None:
    """Norms read unrounded values, and rounded ones go into products alone."""
    for node in graph.nodes:
        if "DequantizeLinear" not in node.op_type or graph.codes(node).format not in _LOW:
            continue
        ends = graph.ends(node.output[0])
        norms = [end for end in ends if end.op_type in _NORMS or _is_square(graph, end)]
        for norm in norms:
            report.problems.append(f"the norm {_scope(norm).removesuffix('.square')} reads a rounded value")
        for end in [] if norms else ends:
            if end.op_type not in ("MatMul", "Gemm", "DequantizeLinear"):
                report.problems.append(f"{end.name or end.op_type} reads a rounded value; only products should")


def _judge_scales(graph: Reading, report: Report) -> None:
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or graph.codes(node).format != "fp4":
            continue
        if (weight := graph.codes(node).weight) is None:
            continue
        maker = graph.makers.get(graph.back(node.input[1]))
        blocks = (
            graph.tensors.get(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
        )
        if blocks is None or blocks.data_type != TensorProto.FLOAT8E4M3FN:
            report.problems.append(f"{weight}: its block scales are not rounded to E4M3")


def _judge_bits(graph: Reading, report: Report, path: Path, checkpoint: Path | None) -> None:
    """Low-precision weights and their scales against the checkpoint, or against the digest of the export."""
    if checkpoint is None:
        promised = _metadata(graph.model).get(DIGEST)
        if promised is not None and promised != weights_digest(graph.model, path.parent):
            report.problems.append("the low-precision weights are not those the graph was exported with")
        return
    stored = read_index(checkpoint)
    for tensor in graph.model.graph.initializer:
        low = tensor.data_type in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
        if tensor.name not in stored:
            if low and np.prod(tensor.dims) > 1:
                report.problems.append(f"{tensor.name}: the checkpoint has no such weight")
        elif low or (tensor.data_type == TensorProto.FLOAT and "_scale" in tensor.name):
            same = tensor_bytes(tensor, path.parent) == read(stored[tensor.name])
            report.problems += [] if same else [f"{tensor.name}: differs from the checkpoint's"]


def weights_digest(model: onnx.ModelProto, folder: Path) -> str:
    """SHA-256 of the names and bytes of all E4M3 and E2M1 initializers and float32 scales, in the graph's order."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        low = tensor.data_type in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
        if low or tensor.name.endswith(("_scale", "_scale_2")):
            digest.update(tensor.name.encode())
            digest.update(tensor_bytes(tensor, folder))
    return digest.hexdigest()


def tensor_bytes(tensor: TensorProto, folder: Path) -> bytes:
    """The bytes of an initializer, from the file beside the graph where they lie there."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return bytes(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    where = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / where["location"]).open("rb") as stream:
        stream.seek(int(where.get("offset", 0)))
        data: bytes = stream.read(int(where["length"]) if "length" in where else -1)
        return data


def _bytes(tensor: TensorProto) -> int:
    bits: dict[int, int] = {TensorProto.FLOAT4E2M1: 4, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT: 32}
    return int(np.prod(tensor.dims, dtype=np.int64)) * bits.get(tensor.data_type, 16) // 8


def _module(node: NodeProto, weight: str | None) -> str:
    """A linear's module: its weight's name where that says it, else the node's (as in exporters' own names)."""
    if weight is not None and weight.endswith((".weight", "svdquant_lora_a", "svdquant_lora_b")):
        return weight.removesuffix(".weight")
    return _scope(node)


def _scope(node: NodeProto) -> str:
    """`a.b` of a node called `a.b/MatMul` or `/a/b/MatMul`."""
    return node.name.strip("/").rpartition("/")[0].replace("/", ".") or node.name or node.op_type


def _reason(name: str) -> str | None:
    return HIGH.get(name.split(".")[0])


def _is_square(graph: Reading, node: NodeProto) -> bool:
    """x * x or x ** 2 that goes into a mean: the beginning of an RMSNorm."""
    twice = node.op_type == "Mul" and graph.back(node.input[0]) == graph.back(node.input[1])
    return (twice or node.op_type == "Pow") and any(end.op_type == "ReduceMean" for end in graph.ends(node.output[0]))


def _values(tensor: TensorProto) -> Any:
    return numpy_helper.to_array(tensor).astype(np.float32).reshape(-1)[0]


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
