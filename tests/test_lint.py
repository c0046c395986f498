"""Lint: sound graphs of all precisions pass, and every planted fault is caught and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_checkpoints as small
from onnx import TensorProto, helper
from safetensors.torch import load_file

from core.edit import lowbit
from quant.lint import lint

Model = onnx.ModelProto


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[str, Callable[[Model], None]], Path]:
    """A copy of a sound graph with a fault in it."""

    def plant(precision: str, fault: Callable[[Model], None]) -> Path:
        folder = shutil.copytree(small.graph(precision), tmp_path / "graph")
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        fault(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder / "model.onnx"

    return plant


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp4", "fp4-svd"])
def test_sound_graphs_pass(precision: str) -> None:
    path = small.graph(precision) / "model.onnx"
    report = lint(path, precision, checkpoint=small.source(precision))
    assert report.problems == []
    assert lint(path, precision).problems == []
    low = {"bf16": "bf16", "fp8": "fp8"}.get(precision, "fp4")
    assert report.gemms[low] == small.LINEARS + (10 if precision == "bf16" else 0)
    assert report.bmms == {"bf16" if precision == "bf16" else "fp8": 2 * small.BLOCKS}
    if precision != "bf16":
        assert {"x_embedder": "embedder", "proj_out": "last layer"}.items() <= report.high.items()
    if precision == "fp4":
        assert report.weight_bytes["fp4"] == 8 * (
            report.weight_bytes["fp8"] - 1
        )  # a byte of scale to 16 codes, and a zero
    assert f"{report.gemms[low]} {low}" in str(report)


def test_attention_left_unquantized(planted: Callable[..., Path]) -> None:
    def fault(model: Model) -> None:
        for part in ("q", "k", "v"):
            bypass(model, f"transformer_blocks.1.attn.{part}.input/DequantizeLinear")

    report = lint(planted("fp8", fault), "fp8")
    assert report.problems == [
        "attention transformer_blocks.1.attn: q k^T is high x high, not fp8 x fp8",
        "attention transformer_blocks.1.attn: softmax v is fp8 x high, not fp8 x fp8",
    ]
    assert report.bmms == {"fp8": 2 * small.BLOCKS - 2, "bf16": 2}


@pytest.mark.parametrize("precision", ["fp8", "fp4-svd"])
def test_softmax_left_unquantized(planted: Callable[..., Path], precision: str) -> None:
    """What ModelOpt's own exporter does in silence when one of the three quantizers is off."""
    path = planted(precision, lambda m: bypass(m, "single_transformer_blocks.2.attn.softmax.input/DequantizeLinear"))
    assert lint(path, precision).problems == [
        "attention single_transformer_blocks.2.attn: softmax v is high x fp8, not fp8 x fp8"
    ]


def test_softmax_rounded_at_another_scale(planted: Callable[..., Path]) -> None:
    def fault(model: Model) -> None:
        tensor(model, "softmax_scale").raw_data = np.float32(1.0).tobytes()

    problems = lint(planted("fp8", fault), "fp8").problems
    assert sum("the softmax is rounded at 1, not 1/448" in problem for problem in problems) == small.BLOCKS


@pytest.mark.parametrize("precision", ["fp8", "fp4"])
def test_a_skipped_block(planted: Callable[..., Path], precision: str) -> None:
    """Its weights were never packed and its inputs never rounded."""

    def fault(model: Model) -> None:
        for node in list(model.graph.node):
            if not node.name.startswith("single_transformer_blocks.3.") or node.op_type != "DequantizeLinear":
                continue
            if node.name.endswith(".weight/DequantizeLinear"):
                source = tensor(model, node.input[0])
                name = node.output[0]
                zeros = np.zeros(2 * int(np.prod(source.dims)), np.uint8).tobytes()
                model.graph.node.remove(node)
                model.graph.initializer.append(
                    helper.make_tensor(name, TensorProto.BFLOAT16, source.dims, zeros, raw=True)
                )
            elif node.name.endswith(".input/DequantizeLinear") and ".attn.input" not in node.name:
                bypass(model, node.name)

    problems = lint(planted(precision, fault), precision).problems
    for linear in ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"):
        assert any(
            p.startswith(f"single_transformer_blocks.3.{linear} runs in bf16, not {precision}") for p in problems
        )


def test_one_side_only(planted: Callable[..., Path]) -> None:
    path = planted("fp8", lambda m: bypass(m, "transformer_blocks.0.ff.net.2.input/DequantizeLinear"))
    assert lint(path, "fp8").problems == ["transformer_blocks.0.ff.net.2 runs in bf16, not fp8: only one side is fp8"]


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ("transformer_blocks.0.norm1/LayerNormalization", "the norm transformer_blocks.0.norm1 reads"),
        ("single_transformer_blocks.1.attn.norm_q/Cast", "the norm single_transformer_blocks.1.attn.norm_q reads"),
        ("transformer_blocks.0.ff.residual/Add", "transformer_blocks.0.ff.residual/Add reads"),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp4"])
def test_a_quantized_norm(planted: Callable[..., Path], precision: str, node: str, told: str) -> None:
    problems = lint(planted(precision, lambda m: round_input(m, node)), precision).problems
    assert problems == [
        f"{told} a rounded value" if "norm" in told else f"{told} a rounded value; only products should"
    ]


def test_a_quantized_embedder(planted: Callable[..., Path]) -> None:
    def fault(model: Model) -> None:
        round_input(model, "x_embedder/MatMul")
        round_input(model, "x_embedder/MatMul", side=1)

    assert lint(planted("fp8", fault), "fp8").problems == ["x_embedder runs in fp8; it should stay bf16"]


def test_fp4_scales_that_are_not_rounded(planted: Callable[..., Path]) -> None:
    """The block scales kept in float32, as they were before rounding."""
    name = "transformer_blocks.0.attn.to_q"

    def fault(model: Model) -> None:
        scales = tensor(model, f"{name}.weight_scale")
        exact = np.random.default_rng(0).uniform(0.01, 0.02, tuple(scales.dims)).astype(np.float32)
        node = next(n for n in model.graph.node if n.output[0] == f"{name}.weight_scale/DequantizeLinear")
        model.graph.initializer.append(onnx.numpy_helper.from_array(exact, "exact"))
        node.CopyFrom(helper.make_node("Cast", ["exact"], [node.output[0]], node.name, to=TensorProto.BFLOAT16))

    problems = lint(planted("fp4", fault), "fp4").problems
    assert f"{name}.weight: its block scales are not rounded to E4M3" in problems


@pytest.mark.parametrize("precision", ["fp4", "fp4-svd"])
def test_fp4_weights_packed_with_unrounded_scales(planted: Callable[..., Path], precision: str) -> None:
    """Rounded scales are stored, but the codes were made with the exact ones: off by up to 6 %."""
    name = "single_transformer_blocks.0.proj_mlp"
    stored = load_file(small.source(precision) / "diffusion_pytorch_model.safetensors")
    weight = load_file(small.TINY / "diffusion_pytorch_model.safetensors")[f"{name}.weight"].float()
    if precision == "fp4-svd":
        up, down = stored[f"{name}.svdquant_lora_b"].float(), stored[f"{name}.svdquant_lora_a"].float()
        weight = weight / stored[f"{name}.pre_quant_scale"].float() - up @ down
    grouped = weight.unflatten(-1, (-1, lowbit.BLOCK))
    exact = grouped.abs().amax(-1, keepdim=True) / lowbit.E2M1_MAX
    codes = lowbit.pack_e2m1(lowbit.to_e2m1(grouped / exact).flatten(-2))
    changed = float((codes != stored[f"{name}.weight"]).float().mean())
    assert 0.01 < changed < 0.2  # a fault that no range check sees

    def fault(model: Model) -> None:
        packed = tensor(model, f"{name}.weight")
        packed.ClearField("external_data")
        packed.data_location = TensorProto.DEFAULT
        packed.raw_data = codes.numpy().tobytes()

    path = planted(precision, fault)
    assert lint(path, precision, checkpoint=small.source(precision)).problems == [
        f"{name}.weight: differs from the checkpoint's"
    ]
    assert lint(path, precision).problems == ["the low-precision weights are not those the graph was exported with"]


def test_a_graph_of_another_precision() -> None:
    problems = lint(small.graph("fp8") / "model.onnx", "fp4").problems
    may_be_fp8 = 3 * small.VALUES  # projections to queries, keys and values
    assert len(problems) == small.LINEARS - may_be_fp8
    assert any("nothing of it is quantized" in p for p in lint(small.graph("bf16") / "model.onnx", "fp8").problems)
    assert any("should stay bf16" in p for p in lint(small.graph("fp8") / "model.onnx", "bf16").problems)


def test_kept_modules_are_no_problem(planted: Callable[..., Path]) -> None:
    def fault(model: Model) -> None:
        bypass(model, "transformer_blocks.0.ff.net.2.input/DequantizeLinear")
        entry = next(e for e in model.metadata_props if e.key == "kept")
        entry.value = '{"transformer_blocks.0.ff.net.2": "loses most"}'

    report = lint(planted("fp8", fault), "fp8")
    assert report.problems == []
    assert report.high["transformer_blocks.0.ff.net.2"] == "loses most"


def tensor(model: Model, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def bypass(model: Model, dequantize: str) -> None:
    """Take a Q/DQ pair out: its readers read what it rounded."""
    makers = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == dequantize)
    before = makers[node.input[0]].input[0]
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[index] = before


def round_input(model: Model, name: str, side: int = 0) -> None:
    """Put a Q/DQ pair before one input of a node."""
    index, node = next((i, node) for i, node in enumerate(model.graph.node) if node.name == name)
    pair = [
        helper.make_node("QuantizeLinear", [node.input[side], "planted"], [f"codes{side}"], output_dtype=17),
        helper.make_node("DequantizeLinear", [f"codes{side}", "planted"], [f"rounded{side}"], output_dtype=16),
    ]
    if side == 0:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.01, np.float32), "planted"))
    node.input[side] = f"rounded{side}"
    for offset, each in enumerate(pair):
        model.graph.node.insert(index + offset, each)
