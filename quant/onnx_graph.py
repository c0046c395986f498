"""A graph under construction, and how low precision is said in it: Q/DQ in standard ONNX, strongly typed.

Everything between the operations is BF16. What a quantized checkpoint holds of a linear (see `core.edit.quantized`)
becomes, with the float32 scales as they are:

    E4M3    x -> QuantizeLinear -> DequantizeLinear -> BF16      W -> DequantizeLinear -> Transpose -> BF16
    NVFP4   x -> trt::TRT_FP4DynamicQuantize -> codes, block scales     W, block scales: as stored
            block scales -> DequantizeLinear -> BF16, codes -> DequantizeLinear(block_size 16) -> BF16

both sides meet in a MatMul, which TensorRT runs in the type before the DequantizeLinears. Block scales must leave
their DequantizeLinear in BF16: with float32 TensorRT refuses the second one ("could not infer output types").

Weights are never read while a graph is made: a `Stored` says where the bytes lie, `write_data` copies them.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from core.edit.lowbit import BLOCK
from core.edit.quantized import SOFTMAX_SCALE, hadamard_matrices
from core.errors import UnavailableError

OPSET = 23
"""The first with FLOAT4E2M1 in DequantizeLinear and with scales of a type of their own; TensorRT 10.13 reads it."""
IR_VERSION = 11
BF16, FLOAT, E4M3, E2M1 = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1
HADAMARD = "hadamard_"
"""Begins the names of the matrices that mix the channels of queries and keys, which are no linear's weights."""
INLINE_BYTES = 1024
"""Tensors up to this size stay inside the model's file."""
ALIGNMENT = 4096
"""Of tensors in the data file: a page, so that readers can map them."""

_KINDS = {"BF16": BF16, "F32": FLOAT, "F8_E4M3": E4M3, "U8": TensorProto.UINT8, "F16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. `kind`: a TensorProto data type; bytes `start` to `stop` of `file`."""

    name: str
    file: Path
    kind: int
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass
class Graph:
    """Nodes and tensors so far; the tensors that have an entry in `sources` get their bytes from there."""

    stored: dict[str, Stored]
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    sources: dict[str, Stored] = field(default_factory=dict)
    linears: Counter[str] = field(default_factory=Counter)
    attentions: Counter[str] = field(default_factory=Counter)
    parameters: int = 0
    _names: Counter[str] = field(default_factory=Counter)
    _done: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, at: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node called `at`/kind and return the name of its output, or a list of several."""
        name = f"{at}/{kind}"
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}_{self._names[name]}"
        results = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, results, name, domain=domain, **attributes))
        return results[0] if outputs == 1 else results

    def constant(self, name: str, array: np.ndarray[Any, Any], kind: int | None = None) -> str:
        """A small tensor by value; the same name again is the same tensor. `kind`: BF16 for float32 values."""
        if name not in self.tensors:
            if kind == BF16:
                raw = to_bf16(array).tobytes()
            else:
                kind, raw = helper.np_dtype_to_tensor_dtype(array.dtype), array.tobytes()
            self.tensors[name] = helper.make_tensor(name, kind, array.shape, raw, raw=True)
        return name

    def weight(self, name: str, kind: int, shape: Sequence[int] | None = None) -> str:
        """The stored tensor `name` as an initializer of type `kind`, bytes unchanged where the types allow it."""
        stored = self.stored[name]
        if name not in self.tensors:
            self.tensors[name] = TensorProto(name=name, data_type=kind, dims=stored.shape if shape is None else shape)
            self.sources[name] = stored
        return name

    def scalar(self, name: str) -> str:
        """A stored float32 scale, whatever its shape: one number."""
        if (size := int(np.prod(self.stored[name].shape))) != 1:
            raise UnavailableError(f"{name} has {size} values; kontext-tui's checkpoints hold one scale a tensor")
        return self.weight(name, FLOAT, ())

    def linear(self, name: str, x: str) -> str:
        """y = x W^T + b of the module `name`, in whatever precision the checkpoint holds it. x: [..., in] BF16."""
        if f"{name}.pre_quant_scale" in self.stored:
            x = self.op("Mul", x, self.weight(f"{name}.pre_quant_scale", BF16), at=name)
        if f"{name}.weight_scale_2" in self.stored:
            precision, left, right = "fp4", self._dynamic_nvfp4(name, x), self._nvfp4_weight(name)
        elif f"{name}.weight_scale" in self.stored:
            precision = "fp8"
            left = self.qdq(x, self.scalar(f"{name}.input_scale"), at=name)
            right = self._dequantize(
                self.weight(f"{name}.weight", E4M3), self.scalar(f"{name}.weight_scale"), at=f"{name}.weight"
            )
        else:
            precision, left, right = "bf16", x, self.weight(f"{name}.weight", BF16)
        self.linears[precision] += 1
        self.parameters += int(np.prod(self.stored[f"{name}.weight"].shape)) * (2 if precision == "fp4" else 1)
        y: str = self.op("MatMul", left, self.op("Transpose", right, at=f"{name}.weight", perm=[1, 0]), at=name)
        if f"{name}.bias" in self.stored:
            y = self.op("Add", y, self.weight(f"{name}.bias", BF16), at=name)
            self.parameters += self.stored[f"{name}.bias"].shape[0]
        if f"{name}.svdquant_lora_a" in self.stored:
            branch = x
            for part in ("svdquant_lora_a", "svdquant_lora_b"):  # [rank, in], then [out, rank]
                factor = self.op("Transpose", self.weight(f"{name}.{part}", BF16), at=f"{name}.{part}", perm=[1, 0])
                branch = self.op("MatMul", branch, factor, at=f"{name}.{part}")
                self.parameters += int(np.prod(self.stored[f"{name}.{part}"].shape))
            y = self.op("Add", y, branch, at=f"{name}.svdquant")
        return y

    def qdq(self, x: str, scale: str, *, at: str) -> str:
        """x (BF16 or float32) rounded to E4M3 with one scale, in BF16.

        Layers that read one tensor with one scale share the rounding: q, k and v of an attention, as a rule.
        """
        key = ("qdq", x, self._value(scale))
        if key not in self._done:
            zero = self.tensors.setdefault("e4m3_zero", helper.make_tensor("e4m3_zero", E4M3, [], b"\0", raw=True))
            codes = self.op("QuantizeLinear", x, scale, zero.name, at=f"{at}.input")
            self._done[key] = self._dequantize(codes, scale, zero.name, at=f"{at}.input")
        return self._done[key]

    def attention(
        self,
        name: str,
        q: str,
        k: str,
        v: str,
        head_dim: int,
        scales: dict[str, float] | None,
        *,
        hadamard: bool = False,
    ) -> str:
        """softmax(q k^T / sqrt(dim)) v of [1, tokens, heads, dim] BF16; with scales both products in E4M3.

        Softmax is in float32 either way; its output, in 0..1, is rounded to E4M3 with a fixed scale. TensorRT makes
        one kernel of exactly this: with products in float32, or a Cast between softmax and rounding, it keeps scores
        of tokens x tokens in memory (9.4 GB instead of 0.1 at 24 heads and 8704 tokens; TensorRT-RTX 1.5 and 1.7).
        """
        if scales is not None and hadamard:
            factors = zip("qk", hadamard_matrices(head_dim), strict=True)
            for_q, for_k = (self.constant(f"{HADAMARD}{part}", factor.numpy(), BF16) for part, factor in factors)
            q = self.op("MatMul", q, for_q, at=f"{name}.q.{HADAMARD}")
            k = self.op("MatMul", k, for_k, at=f"{name}.k.{HADAMARD}")
        q = self.op("Transpose", q, at=f"{name}.q", perm=[0, 2, 1, 3])
        k = self.op("Transpose", k, at=f"{name}.k", perm=[0, 2, 3, 1])
        v = self.op("Transpose", v, at=f"{name}.v", perm=[0, 2, 1, 3])
        self.attentions["bf16" if scales is None else "fp8"] += 1
        if scales is not None:
            q, k, v = (
                self.qdq(x, self._float(f"{name}.{part}_scale", scales[part]), at=f"{name}.{part}")
                for part, x in (("q", q), ("k", k), ("v", v))
            )
        scores = self.op("Cast", self.op("MatMul", q, k, at=f"{name}.bmm1"), at=f"{name}.bmm1", to=FLOAT)
        scores = self.op("Mul", scores, self._float(f"attention_scale_{head_dim}", head_dim**-0.5), at=name)
        weights = self.op("Softmax", scores, at=name, axis=-1)
        if scales is None:
            weights = self.op("Cast", weights, at=f"{name}.softmax", to=BF16)
        else:
            weights = self.qdq(weights, self._float("softmax_scale", SOFTMAX_SCALE), at=f"{name}.softmax")
        mixed = self.op("MatMul", weights, v, at=f"{name}.bmm2")
        result: str = self.op("Transpose", mixed, at=f"{name}.bmm2", perm=[0, 2, 1, 3])
        return result

    def rms_norm(self, name: str, x: str, eps: float) -> str:
        """x / rms(x) times the module's weight, over the last axis; in float32."""
        wide = self.op("Cast", x, at=name, to=FLOAT)
        square = self.op("Mul", wide, wide, at=f"{name}.square")
        mean = self.op("ReduceMean", square, self.constant("last_axis", np.array([-1])), at=name, keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self._float(f"eps_{eps}", eps), at=name), at=name)
        scale = self.op("Cast", self.weight(f"{name}.weight", BF16), at=f"{name}.weight", to=FLOAT)
        self.parameters += int(np.prod(self.stored[f"{name}.weight"].shape))
        product = self.op("Mul", self.op("Div", wide, root, at=name), scale, at=name)
        result: str = self.op("Cast", product, at=f"{name}.out", to=BF16)
        return result

    def _nvfp4_weight(self, name: str) -> str:
        rows, half = self.stored[f"{name}.weight"].shape
        codes = self.weight(
            f"{name}.weight", E2M1, (rows, half * 2)
        )  # the first code in the low half in both formats
        blocks = self.weight(f"{name}.weight_scale", E4M3)
        steps = self._dequantize(blocks, self.scalar(f"{name}.weight_scale_2"), at=f"{name}.weight_scale")
        return self._dequantize(codes, steps, at=f"{name}.weight", axis=-1, block_size=BLOCK)

    def _dynamic_nvfp4(self, name: str, x: str) -> str:
        scale = self.scalar(f"{name}.input_scale")
        key = ("nvfp4", x, self._value(scale))
        if key not in self._done:
            at = f"{name}.input"
            codes, blocks = self.op(
                "TRT_FP4DynamicQuantize", x, scale, at=at, outputs=2, domain="trt",
                axis=-1, block_size=BLOCK, scale_type=int(E4M3),
            )  # fmt: skip
            steps = self._dequantize(blocks, scale, at=f"{at}_scale")
            self._done[key] = self._dequantize(codes, steps, at=at, axis=-1, block_size=BLOCK)
        return self._done[key]

    def _dequantize(self, codes: str, *scale: str, at: str, **attributes: Any) -> str:
        """To BF16. The result is of the scale's type unless said: scales of blocks are BF16, all others float32."""
        typed: dict[str, Any] = {} if "block_size" in attributes else {"output_dtype": int(BF16)}
        result: str = self.op("DequantizeLinear", codes, *scale, at=at, **typed, **attributes)
        return result

    def _float(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def _value(self, scale: str) -> bytes:
        """The bytes of a scalar, wherever it lies."""
        source = self.sources.get(scale)
        return read(source) if source is not None else self.tensors[scale].raw_data


def read_index(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files by name, from their headers alone."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(min(length, size)))
            except ValueError:
                raise UnavailableError(f"{file} is not a safetensors file") from None
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] not in _KINDS:
                raise UnavailableError(f"{file}: {name} is {entry['dtype']}, which no checkpoint of ours holds")
            if stop > size:
                raise UnavailableError(f"{file} is cut short: {name} ends behind it")
            found[name] = Stored(name, file, _KINDS[entry["dtype"]], tuple(entry["shape"]), start, stop)
    return found


def read(stored: Stored) -> bytes:
    """The bytes of one tensor."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        return stream.read(stored.stop - stored.start)


def write_data(graph: Graph, path: Path) -> int:
    """Fill the graph's stored tensors: small ones in place, the others into `path`. Returns that file's bytes.

    A tensor of the right type is copied from file to file; float32 and float16 ones are rounded to BF16 on the way,
    one tensor at a time.
    """
    maps = {source.file: _map(source.file) for source in graph.sources.values()}
    with path.open("wb") as out:
        for name, source in graph.sources.items():
            tensor = graph.tensors[name]
            raw: Any = memoryview(maps[source.file])[source.start : source.stop]
            if source.kind != tensor.data_type and not (
                source.kind == TensorProto.UINT8 and tensor.data_type == E2M1
            ):
                raw = _convert(raw, source, tensor.data_type)
            if len(raw) <= INLINE_BYTES:
                tensor.raw_data = bytes(raw)
                continue
            out.seek(-out.tell() % ALIGNMENT, 1)
            _point(tensor, path.name, out.tell(), len(raw))
            out.write(raw)
        return out.tell()


def to_bf16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 as the 16 bits of the nearest BF16 (ties to even), uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded: np.ndarray[Any, Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _convert(raw: Any, source: Stored, kind: int) -> bytes:
    wide: dict[int, Any] = {FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
    if source.kind == BF16 and kind == FLOAT:
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).tobytes()
    if source.kind not in wide or kind not in (BF16, FLOAT):
        names = TensorProto.DataType.Name
        raise UnavailableError(f"{source.name} is {names(source.kind)} in the checkpoint, not {names(kind)}")
    array = np.frombuffer(raw, wide[source.kind]).astype(np.float32)
    return array.tobytes() if kind == FLOAT else to_bf16(array).tobytes()


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say that a tensor's bytes lie in another file (ONNX: external data)."""
    tensor.data_location = TensorProto.EXTERNAL
    entries: Iterable[tuple[str, object]] = (("location", location), ("offset", offset), ("length", length))
    for key, value in entries:
        tensor.external_data.add(key=key, value=str(value))
