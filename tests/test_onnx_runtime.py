"""The exported graphs on ONNX Runtime against the same checkpoints emulated in torch.

Two sound implementations of a quantized model drift apart: a difference in the last bit of float32 puts a value that
lies between two E4M3 codes on the other side, and after a few blocks the outputs differ by as much as quantization
costs. So the proof pins the rounding: torch takes the graph's rounded values, having checked that its own are the
same but for such ties, and then every other operation must agree to float32's precision, through the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import small_checkpoints as small
import torch
from torch import Tensor

from core.edit import editor, lowbit, sampling
from core.edit.loading import Model
from core.edit.quantized import AttentionScales, Emulated, QuantLinear, load_transformer
from core.edit.runtimes.onnx_runtime import NVFP4, OnnxRuntime, to_float32
from core.errors import UnavailableError

TOKENS = (97, 128, 31, 210)
"""Image and context tokens; the model was trained at 512."""
CPU = torch.device("cpu")


@cache
def runtime(precision: str) -> OnnxRuntime:
    return OnnxRuntime(small.graph(precision) / "model.onnx", precision)


def arrays(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in inputs.items()}


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("tokens", TOKENS)
def test_bf16_graph_is_the_model(tokens: int) -> None:
    inputs = small.random_inputs(tokens, seed=tokens)
    model = load_transformer(small.TINY, CPU, torch.bfloat16, Emulated()).float()  # the graph's weights are BF16
    with torch.inference_mode():
        exact = model(**inputs, return_dict=False)[0]
    assert error(torch.from_numpy(runtime("bf16").run(arrays(inputs))), exact) < 1e-5


class Tapped:
    """A graph that also gives what entered each product: "<linear>", and "<attention>.q", ".k", ".v", ".softmax"."""

    def __init__(self, path: Path) -> None:
        model = to_float32(onnx.load(path))
        self.names: dict[str, str] = {}
        for node in model.graph.node:
            scope = node.name.removesuffix("/MatMul")
            if node.op_type != "MatMul" or ".svdquant" in scope:
                continue
            first, second = {"bmm1": (".q", ".k"), "bmm2": (".softmax", ".v")}.get(
                scope.rpartition(".")[2], ("", None)
            )
            self.names[scope.removesuffix(".bmm1").removesuffix(".bmm2") + first] = node.input[0]
            if second is not None:
                self.names[scope.rpartition(".")[0] + second] = node.input[1]
        for name in sorted(set(self.names.values()) - {value.name for value in model.graph.input}):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = [value.name for value in self.session.get_outputs()]
        found = dict(zip(outputs, map(torch.from_numpy, self.session.run(None, arrays(inputs))), strict=True))
        values = {name: found[value] for name, value in self.names.items() if value in found}
        for name, value in values.items():
            values[name] = value.transpose(-1, -2) if name.endswith(".k") else value
        return found["latent"], values


class Pinned(Emulated):
    """Rounds as Emulated does, compares with a graph's rounded values, and goes on with those."""

    def __init__(self, model_path: Path) -> None:
        super().__init__(cache_bytes=2**30)
        self.model = load_transformer(model_path, CPU, torch.float32, self)
        self.names: dict[object, str] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, QuantLinear):
                self.names[module] = name
            elif hasattr(module, "set_processor"):
                self.names[module.processor.scales] = name
        self.values: dict[str, Tensor] = {}
        self.seen = self.differing = 0

    def run(self, inputs: dict[str, Tensor], values: dict[str, Tensor]) -> Tensor:
        self.values = values
        with torch.inference_mode():
            latent: Tensor = self.model(**inputs, return_dict=False)[0]
        return latent

    def pin(self, name: str, ours: Tensor) -> Tensor:
        theirs = self.values[name]
        self.seen += ours.numel()
        self.differing += int(((ours - theirs).abs() > 1e-5 * theirs.abs()).sum())
        return theirs

    def activation(self, x: Tensor, layer: QuantLinear) -> Tensor:
        return self.pin(self.names[layer], super().activation(x, layer))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scales: AttentionScales | None) -> Tensor:
        assert scales is not None
        name = self.names[scales]
        q, k, v = (
            self.pin(f"{name}.{part}", lowbit.round_e4m3(x, getattr(scales, part)))
            for part, x in (("q", q), ("k", k), ("v", v))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.pin(f"{name}.softmax", lowbit.round_e4m3(weights, torch.tensor(1 / 448))) @ v


@pytest.mark.parametrize(("precision", "inputs_each"), [("fp8", 4), ("fp4", 2), ("fp4-svd", 2)])
def test_quantized_graphs_are_their_checkpoints(precision: str, inputs_each: int) -> None:
    """16 inputs at 4 token counts for fp8; 1e-5 where 1e-2 was asked, with at most 1 rounding in 10 000 a tie."""
    tapped, pinned = Tapped(small.graph(precision) / "model.onnx"), Pinned(small.source(precision))
    for tokens in TOKENS:
        for seed in range(inputs_each):
            inputs = small.random_inputs(tokens, seed=1000 * tokens + seed)
            latent, values = tapped.run(inputs)
            assert error(pinned.run(inputs, values), latent) < 1e-5
    assert pinned.seen > 10**7
    assert pinned.differing / pinned.seen < 1e-4


def test_free_rounding_costs_no_more_than_quantization_does() -> None:
    """Unpinned, graph and emulation are no further from each other than either is from the exact model."""
    exact_model = load_transformer(small.TINY, CPU, torch.float32, Emulated())
    emulated_model = load_transformer(small.source("fp8"), CPU, torch.float32, Emulated(2**30))
    apart, off = [], []
    for seed in range(4):
        inputs = small.random_inputs(128, seed)
        with torch.inference_mode():
            exact, emulated = (model(**inputs, return_dict=False)[0] for model in (exact_model, emulated_model))
        graph = torch.from_numpy(runtime("fp8").run(arrays(inputs)))
        apart.append(error(graph, emulated))
        off.append((error(emulated, exact), error(graph, exact)))
    assert np.mean(apart) < 1.4 * np.mean(off)  # sqrt(2): two errors that know nothing of each other
    assert np.mean([a for a, _ in off]) == pytest.approx(np.mean([b for _, b in off]), rel=0.1)


def test_nvfp4_in_standard_operations() -> None:
    """All of E2M1's values and ties, tiny and huge blocks, zeros: bit for bit what `lowbit` computes."""
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 40)[:, None]
    x[0] = 0
    x[1, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -2.5, -3.5, -5, -6, 0])
    scale = torch.tensor(0.01)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("round_nvfp4", ["x", "scale"], ["y"], domain="kontext_tui")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [40, 64]), onnx.helper.make_tensor_value_info("scale", 1, [])],
        [onnx.helper.make_tensor_value_info("y", 1, [40, 64])],
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("kontext_tui", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, functions=[onnx.parser.parse_function(NVFP4)], ir_version=11
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = session.run(None, {"x": x.numpy(), "scale": scale.numpy()})[0]
    assert np.array_equal(result, lowbit.round_nvfp4(x, scale).numpy())


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp4", "fp4-svd"])
def test_the_runtime_predicts_like_torch(tiny: Model, photo: Any, precision: str) -> None:
    """Through `begin`, with a real picture and prompt: the velocity of the image tokens alone."""
    pixels = editor.to_pixels(photo.resize((256, 256)), tiny)
    context = editor.encode(tiny, pixels)
    conditioning = editor.condition(tiny, context, "Make it a sunset", 2.5)
    latents = sampling.make_noise(3, *context.shape[1:], like=context)
    timestep = torch.tensor([700.0])
    velocity = runtime(precision).begin(conditioning)(latents, timestep, True)
    assert velocity.shape == latents.shape
    assert velocity.dtype == latents.dtype
    with torch.inference_mode():
        exact = tiny.transformer(
            hidden_states=torch.cat([latents, conditioning.context], 1),
            encoder_hidden_states=conditioning.prompt,
            pooled_projections=conditioning.pooled,
            timestep=timestep / 1000,
            img_ids=conditioning.image_ids,
            txt_ids=conditioning.text_ids,
            guidance=conditioning.guidance,
            return_dict=False,
        )[0][:, : latents.shape[1]]
    assert error(velocity, exact) < {"bf16": 0.01, "fp8": 0.1}.get(precision, 0.3)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be loaded as ONNX"):
        OnnxRuntime(tmp_path / "missing.onnx", "bf16")
    model = onnx.load(small.graph("bf16") / "model.onnx", load_external_data=False)
    (tmp_path / "alone.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnavailableError, match="cannot be loaded as ONNX"):
        OnnxRuntime(tmp_path / "alone.onnx", "bf16")  # without the file its weights lie in
    full = onnx.load(small.graph("bf16") / "model.onnx")
    full.graph.node[0].domain = "trt"
    full.graph.node[0].op_type = "TRT_FP8QuantizeLinear"
    onnx.save(full, tmp_path / "foreign.onnx")
    with pytest.raises(UnavailableError, match="ONNX Runtime has no trt::TRT_FP8QuantizeLinear"):
        OnnxRuntime(tmp_path / "foreign.onnx", "fp8")


def test_fp8_graph_is_modelopts_model(tmp_path: Path) -> None:
    """ModelOpt's fake-quantized model, rounding pinned as above, at four token counts: 1e-5 where 1e-2 was asked.

    Its own roundings are the graph's but for ties, save right behind an attention: eagerly ModelOpt leaves the
    softmax's output unrounded, the graph (and the checkpoint's arithmetic) rounds it to E4M3. Weights are compared as
    exported: ModelOpt divides them by their scale in BF16, so that 1 in 16 lies a code away from its fake rounding.
    """
    pytest.importorskip("modelopt")
    from diffusers import FluxTransformer2DModel

    from quant import quantize
    from quant.onnx_export import export
    from quant.recipes import find_recipe

    class Sample:
        def inputs(self) -> dict[str, Any]:
            return {**small.random_inputs(128, 5), "return_dict": False}

    exact = load_transformer(small.TINY, CPU, torch.bfloat16, Emulated()).float().state_dict()
    model = FluxTransformer2DModel.from_pretrained(small.TINY).eval()
    model.load_state_dict(exact)
    quantize.inject(model, find_recipe("fp8"), [Sample()], lambda *_: None)
    fake = copy.deepcopy(model)
    quantize.export(model, find_recipe("fp8"), tmp_path / "checkpoint", {}, lambda *_: None)
    export(tmp_path / "checkpoint", tmp_path, "fp8", small.TEXT_TOKENS)
    tapped = Tapped(tmp_path / "model.onnx")
    values: dict[str, Tensor] = {}
    apart = {where: [0, 0] for where in ("behind attention", "elsewhere")}  # numbers that round otherwise, and all

    def pin(name: str, where: str) -> Callable[..., Tensor]:
        def hook(module: object, args: object, rounded: Tensor) -> Tensor:
            theirs = values[name] if rounded.shape == values[name].shape else values[name].transpose(1, 2)
            apart[where][0] += int(((rounded - theirs).abs() > 1e-5 * theirs.abs()).sum())
            apart[where][1] += theirs.numel()
            return theirs

        return hook

    checkpoint = load_transformer(tmp_path / "checkpoint", CPU, torch.float32, Emulated())
    packed = {name: module for name, module in checkpoint.named_modules() if isinstance(module, QuantLinear)}
    for name, module in fake.named_modules():
        if name in packed:
            module.weight_quantizer.disable()
            module.weight.data = Emulated().weight(packed[name], torch.zeros(1))
            behind = name.endswith((".to_out.0", ".to_add_out", ".proj_out"))
            module.input_quantizer.register_forward_hook(pin(name, "behind attention" if behind else "elsewhere"))
        for part in ("q", "k", "v"):
            if hasattr(module, "q_bmm_quantizer"):
                getattr(module, f"{part}_bmm_quantizer").register_forward_hook(pin(f"{name}.{part}", "elsewhere"))
    for tokens in TOKENS:
        inputs = small.random_inputs(tokens, seed=tokens)
        latent, found = tapped.run(inputs)
        values.update(found)
        with torch.inference_mode():
            assert error(fake(**inputs, return_dict=False)[0], latent) < 1e-5
    shares = {where: differing / count for where, (differing, count) in apart.items()}
    assert shares["elsewhere"] < 1e-4, shares
    assert 1e-3 < shares["behind attention"] < 0.5, shares
