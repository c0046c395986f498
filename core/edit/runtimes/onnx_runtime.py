"""The `onnx` runtime: the exported graph itself on ONNX Runtime, on a CPU.

It proves a graph without a GPU, and edits small models. ONNX Runtime's CPU has no BF16 products and no NVFP4, so the
graph is rewritten in memory before it is loaded: BF16 becomes float32, weights are dequantized once, and the NVFP4
rounding of activations is spelled out in standard operations. E4M3 Q/DQ stay as they are and really round.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from core.edit import lowbit
from core.edit.runtimes import require_every_step_full
from core.edit.sampling import Conditioning, Predict
from core.errors import UnavailableError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31
"""Of the rewritten graph: protobuf's limit. kontext-dev would take 48 GB and half an hour a step."""

NVFP4 = """
<opset_import: ["": 23], domain: "kontext_tui">
round_nvfp4 (x, scale) => (y) {
    six = Constant <value_float = 6.0> ()
    smallest = Constant <value_float = 0.001953125> ()
    largest = Constant <value_float = 448.0> ()
    one = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    two = Constant <value_float = 2.0> ()
    four = Constant <value_float = 4.0> ()
    last = Constant <value_ints = [-1]> ()
    sixteen = Constant <value_ints = [-1, 16]> ()
    blocks = Reshape (x, sixteen)
    magnitude = Abs (blocks)
    amax = ReduceMax (magnitude, last)
    sixth = Div (amax, six)
    exact = Div (sixth, scale)
    clipped = Clip (exact, smallest, largest)
    codes = QuantizeLinear <output_dtype = 17> (clipped, one)
    rounded = DequantizeLinear (codes, one)
    steps = Mul (rounded, scale)
    scaled = Div (blocks, steps)
    wide = Abs (scaled)
    size = Min (wide, six)
    below_two = Less (size, two)
    below_four = Less (size, four)
    upper = Where (below_four, one, two)
    unit = Where (below_two, half, upper)
    units = Div (size, unit)
    whole = Round (units)
    value = Mul (whole, unit)
    sign = Sign (scaled)
    signed = Mul (value, sign)
    result = Mul (signed, steps)
    shape = Shape (x)
    y = Reshape (result, shape)
}
"""
"""`lowbit.round_nvfp4` in ONNX: the block's largest value becomes 6; E2M1 steps by 0.5 below 2, 1 below 4, else 2."""


class OnnxRuntime:
    """Runs an exported graph. `precision`: what the graph's weights are in."""

    name = "onnx"
    device_bytes = 0
    caveat = ""
    recorded_bytes = 0
    weight_bytes = 0
    kept_bytes = 0

    def __init__(self, path: Path, precision: str) -> None:
        """Load a graph and the weights beside it. Raises UnavailableError where it cannot run here."""
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UnavailableError(
                f"the onnx runtime needs {error.name}: `pip install 'kontext-tui[quant]'` brings it"
            ) from None
        self.precision = precision
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's own, of several modules; a missing data file
            raise UnavailableError(f"{path} cannot be loaded as ONNX: {_first_line(error)}") from None
        model = to_float32(model)
        if model.ByteSize() >= MAX_BYTES:
            raise UnavailableError(f"{path} is too big for ONNX Runtime on a CPU; use `runtime: torch` or `tensorrt`")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # The higher levels move Q/DQ through other operations, some of which then have no kernel.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the CPU as well
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own, of its C extension
            raise UnavailableError(f"ONNX Runtime cannot run {path}: {_first_line(error)}") from None
        self.inputs = {value.name for value in self._session.get_inputs()}

    def release(self) -> None:
        """Nothing: ONNX Runtime keeps its own."""

    def begin(self, conditioning: Conditioning, *, keep_context: bool = False) -> Predict:
        require_every_step_full(self.name, keep_context)
        given = {
            "encoder_hidden_states": conditioning.prompt,
            "pooled_projections": conditioning.pooled,
            "img_ids": conditioning.image_ids,
            "txt_ids": conditioning.text_ids,
            "guidance": conditioning.guidance,
        }
        fixed = {name: _array(value) for name, value in given.items() if value is not None and name in self.inputs}

        def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
            hidden = torch.cat([latents, conditioning.context], dim=1)
            velocity = self.run({**fixed, "hidden_states": _array(hidden), "timestep": _array(timestep / 1000)})
            return torch.from_numpy(velocity[:, : latents.shape[1]]).to(latents)

        return predict

    def run(self, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """One call of the graph: float32 arrays under the interface's names -> the velocity of all tokens."""
        missing = self.inputs - inputs.keys()
        if missing:
            raise UnavailableError(f"this graph also wants {', '.join(sorted(missing))}: it is of another model")
        try:
            result: np.ndarray[Any, Any] = self._session.run(None, inputs)[0]
        except Exception as error:  # onnxruntime's own, of its C extension
            raise UnavailableError(f"ONNX Runtime stopped: {_first_line(error)}") from None
        return result


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32, without NVFP4: what ONNX Runtime's CPU computes. `model` is used up."""
    from onnx import TensorProto, helper, parser

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[str, Tensor] = {}

    def value(name: str) -> Tensor | None:
        if name not in folded and name in constants:
            folded[name] = read_tensor(constants[name])
        return folded.get(name)

    nodes, rounded = [], {}
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        weight = value(node.input[0]) if node.op_type in ("DequantizeLinear", "Transpose") else None
        source = producers.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and weight is not None:
            scale = value(node.input[1])
            assert scale is not None
            folded[node.output[0]] = _dequantize(weight, scale, attributes.get("block_size", 0))
        elif node.op_type == "Transpose" and weight is not None:
            folded[node.output[0]] = weight.permute(*attributes["perm"]).contiguous()
        elif node.op_type == "TRT_FP4DynamicQuantize":
            rounded[node.output[0]] = (node.input[0], node.input[1])
        elif node.op_type == "DequantizeLinear" and source is not None and source.op_type == "TRT_FP4DynamicQuantize":
            if node.input[0] in rounded:  # the codes; the other one is of the block scales and goes with them
                nodes.append(
                    helper.make_node(
                        "round_nvfp4", rounded[node.input[0]], node.output, node.name, domain="kontext_tui"
                    )
                )
        elif node.domain not in ("", "ai.onnx"):
            raise UnavailableError(f"ONNX Runtime has no {node.domain}::{node.op_type}; use `runtime: torch`")
        else:
            _retype(node)
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    codes = {name for name, tensor in constants.items() if tensor.data_type == TensorProto.FLOAT8E4M3FN}
    for name, tensor in folded.items():
        if name in used and name not in codes:
            constants[name] = helper.make_tensor(
                name, TensorProto.FLOAT, tensor.shape, _array(tensor).tobytes(), raw=True
            )
    kept = [_float_tensor(constants[name]) for name in sorted(used & constants.keys())]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    if rounded:
        model.opset_import.append(helper.make_opsetid("kontext_tui", 1))
        model.functions.append(parser.parse_function(NVFP4))
    return model


def read_tensor(tensor: onnx.TensorProto) -> Tensor:
    """An initializer in its own type; E2M1 codes as their values in float32."""
    from onnx import TensorProto, numpy_helper

    kinds: dict[int, torch.dtype] = {
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    }
    shape = tuple(tensor.dims)
    if tensor.data_type == TensorProto.FLOAT4E2M1:
        packed = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8)
        return lowbit.from_e2m1(lowbit.unpack_e2m1(packed)).reshape(shape)
    if tensor.data_type in kinds and tensor.HasField("raw_data"):
        return torch.frombuffer(bytearray(tensor.raw_data), dtype=kinds[tensor.data_type]).reshape(shape)
    array = numpy_helper.to_array(tensor)
    return torch.from_numpy(np.array(array).reshape(shape))


def _dequantize(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    """[..., n] values times one scale, or times one for each `block` along the last axis; float32."""
    if not block:
        return lowbit.from_e4m3(codes, scale, torch.float32)
    blocks = codes.float().reshape(*scale.shape, block)
    scaled: Tensor = (blocks * scale.float().unsqueeze(-1)).flatten(-2)
    return scaled


def _retype(node: onnx.NodeProto) -> None:
    """BF16 becomes float32 wherever a node names its type."""
    from onnx import TensorProto

    for attribute in node.attribute:
        if attribute.name in ("to", "output_dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.HasField("t"):
            attribute.t.CopyFrom(_float_tensor(attribute.t))


def _float_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    if tensor.data_type != TensorProto.BFLOAT16:
        return tensor
    raw = _array(read_tensor(tensor)).tobytes()
    return helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, raw, raw=True)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().float().numpy()
    return array


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
