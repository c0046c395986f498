"""The `tensorrt` runtime on a stand-in for TensorRT that computes with torch on the CPU, at the addresses it gets.

What the real library does with the calls cannot be seen without a GPU (`test_tensorrt_contract.py` checks that it has
them); this shows that the right numbers stand in the right buffers, and that no engine serves unproven. The real
library refuses engines here, which is tested too.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from onnx_graphs import TEXT, write_graph

from core.edit import artifacts
from core.edit.models import locate
from core.edit.runtimes import proof, tensorrt_runtime, trt_api, verdicts
from core.edit.runtimes.tensorrt_runtime import Engine, TensorrtRuntime, count_types, fit_shape, verify
from core.edit.runtimes.torch_runtime import TorchRuntime
from core.edit.runtimes.trt_api import INPUTS, OUTPUT, Gpu
from core.errors import UnavailableError
from quant import engine as building

TYPES = SimpleNamespace(BF16="bf16", HALF="half", FLOAT="float")
DTYPES = {"bf16": torch.bfloat16, "float": torch.float32}


def at_address(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


class FakeEngine:
    """kontext-tiny's transformer behind the members of ICudaEngine that the runtime uses."""

    num_io_tensors = len(INPUTS) + 1
    device_memory_size_v2 = 1 << 20

    def __init__(self, transformer, calls) -> None:
        self.transformer, self.calls = transformer, calls
        self.shapes = {
            "hidden_states": (1, -1, 64), "encoder_hidden_states": (1, 48, 128), "pooled_projections": (1, 64),
            "timestep": (1,), "img_ids": (-1, 3), "txt_ids": (48, 3), "guidance": (1,), OUTPUT: (1, -1, 64),
        }  # fmt: skip

    def get_tensor_name(self, index):
        return [*INPUTS, OUTPUT][index]

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_dtype(self, name):
        return "float" if name in ("img_ids", "txt_ids", "guidance") else "bf16"

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(tokens if size == -1 else size for size in self.shapes[name]) for tokens in (128, 512, 512)]

    def create_runtime_config(self):
        cache = SimpleNamespace(
            serialize=lambda: b"kernels", deserialize=lambda blob: self.calls.append(("deserialize", blob))
        )
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda cache: True)

    def create_execution_context(self, *config):
        self.calls.append(("context", *(vars(c).get("cuda_graph_strategy") for c in config)))
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def infer_shapes(self):
        return [name for name in INPUTS if name not in self.shapes]

    def get_tensor_shape(self, name):
        return self.shapes["hidden_states" if name == OUTPUT else name]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 77
        read = {
            name: at_address(address, self.get_tensor_shape(name), DTYPES[self.engine.get_tensor_dtype(name)])
            for name, address in self.addresses.items()
        }
        output = read.pop(OUTPUT)
        inputs = {name: tensor.float() for name, tensor in read.items()}
        output.copy_(self.engine.transformer(**inputs, return_dict=False)[0])
        self.engine.calls.append(("execute", self.shapes["hidden_states"][1]))
        return True


class FakeStream:
    cuda_stream = 77

    def __init__(self, device=None) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, other) -> None: ...


class FakeGraph:
    """Remembers what ran while it was captured, as a CUDA graph does (where nothing runs while capturing)."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def calls(monkeypatch, tiny) -> list[tuple]:
    """The stand-in in TensorRT's place; what is done to it is listed."""
    calls: list[tuple] = []
    made = FakeEngine(tiny.transformer, calls)
    module = SimpleNamespace(
        __version__="1.7",
        DataType=TYPES,
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        Runtime=lambda log: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: made if plan[:4] == b"plan" else None
        ),
    )
    monkeypatch.setattr(trt_api, "load", lambda flavour: module)
    monkeypatch.setattr(trt_api, "logger", lambda module: SimpleNamespace(errors=[], warnings=[]))
    for where in (trt_api, tensorrt_runtime):
        monkeypatch.setattr(where, "current_gpu", lambda: Gpu("RTX 5090", "sm120", "580.1"), raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return calls


def stored(tiny, precision: str = "fp8", **parts) -> artifacts.Artifact:
    model = artifacts.model_hash(locate(tiny.spec) / "transformer")
    own = {"model": model, "precision": precision, "sm": "sm120", "flavour": "tensorrt_rtx", "version": "1.7"}
    return artifacts.make(
        "engine", {**own, **parts}, lambda folder: (folder / "model.engine").write_bytes(b"plan") and {}
    )


def probes(tiny, count: int) -> list[proof.Probe]:
    """Probes that differ in all their parts."""
    base, made = proof.make_probe(tiny), []
    for index in range(count):
        c = base.conditioning
        changed = replace(
            c, context=c.context.roll(index, 1), prompt=c.prompt.roll(index, 1), pooled=c.pooled.roll(index, 1),
            guidance=c.guidance + index,
        )  # fmt: skip
        made.append(replace(base, conditioning=changed, latents=base.latents.roll(index, 2)))
    return made


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return proof.relative_error(got, wanted) < 3e-2  # the buffers are BF16


@torch.inference_mode()
def test_a_step_is_the_torch_runtimes(tiny, calls):
    run = Engine(stored(tiny), torch.device("cpu"))
    reference = TorchRuntime(tiny.transformer)
    for probe in probes(tiny, 2):
        got = proof.one_step(run, probe)
        assert got.shape == (256, 64)
        assert close(got, proof.one_step(reference, probe))
    assert not close(*(proof.one_step(reference, probe) for probe in probes(tiny, 2)))


@torch.inference_mode()
def test_two_edits_in_turn_do_not_mix(tiny, calls):
    run, reference = Engine(stored(tiny), torch.device("cpu")), TorchRuntime(tiny.transformer)
    first, second = probes(tiny, 2)
    predict_first, predict_second = run.begin(first.conditioning), run.begin(second.conditioning)
    got = predict_first(first.latents, first.timestep, True)
    predict_second(second.latents, second.timestep, True)
    assert close(got[0], proof.one_step(reference, first))  # nor is a result overwritten by the next step
    assert close(predict_first(first.latents, first.timestep, True)[0], proof.one_step(reference, first))


@torch.inference_mode()
def test_another_number_of_tokens(tiny, calls):
    run, reference = Engine(stored(tiny), torch.device("cpu")), TorchRuntime(tiny.transformer)
    whole = proof.make_probe(tiny)
    c = whole.conditioning
    ids = torch.cat([c.image_ids[:128], c.image_ids[256:320]])
    shorter = replace(c, context=c.context[:, :64], image_ids=ids)
    half = replace(whole, latents=whole.latents[:, :128], conditioning=shorter)
    for probe in (whole, half, whole):
        assert close(proof.one_step(run, probe), proof.one_step(reference, probe))
    assert [tokens for what, tokens in calls if what == "execute"] == [512, 192, 512]


def test_tokens_an_engine_does_not_serve():
    counts, served = {"batch": 1, "tokens": 9000, "text": 512}, ((1, 8084, 64), (1, 8300, 64))
    with pytest.raises(UnavailableError, match="serves 8084 to 8300 tokens in hidden_states, and this edit has 9000"):
        fit_shape("hidden_states", (1, -1, 64), counts, served)
    assert fit_shape("hidden_states", (1, -1, 64), {**counts, "tokens": 8192}, served) == (1, 8192, 64)


@torch.inference_mode()
def test_kernels_compiled_here_are_kept(tiny, calls):
    artifact, probe = stored(tiny), proof.make_probe(tiny)
    proof.one_step(Engine(artifact, torch.device("cpu")), probe)
    assert artifacts.read_small(f"kernels/{artifact.key}") == b"kernels"
    Engine(artifact, torch.device("cpu"))
    assert calls == [("context", "whole"), ("execute", 512), ("deserialize", b"kernels"), ("context", "whole")]


@torch.inference_mode()
def test_full_tensorrt_is_captured_after_its_first_step(tiny, calls):
    run, probe = Engine(stored(tiny, flavour="tensorrt"), torch.device("cpu")), proof.make_probe(tiny)
    predict = run.begin(probe.conditioning)
    for _ in range(4):
        predict(probe.latents, probe.timestep, True)
    assert calls == [("context",), ("execute", 512), ("execute", 512)]  # once plain, once captured
    assert run.graph.replays == 3
    c = probe.conditioning
    shorter = replace(c, context=c.context[:, :64], image_ids=c.image_ids[:320])
    run.begin(shorter)
    assert run.graph is None


class TestProof:
    def test_an_engine_serves_after_its_proof_and_is_proven_once(self, tiny, calls, monkeypatch):
        artifact = stored(tiny)
        run = TensorrtRuntime(artifact, tiny)
        assert (run.name, run.precision, run.verdict.passed) == ("tensorrt", "fp8", True)
        assert 0 < run.verdict.error < 3e-2
        monkeypatch.setattr(tensorrt_runtime, "verify", lambda *a: pytest.fail("proven twice"))
        assert TensorrtRuntime(artifact, tiny).verdict == run.verdict

    def test_another_driver_asks_for_another_proof(self, tiny, calls, monkeypatch):
        artifact = stored(tiny)
        verify(artifact, tiny)
        assert verdicts.recall(artifact, Gpu("RTX 5090", "sm120", "580.1")) is not None
        assert verdicts.recall(artifact, Gpu("RTX 5090", "sm120", "590")) is None
        assert verdicts.recall(artifact, Gpu("RTX 5080", "sm120", "580.1")) is None

    @pytest.mark.parametrize(
        ("precision", "error", "passes"), [("fp8", 0.1, False), ("fp4", 0.1, True), ("fp4", 0.3, False)]
    )
    def test_one_that_computes_something_else_is_refused(self, tiny, calls, monkeypatch, precision, error, passes):
        artifact = stored(tiny, precision)
        exact = proof.one_step

        def off(runtime, probe):
            return exact(runtime, probe) * (1 + error if isinstance(runtime, Engine) else 1)

        monkeypatch.setattr(proof, "one_step", off)
        if passes:
            assert TensorrtRuntime(artifact, tiny).verdict.error == pytest.approx(error, abs=0.02)
            return
        line = r"computes something else .*relative error of one step [\d.]+e-0[12], "
        for _ in range(2):  # the second time from the store
            with pytest.raises(UnavailableError, match=line) as caught:
                TensorrtRuntime(artifact, tiny)
            assert f"limit for {precision} {proof.LIMITS[precision]:.0e}" in str(caught.value)

    def test_not_a_number_does_not_pass(self, tiny, calls, monkeypatch):
        exact = proof.one_step
        nan = float("nan")
        monkeypatch.setattr(proof, "one_step", lambda r, p: exact(r, p) * (nan if isinstance(r, Engine) else 1))
        assert not verify(stored(tiny), tiny).passed

    def test_the_reference_is_loaded_where_another_runtime_predicts(self, tiny, calls):
        without = replace(tiny, transformer=None)
        assert verify(stored(tiny), without).error == verify(stored(tiny), tiny).error

    def test_another_models_engine_is_refused(self, tiny, calls):
        with pytest.raises(UnavailableError, match="was made from another model than kontext-tiny"):
            verify(stored(tiny, model="0" * 64), tiny)


class TestRefused:
    """Before anything is loaded."""

    @pytest.mark.parametrize(
        ("parts", "reason"),
        [
            ({"sm": "sm89"}, r"is for sm89, and RTX 5090 is sm120: `kontext-tui engine build --gpu sm120` makes one"),
            ({"version": "1.6"}, r"was built by TensorRT-RTX 1\.6, and 1\.7 is installed: .* makes it again"),
        ],
    )
    def test_an_engine_for_something_else(self, tiny, calls, parts, reason):
        with pytest.raises(UnavailableError, match=reason):
            TensorrtRuntime(stored(tiny, **parts), tiny)

    def test_a_corrupt_engine_never_reaches_tensorrt(self, tiny, calls):
        artifact = stored(tiny)
        artifact.file(".engine").write_bytes(b"plen")
        with pytest.raises(UnavailableError, match=r"model\.engine is corrupt"):
            Engine(artifact, torch.device("cpu"))
        assert calls == []

    def test_without_a_gpu(self, tiny, monkeypatch):
        monkeypatch.setattr(trt_api, "current_gpu", lambda: None)
        with pytest.raises(
            UnavailableError, match="needs an NVIDIA GPU, and none is in reach; `--runtime onnx` runs"
        ):
            TensorrtRuntime(stored(tiny), tiny)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
    def test_the_real_library_says_why_it_cannot_load(self, tmp_path):
        """A real engine, read by the real runtime: it gets as far as the driver that is not there."""
        trt = pytest.importorskip("tensorrt_rtx_bindings")
        graph = write_graph(tmp_path / "g.onnx", "bf16")
        building.build(graph, tmp_path, precision="bf16", gpu="sm120", profile=building.Profile(480, 512, 520, TEXT))
        for data, words in [((tmp_path / "model.engine").read_bytes(), "CUDA"), (b"junk" * 100, "")]:
            path = Path(tmp_path / "other.engine")
            path.write_bytes(data)
            with pytest.raises(UnavailableError, match=f"^TensorRT cannot load {path}: .*{words}") as caught:
                tensorrt_runtime.deserialize(trt, trt_api.logger(trt), path)
            assert "it gives no reason" not in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1


def test_layers_are_counted_by_the_lowest_type_they_take():
    layers = [
        {
            "Name": "a",
            "Inputs": [{"Format/Datatype": "Row major linear FP8 format"}, {"Format/Datatype": "BFloat16"}],
        },
        {"Name": "b", "Inputs": [{"Format/Datatype": "E2M1"}, {"Format/Datatype": "E4M3"}]},
        {"Name": "c", "Inputs": [{"Format/Datatype": "BFloat16"}]},
        {"Name": "d", "Inputs": [{"Format/Datatype": "BFloat16"}]},
        {"Name": "e"},
    ]
    assert count_types(layers) == {"BFloat16": 2, "FP8": 1, "E2M1": 1, "unknown": 1}


def test_out_of_memory_is_told_apart():
    log = SimpleNamespace(errors=["IExecutionContext: Error Code 2: OutOfMemory (Requested size was 1 bytes.)"])
    assert isinstance(tensorrt_runtime.failure("TensorRT", "failed", log), torch.cuda.OutOfMemoryError)
