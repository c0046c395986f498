"""Checkpoint -> ONNX: FLUX's transformer written node by node, its weights copied as they lie in the checkpoint.

The graph is written, not traced: a tracer runs the model at some number of tokens and may leave that number in a
constant, adds ten nodes for every reshape, and needs the weights in memory. Here nothing is ever run; the tests hold
the graph against diffusers' FluxTransformer2DModel at several token counts. Weights go from file to file.

The interface is that of the ONNX that Black Forest Labs publish for FLUX.1 Kontext [dev], so either can be built.
"""

from __future__ import annotations

import json
import math
import time
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from core.edit import quantized
from core.edit.runtimes.trt_api import INPUTS, OUTPUT
from core.errors import UnavailableError, UsageError
from quant.lint import DIGEST, weights_digest
from quant.onnx_graph import BF16, FLOAT, IR_VERSION, OPSET, Graph, Stored, read_index, write_data

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
PRECISIONS = ("bf16", "fp8", "fp4", "fp4-svd")

# Of FLUX.1: diffusers' FluxTransformer2DModel has them as constants too.
TIME_CHANNELS, TIME_PERIOD = 256, 10_000.0
ROPE_THETA = 10_000.0
NORM_EPS = 1e-6
DEFAULTS: dict[str, Any] = {
    "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip


def export(source: Path, out: Path, precision: str, text_tokens: int) -> dict[str, Any]:
    """Write `out`/model.onnx and model.onnx.data from a checkpoint's or a model's transformer folder; return facts.

    text_tokens: the fixed length of the T5 prompt. The number of image and context tokens stays open.
    Raises UsageError and UnavailableError where the folder is not what `precision` says.
    """
    start = time.perf_counter()
    config = read_config(source)
    graph = Graph(read_index(source))
    quant_file = quantized.read_quant_file(source)
    check_checkpoint(source, precision, graph.stored, quant_file)
    try:
        latent = Transformer(graph, config, quant_file, text_tokens).build()
    except KeyError as error:
        raise UnavailableError(f"{source} is incomplete: it has no tensor {error}") from None
    unused = sorted(set(graph.stored) - graph.tensors.keys())
    if unused:
        raise UnavailableError(f"{source}: the transformer has no place for {', '.join(unused[:3])}")
    built = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    data_bytes = write_data(graph, out / DATA_FILE)
    model = _model(graph, latent, config, text_tokens)
    about = {"precision": precision, "kept": json.dumps(quant_file.get("kept", {}))}
    helper.set_model_props(model, about | {DIGEST: weights_digest(model, out)})
    (out / MODEL_FILE).write_bytes(model.SerializeToString())
    return {
        "precision": precision,
        "opset": OPSET,
        "text_tokens": text_tokens,
        "nodes": len(graph.nodes),
        "linears": dict(graph.linears),
        "attentions": dict(graph.attentions),
        "parameters": graph.parameters,
        "onnx_bytes": (out / MODEL_FILE).stat().st_size,
        "data_bytes": data_bytes,
        "seconds": {"graph": round(built - start, 3), "weights": round(time.perf_counter() - built, 3)},
    }


def check_checkpoint(source: Path, precision: str, stored: dict[str, Stored], quant_file: dict[str, Any]) -> None:
    """The folder holds what `precision` says, and nothing that an export would silently leave out."""
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}: name one of {', '.join(PRECISIONS)}")
    if not stored:
        raise UnavailableError(f"{source} holds no safetensors")
    if any("lora_A" in name or "lora_B" in name or ".lora_down" in name for name in stored):
        raise UsageError(f"{source} holds a LoRA beside the weights: fuse it first (diffusers: `fuse_lora`)")
    found = quant_file.get("recipe") or precision_of(stored)
    if found != precision:
        raise UsageError(f"{source} is {found}, not {precision}")


def precision_of(stored: dict[str, Stored]) -> str:
    """What the names of a checkpoint's tensors say of its precision."""
    for ending, precision in ((".svdquant_lora_a", "fp4-svd"), (".weight_scale_2", "fp4"), (".weight_scale", "fp8")):
        if any(name.endswith(ending) for name in stored):
            return precision
    return "bf16"


def read_config(source: Path) -> dict[str, Any]:
    """The config of a transformer's folder, with the defaults of diffusers' class filled in."""
    try:
        config: dict[str, Any] = json.loads((source / "config.json").read_text())
    except (OSError, ValueError):
        raise UnavailableError(f"{source} is not a transformer's folder: it has no config.json") from None
    if config.get("_class_name") != "FluxTransformer2DModel":
        raise UsageError(f"{source} holds a {config.get('_class_name')}, not a FluxTransformer2DModel")
    return DEFAULTS | config


class Transformer:
    """FluxTransformer2DModel.forward, on names of tensors in a graph. Methods take and return [1, tokens, width]."""

    def __init__(self, graph: Graph, config: dict[str, Any], quant_file: dict[str, Any], text_tokens: int) -> None:
        self.graph, self.op, self.linear = graph, graph.op, graph.linear
        self.config, self.text_tokens = config, text_tokens
        self.attention_scales = quant_file.get("attention", {})
        self.hadamard = bool(quant_file.get("hadamard", False))
        self.heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        self.width = self.heads * self.head_dim

    def build(self) -> str:
        """All of it; returns the name of the velocity."""
        self.cos, self.sin = self.rope()
        conditioning = self.conditioning()
        image = self.linear("x_embedder", "hidden_states")
        text = self.linear("context_embedder", "encoder_hidden_states")
        for index in range(self.config["num_layers"]):
            text, image = self.double_block(f"transformer_blocks.{index}", text, image, conditioning)
        both = self.op("Concat", text, image, at="single_transformer_blocks", axis=1)
        for index in range(self.config["num_single_layers"]):
            both = self.single_block(f"single_transformer_blocks.{index}", both, conditioning)
        image = self.image_tokens(both, at="norm_out")
        scale, shift = self.modulation("norm_out.linear", conditioning, 2)
        latent: str = self.linear("proj_out", self.modulated_norm("norm_out", image, scale, shift))
        return latent

    def conditioning(self) -> str:
        """SiLU of the embedded time, guidance and pooled prompt, [1, width]: what every modulation reads."""
        embedder = "time_text_embed"
        thousand = self.graph.constant("thousand", np.array(1000, np.float32), BF16)
        parts = []
        for source in ("timestep", "guidance") if self.config["guidance_embeds"] else ("timestep",):
            at = f"{embedder}.{source}_embedder"
            value = self.op("Mul", self.op("Cast", source, at=at, to=BF16), thousand, at=at)
            parts.append(self.mlp(at, self.sinusoid(at, value)))
        parts.append(self.mlp(f"{embedder}.text_embedder", "pooled_projections"))
        return self.silu(embedder, reduce(lambda total, part: self.op("Add", total, part, at=embedder), parts))

    def sinusoid(self, at: str, value: str) -> str:
        """[1] -> [1, TIME_CHANNELS]: cosines, then sines, of value times falling frequencies, in float32."""
        half = TIME_CHANNELS // 2
        exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(TIME_PERIOD)) / np.float32(half)
        frequencies = self.graph.constant("time_frequencies", np.exp(exponents)[None])
        wide = self.op("Cast", value, at=f"{at}.sinusoid", to=FLOAT)
        angles = self.op("Mul", self.op("Reshape", wide, self.ints("column", [1, 1]), at=at), frequencies, at=at)
        waves = [self.op(kind, angles, at=at) for kind in ("Cos", "Sin")]
        result: str = self.op("Cast", self.op("Concat", *waves, at=at, axis=-1), at=f"{at}.waves", to=BF16)
        return result

    def mlp(self, name: str, x: str) -> str:
        return self.linear(f"{name}.linear_2", self.silu(name, self.linear(f"{name}.linear_1", x)))

    def silu(self, at: str, x: str) -> str:
        result: str = self.op("Mul", x, self.op("Sigmoid", x, at=f"{at}.silu"), at=f"{at}.silu")
        return result

    def rope(self) -> tuple[str, str]:
        """Cosines and sines [1, tokens, 1, head dim] of the positions, text first; sines carry the signs."""
        axes: list[int] = self.config["axes_dims_rope"]
        axis_of = np.repeat(np.arange(len(axes)), axes)
        powers = np.concatenate([np.arange(0, size, 2, dtype=np.float64) / size for size in axes])
        frequencies = np.repeat(1.0 / ROPE_THETA**powers, 2).astype(np.float32)
        signs = np.tile(np.array([-1, 1], np.float32), len(frequencies) // 2)
        ids = self.op("Concat", "txt_ids", "img_ids", at="pos_embed", axis=0)
        positions = self.op("Gather", ids, self.ints("rope_axes", axis_of), at="pos_embed", axis=1)
        angles = self.op("Mul", positions, self.graph.constant("rope_frequencies", frequencies), at="pos_embed")
        cos, sin = (self.op(kind, angles, at="pos_embed") for kind in ("Cos", "Sin"))
        sin = self.op("Mul", sin, self.graph.constant("rope_signs", signs), at="pos_embed.signs")
        places = self.ints("rope_places", [0, 2])
        return (
            self.op("Unsqueeze", cos, places, at="pos_embed.cos"),
            self.op("Unsqueeze", sin, places, at="pos_embed.sin"),
        )

    def double_block(self, name: str, text: str, image: str, conditioning: str) -> tuple[str, str]:
        """Text and image go through weights of their own and meet in the attention."""
        streams = {
            "image": (image, "norm1", "norm2", "ff"),
            "text": (text, "norm1_context", "norm2_context", "ff_context"),
        }
        modulations = {
            stream: self.modulation(f"{name}.{norm}.linear", conditioning, 6)
            for stream, (_, norm, _, _) in streams.items()
        }
        normed = {
            stream: self.modulated_norm(f"{name}.{norm}", x, modulations[stream][1], modulations[stream][0])
            for stream, (x, norm, _, _) in streams.items()
        }
        mixed = self.attention(f"{name}.attn", normed["image"], normed["text"])
        outputs = {
            "image": self.linear(f"{name}.attn.to_out.0", self.image_tokens(mixed, at=f"{name}.attn")),
            "text": self.linear(f"{name}.attn.to_add_out", self.slice(mixed, 0, self.text_tokens, at=f"{name}.attn")),
        }
        results = []
        for stream in ("text", "image"):
            x, _, norm, feed_forward = streams[stream]
            _, _, gate, shift, scale, feed_gate = modulations[stream]
            x = self.gated(f"{name}.{stream}", x, gate, outputs[stream])
            hidden = self.modulated_norm(f"{name}.{norm}", x, scale, shift)
            hidden = self.gelu(f"{name}.{feed_forward}", self.linear(f"{name}.{feed_forward}.net.0.proj", hidden))
            hidden = self.linear(f"{name}.{feed_forward}.net.2", hidden)
            results.append(self.gated(f"{name}.{feed_forward}", x, feed_gate, hidden))
        return results[0], results[1]

    def single_block(self, name: str, both: str, conditioning: str) -> str:
        """Attention and feed-forward side by side, over text and image joined."""
        shift, scale, gate = self.modulation(f"{name}.norm.linear", conditioning, 3)
        normed = self.modulated_norm(f"{name}.norm", both, scale, shift)
        hidden = self.gelu(name, self.linear(f"{name}.proj_mlp", normed))
        joined = self.op("Concat", self.attention(f"{name}.attn", normed, None), hidden, at=name, axis=-1)
        return self.gated(name, both, gate, self.linear(f"{name}.proj_out", joined))

    def attention(self, name: str, x: str, text: str | None) -> str:
        """Over x, or over text and x joined in this order, each with projections of its own."""
        q, k = (self.head_norm(f"{name}.norm_{part}", self.split(f"{name}.to_{part}", x)) for part in "qk")
        v = self.split(f"{name}.to_v", x)
        if text is not None:
            parts = [self.split(f"{name}.add_{part}_proj", text) for part in "qkv"]
            parts[:2] = (self.head_norm(f"{name}.norm_added_{n}", p) for n, p in zip("qk", parts, strict=False))
            q, k, v = (
                self.op("Concat", ours, theirs, at=f"{name}.{part}", axis=1)
                for part, ours, theirs in zip("qkv", parts, (q, k, v), strict=True)
            )
        q, k = self.rotate(f"{name}.q", q), self.rotate(f"{name}.k", k)
        scales = self.attention_scales.get(name)
        mixed = self.graph.attention(name, q, k, v, self.head_dim, scales, hadamard=self.hadamard)
        joined: str = self.op("Reshape", mixed, self.ints("join_heads", [0, 0, self.width]), at=f"{name}.join")
        return joined

    def split(self, linear: str, x: str) -> str:
        """[1, tokens, width] -> [1, tokens, heads, head dim] of a linear's output."""
        shape = self.ints("split_heads", [0, 0, self.heads, self.head_dim])
        result: str = self.op("Reshape", self.linear(linear, x), shape, at=linear)
        return result

    def head_norm(self, name: str, x: str) -> str:
        return self.graph.rms_norm(name, x, NORM_EPS)

    def rotate(self, at: str, x: str) -> str:
        """Neighbours along the head dim turned as complex numbers: x cos + swapped x times signed sin, in float32."""
        wide = self.op("Cast", x, at=f"{at}.rotate", to=FLOAT)
        pairs = self.op("Reshape", wide, self.ints("to_pairs", [0, 0, self.heads, -1, 2]), at=f"{at}.pairs")
        real, imaginary = self.op("Split", pairs, at=f"{at}.pairs", outputs=2, axis=-1, num_outputs=2)
        swapped = self.op("Concat", imaginary, real, at=f"{at}.pairs", axis=-1)
        shape = self.ints("split_heads", [0, 0, self.heads, self.head_dim])
        swapped = self.op("Reshape", swapped, shape, at=f"{at}.swapped")
        turned = self.op("Mul", swapped, self.sin, at=f"{at}.swapped")
        total = self.op("Add", self.op("Mul", wide, self.cos, at=f"{at}.rotate"), turned, at=f"{at}.rotate")
        result: str = self.op("Cast", total, at=f"{at}.rotated", to=BF16)
        return result

    def modulation(self, linear: str, conditioning: str, count: int) -> list[str]:
        """`count` vectors [1, 1, width] of a modulation's linear."""
        vectors = self.op("Unsqueeze", self.linear(linear, conditioning), self.ints("tokens_axis", [1]), at=linear)
        parts: list[str] = self.op("Split", vectors, at=linear, outputs=count, axis=-1, num_outputs=count)
        return parts

    def modulated_norm(self, at: str, x: str, scale: str, shift: str) -> str:
        """LayerNorm(x) (1 + scale) + shift; the norm has no weights of its own."""
        ones = self.graph.constant("layer_norm_ones", np.ones(self.width, np.float32), BF16)
        normed = self.op("LayerNormalization", x, ones, at=at, axis=-1, epsilon=NORM_EPS)
        factor = self.op("Add", scale, self.graph.constant("one", np.array(1, np.float32), BF16), at=f"{at}.scale")
        result: str = self.op("Add", self.op("Mul", normed, factor, at=at), shift, at=at)
        return result

    def gated(self, at: str, x: str, gate: str, change: str) -> str:
        result: str = self.op("Add", x, self.op("Mul", gate, change, at=f"{at}.gate"), at=f"{at}.residual")
        return result

    def gelu(self, at: str, x: str) -> str:
        result: str = self.op("Gelu", x, at=at, approximate="tanh")
        return result

    def image_tokens(self, both: str, *, at: str) -> str:
        return self.slice(both, self.text_tokens, np.iinfo(np.int64).max, at=at)

    def slice(self, x: str, start: int, stop: int, *, at: str) -> str:
        bounds = (self.ints(f"token_{n}", [n]) for n in (start, stop))
        result: str = self.op("Slice", x, *bounds, self.ints("tokens_axis", [1]), at=at)
        return result

    def ints(self, name: str, values: Any) -> str:
        return self.graph.constant(name, np.array(values, np.int64))


def _model(graph: Graph, latent: str, config: dict[str, Any], text_tokens: int) -> onnx.ModelProto:
    """The finished model, with the interface. Batch is 1: on this model more at once is no faster."""
    channels, out = config["in_channels"], config["out_channels"] or config["in_channels"]
    shapes: dict[str, tuple[int, list[int | str]]] = {
        "hidden_states": (BF16, [1, "tokens", channels]),
        "encoder_hidden_states": (BF16, [1, text_tokens, config["joint_attention_dim"]]),
        "pooled_projections": (BF16, [1, config["pooled_projection_dim"]]),
        "timestep": (BF16, [1]),
        "img_ids": (FLOAT, ["tokens", 3]),
        "txt_ids": (FLOAT, [text_tokens, 3]),
        "guidance": (FLOAT, [1]),
    }
    inputs = [name for name in INPUTS if name != "guidance" or config["guidance_embeds"]]
    graph.nodes.append(helper.make_node("Identity", [latent], [OUTPUT], OUTPUT))
    proto = helper.make_graph(
        graph.nodes,
        "FluxTransformer2DModel",
        [helper.make_tensor_value_info(name, *shapes[name]) for name in inputs],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.BFLOAT16, [1, "tokens", out])],
        initializer=list(graph.tensors.values()),
    )
    domains = {"": OPSET} | ({"trt": 1} if any(node.domain == "trt" for node in graph.nodes) else {})
    return helper.make_model(
        proto,
        producer_name="kontext-tui",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
    )
