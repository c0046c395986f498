"""Small ONNX graphs with the interface of a Kontext transformer, written by hand: quick for the real builder.

Two-layer blocks of linears stand in for attention; kontext-tiny's widths. FP8 weights carry per-tensor scales, NVFP4
ones E4M3 scales for blocks of 16 and a float32 scale, as in the graphs that the project exports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

CHANNELS, JOINT, POOLED, TEXT, HIDDEN = 64, 128, 64, 48, 128
INTERFACE = {
    "hidden_states": (T.BFLOAT16, ("batch", "tokens", CHANNELS)),
    "encoder_hidden_states": (T.BFLOAT16, ("batch", TEXT, JOINT)),
    "pooled_projections": (T.BFLOAT16, ("batch", POOLED)),
    "timestep": (T.BFLOAT16, ("batch",)),
    "img_ids": (T.FLOAT, ("tokens", 3)),
    "txt_ids": (T.FLOAT, (TEXT, 3)),
    "guidance": (T.FLOAT, ("batch",)),
}


def write_graph(
    path: Path, precision: str, *, blocks: int = 2, rename: dict[str, str] | None = None, external: bool = False
) -> Path:
    """`precision`: bf16, fp8 or fp4. `rename`: other names for inputs. `external`: weights in a file of their own."""
    graph = _Graph(rename or {})
    x = graph.linear("x_embedder", graph.input("hidden_states"), CHANNELS, HIDDEN, "bf16")
    for name, value in graph.conditions().items():
        x = graph.node("Add", [x, value], f"with.{name}")
    for block in range(blocks):
        up = graph.linear(f"blocks.{block}.up", x, HIDDEN, 4 * HIDDEN, precision)
        up = graph.node("Relu", [up], f"blocks.{block}.act")
        down = graph.linear(f"blocks.{block}.down", up, 4 * HIDDEN, HIDDEN, precision)
        x = graph.node("Add", [x, down], f"blocks.{block}.out")
    graph.node("Identity", [graph.linear("proj_out", x, HIDDEN, CHANNELS, "bf16")], "latent")
    inputs = [helper.make_tensor_value_info(graph.input(name), *interface) for name, interface in INTERFACE.items()]
    output = helper.make_tensor_value_info("latent", T.BFLOAT16, ("batch", "tokens", CHANNELS))
    made = helper.make_graph(graph.nodes, "transformer", inputs, [output], graph.initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=external, location=path.name + ".data", size_threshold=0)
    return path


class _Graph:
    def __init__(self, rename: dict[str, str]) -> None:
        self.rename = rename
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.random = np.random.default_rng(0)

    def input(self, name: str) -> str:
        return self.rename.get(name, name)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: Any, kind: int, shape: tuple[int, ...] | None = None) -> str:
        values = np.ascontiguousarray(values)
        data = values.tobytes()
        self.initializers.append(
            helper.make_tensor(name, kind, values.shape if shape is None else shape, data, raw=True)
        )
        return name

    def bf16(self, name: str, values: Any) -> str:
        return self.constant(name, np.asarray(values, np.float32).astype(ml_dtypes.bfloat16), T.BFLOAT16)

    def conditions(self) -> dict[str, str]:
        """Everything but the latents, each as [batch or 1, tokens or 1, HIDDEN] or [.., 1]."""
        axis = {n: self.constant(f"axis.{n}", np.array([n], np.int64), T.INT64) for n in (0, 1)}
        column = self.constant("column", np.array([-1, 1, 1], np.int64), T.INT64)
        text = self.linear("context", self.input("encoder_hidden_states"), JOINT, HIDDEN, "bf16")
        pooled = self.linear("pooled", self.input("pooled_projections"), POOLED, HIDDEN, "bf16")
        guidance = self.node("Cast", [self.input("guidance")], "guidance.bf16", to=T.BFLOAT16)
        ids = self.node("Cast", [self.input("img_ids")], "img_ids.bf16", to=T.BFLOAT16)
        text_ids = self.node("ReduceMean", [self.input("txt_ids"), axis[0]], "txt_ids.mean", keepdims=1)
        text_ids = self.node("Cast", [text_ids], "txt_ids.bf16", to=T.BFLOAT16)
        return {
            "text": self.node("ReduceMean", [text, axis[1]], "text.mean", keepdims=1),
            "pooled": self.node("Unsqueeze", [pooled, axis[1]], "pooled.row"),
            "timestep": self.node("Reshape", [self.input("timestep"), column], "timestep.column"),
            "guidance": self.node("Reshape", [guidance, column], "guidance.column"),
            "ids": self.node("Unsqueeze", [self.linear("ids", ids, 3, HIDDEN, "bf16"), axis[0]], "ids.batch"),
            "text ids": self.node(
                "Unsqueeze", [self.linear("txt", text_ids, 3, HIDDEN, "bf16"), axis[0]], "txt.batch"
            ),
        }

    def linear(self, name: str, x: str, n_in: int, n_out: int, precision: str) -> str:
        weight = self.random.standard_normal((n_in, n_out), dtype=np.float32) / n_in**0.5
        match precision:
            case "bf16":
                return self.node("MatMul", [x, self.bf16(f"{name}.weight", weight)], name)
            case "fp8":
                return self._fp8(name, x, weight)
            case "fp4":
                return self._fp4(name, x, weight.T)
            case _:
                raise ValueError(precision)

    def _fp8(self, name: str, x: str, weight: Any) -> str:
        scale = np.abs(weight).max() / 448
        packed = (weight / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        stored = self.constant(f"{name}.weight", packed, T.FLOAT8E4M3FN)
        weight_scale, input_scale = (
            self.bf16(f"{name}.weight_scale", scale),
            self.bf16(f"{name}.input_scale", 4 / 448),
        )
        zero = self.constant(f"{name}.zero", np.zeros((), ml_dtypes.float8_e4m3fn), T.FLOAT8E4M3FN)
        rounded = self.node("QuantizeLinear", [x, input_scale, zero], f"{name}.q")
        rounded = self.node("DequantizeLinear", [rounded, input_scale], f"{name}.dq")
        return self.node(
            "MatMul", [rounded, self.node("DequantizeLinear", [stored, weight_scale], f"{name}.w")], name
        )

    def _fp4(self, name: str, x: str, weight: Any) -> str:
        """weight [out, in]: blocks lie along `in`, the axis that the product sums over."""
        n_out, n_in = weight.shape
        blocks = weight.reshape(n_out, n_in // 16, 16)
        scale = np.float32(np.abs(blocks).max() / (6 * 448))
        scales = (np.abs(blocks).max(-1) / 6 / scale).astype(ml_dtypes.float8_e4m3fn)
        codes = (blocks / (scales.astype(np.float32) * scale)[..., None]).astype(ml_dtypes.float4_e2m1fn)
        nibbles = codes.view(np.uint8).reshape(-1) & 15
        packed = nibbles[0::2] | nibbles[1::2] << 4
        stored = self.constant(f"{name}.weight", packed, T.FLOAT4E2M1, (n_out, n_in))
        blockwise = {"axis": -1, "block_size": 16}
        weight_scale = self._two_scales(
            self.constant(f"{name}.weight_scale", scales, T.FLOAT8E4M3FN),
            self.constant(f"{name}.weight_scale_2", scale, T.FLOAT),
        )
        restored = self.node("DequantizeLinear", [stored, weight_scale], f"{name}.w", **blockwise)
        restored = self.node("Transpose", [restored], f"{name}.wt", perm=[1, 0])
        input_scale = self.constant(f"{name}.input_scale", np.float32(4 / (6 * 448)), T.FLOAT)
        self.nodes.append(
            helper.make_node(
                "TRT_FP4DynamicQuantize",
                [x, input_scale],
                [f"{name}.q", f"{name}.q_scale"],
                domain="trt",
                scale_type=T.FLOAT8E4M3FN,
                **blockwise,
            )
        )
        scale_of_input = self._two_scales(f"{name}.q_scale", input_scale)
        rounded = self.node("DequantizeLinear", [f"{name}.q", scale_of_input], f"{name}.dq", **blockwise)
        return self.node("MatMul", [rounded, restored], name)

    def _two_scales(self, scales: str, scale: str) -> str:
        both = self.node("DequantizeLinear", [scales, scale], f"{scales}.f32")
        return self.node("Cast", [both], f"{scales}.bf16", to=T.BFLOAT16)  # TensorRT takes the operands' type only
