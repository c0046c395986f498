"""The `tensorrt` runtime: an engine of the store, in either flavour, fed from torch's buffers.

One execution context, whose shapes and addresses change only with the number of tokens. Steps of equal shape replay
a CUDA graph: TensorRT-RTX keeps its own, full TensorRT is captured by torch. TensorRT-RTX compiles kernels for each
shape it meets; they are kept on disk, beside the artifacts.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.edit import artifacts
from core.edit.artifacts import Artifact
from core.edit.loading import Model
from core.edit.models import locate
from core.edit.runtimes import proof, require_every_step_full, trt_api, verdicts
from core.edit.runtimes.trt_api import FLAVOURS, INPUTS, OUTPUT, load_module, require_gpu
from core.edit.runtimes.verdicts import Verdict
from core.edit.sampling import Conditioning, Predict
from core.errors import UnavailableError


class Engine:
    """A loaded engine as a runtime, whatever it computes: `TensorrtRuntime` is the one that has been proven."""

    name = "tensorrt"
    caveat = ""
    recorded_bytes = 0
    weight_bytes = 0
    kept_bytes = 0

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        require_gpu(artifact)
        artifacts.check(artifact, deep=True)
        self.artifact, self.device = artifact, device
        self.precision = str(artifact.parts["precision"])
        self.flavour = FLAVOURS[str(artifact.parts["flavour"])]
        self.module = load_module(artifact)
        torch.cuda.set_device(device)
        torch.cuda.current_stream().synchronize()  # makes the CUDA context that TensorRT looks for
        self.log = trt_api.logger(self.module)
        self.runtime, self.engine = deserialize(self.module, self.log, artifact.file(".engine"))
        self.cache: Any = None
        self.context = self._make_context()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # the default one makes TensorRT synchronise
        self.buffers: dict[str, Tensor] = {}
        self.conditioning: Conditioning | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0  # with the shapes set now

    @property
    def device_bytes(self) -> int:
        """GPU memory that TensorRT holds beside torch's: weights and activations."""
        return int(self.engine.device_memory_size_v2) + self.artifact.size

    def release(self) -> None:
        """Nothing: TensorRT holds one room for all shapes."""

    def begin(self, conditioning: Conditioning, *, keep_context: bool = False) -> Predict:
        require_every_step_full(self.name, keep_context)
        self._fill(conditioning)
        image_tokens = len(conditioning.image_ids) - conditioning.context.shape[1]

        def predict(latents: Tensor, timestep: Tensor, full: bool) -> Tensor:
            if self.conditioning is not conditioning:
                self._fill(conditioning)  # another edit has begun in between
            self.buffers["hidden_states"][:, :image_tokens].copy_(latents)
            self.buffers["timestep"].copy_(timestep / 1000)
            self._execute()
            return self.buffers[OUTPUT][:, :image_tokens].to(latents.dtype, copy=True)

        return predict

    def _make_context(self) -> Any:
        if self.flavour.jit:
            config = self.engine.create_runtime_config()
            self.cache = config.create_runtime_cache()
            kept = artifacts.read_small(self._cache_name())
            if kept:
                self.cache.deserialize(kept)  # refuses by itself what another driver, GPU or version wrote
            config.set_runtime_cache(self.cache)
            config.cuda_graph_strategy = self.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # A shape serves for dozens of steps: kernels made for it before the first are worth the wait.
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise self._failure("cannot make an execution context")
        return context

    def _fill(self, conditioning: Conditioning) -> None:
        """Put what stays the same over an edit's steps into the input buffers."""
        tokens, text = len(conditioning.image_ids), conditioning.prompt.shape[1]
        if conditioning.guidance is None:
            raise UnavailableError("this engine is of a model with guidance embedding, and the edit has no guidance")
        if not self.buffers or self.buffers["img_ids"].shape[0] != tokens:
            self._set_shapes(tokens, text)
        constant = {
            "encoder_hidden_states": conditioning.prompt,
            "pooled_projections": conditioning.pooled,
            "img_ids": conditioning.image_ids,
            "txt_ids": conditioning.text_ids,
            "guidance": conditioning.guidance,
        }
        for name, value in constant.items():
            self.buffers[name].copy_(value)
        self.buffers["hidden_states"][:, tokens - conditioning.context.shape[1] :].copy_(conditioning.context)
        self.conditioning = conditioning

    def _set_shapes(self, tokens: int, text: int) -> None:
        """Buffers of torch's for this many tokens, made known to the context."""
        self.stream.synchronize()
        self.graph, self.runs, self.buffers, self.conditioning = None, 0, {}, None
        counts = {"batch": 1, "tokens": tokens, "text": text}
        for name in INPUTS:
            declared = tuple(self.engine.get_tensor_shape(name))
            shape = fit_shape(name, declared, counts, self._served(name, declared))
            if not self.context.set_input_shape(name, shape):
                raise self._failure(f"does not take {name} as {shape}")
        missing = self.context.infer_shapes()
        if missing:
            raise self._failure(f"does not know the shapes of {', '.join(missing)}")
        for name in (*INPUTS, OUTPUT):
            shape = tuple(self.context.get_tensor_shape(name))
            dtype = torch_dtype(self.module, self.engine.get_tensor_dtype(name))
            self.buffers[name] = torch.zeros(shape, dtype=dtype, device=self.device)
            self.context.set_tensor_address(name, self.buffers[name].data_ptr())

    def _served(self, name: str, declared: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if -1 not in declared:
            return declared, declared
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        return tuple(smallest), tuple(largest)

    def _execute(self) -> None:
        """One step on our own stream, between what torch queued before and queues next."""
        self.stream.wait_stream(torch.cuda.current_stream())
        if self.graph is not None:
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        elif self.runs == 1 and not self.flavour.jit:  # the first run after a change of shapes cannot be captured
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._enqueue()
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        else:
            self._enqueue()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.runs += 1
        if self.runs == 1 and self.cache is not None:
            self.stream.synchronize()
            artifacts.write_small(self._cache_name(), bytes(self.cache.serialize()))

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError(str(self._failure("failed in a step")))

    def _cache_name(self) -> str:
        return f"kernels/{self.artifact.key}"

    def _failure(self, what: str) -> Exception:
        return failure(self.flavour.title, what, self.log)


class TensorrtRuntime(Engine):
    """An engine that has proven, on this GPU and driver, to compute what its model does; proven now if need be."""

    def __init__(self, artifact: Artifact, model: Model) -> None:
        gpu = require_gpu(artifact)
        verdict = verdicts.recall(artifact, gpu) or verify(artifact, model)
        verdict.require(artifact)
        super().__init__(artifact, model.device)
        self.verdict = verdict


def verify(artifact: Artifact, model: Model) -> Verdict:
    """Compare one step of an engine with the unquantized model's, and keep the verdict in the store."""
    gpu = require_gpu(artifact)
    load_module(artifact)
    if artifacts.model_hash(locate(model.spec) / "transformer") != artifact.parts["model"]:
        raise UnavailableError(f"the engine {artifact.key[:12]} was made from another model than {model.spec.name}")
    probe = proof.make_probe(model)
    wanted = proof.reference_step(model, probe)  # first: the GPU may not hold both
    engine = Engine(artifact, model.device)
    return proof.judge(artifact, gpu, proof.one_step(engine, probe), wanted)


def layers(artifact: Artifact) -> list[dict[str, Any]]:
    """What a built engine says of its layers: names, kinds, and the data types that go in and out. Needs its GPU."""
    require_gpu(artifact)
    artifacts.check(artifact, deep=True)
    module = load_module(artifact)
    log = trt_api.logger(module)
    _runtime, engine = deserialize(module, log, artifact.file(".engine"))
    information = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    found = json.loads(information).get("Layers", [])
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in found]


def count_types(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many layers take in each data type (the lowest of a layer's inputs, as in `E4M3`, `BFloat16`)."""
    order = ("FP4", "E2M1", "FP8", "E4M3", "BF16", "BFloat16", "FP16", "Half", "FP32", "Float", "Int")
    counts: Counter[str] = Counter()
    for layer in found:
        text = " ".join(str(each.get("Format/Datatype", "")) for each in layer.get("Inputs", []))
        counts[next((name for name in order if name.lower() in text.lower()), "unknown")] += 1
    return dict(counts.most_common())


def deserialize(module: Any, log: Any, path: Path) -> tuple[Any, Any]:
    """The runtime and the engine of a plan file, read through the page cache without a copy of our own.

    Only for files that `artifacts.check` has passed: a plan is native code.
    """
    runtime = module.Runtime(log)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise failure("TensorRT", f"cannot load {path}", log)
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    missing = sorted({*INPUTS, OUTPUT} - names)
    if missing:
        raise UnavailableError(f"{path}: not the engine of a Kontext transformer: it is without {', '.join(missing)}")
    return runtime, engine


def fit_shape(
    name: str,
    declared: tuple[int, ...],
    counts: dict[str, int],
    served: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[int, ...]:
    """An input's shape with its axes as counted. `served`: the smallest and the largest shape the engine takes."""
    wanted = tuple(counts.get(axis, size) for axis, size in zip(INPUTS[name], declared, strict=True))
    for axis, size, low, high in zip(INPUTS[name], wanted, *served, strict=True):
        if not low <= size <= high:
            raise UnavailableError(
                f"the engine serves {low} to {high} {axis} in {name}, and this edit has {size}: "
                "build an engine for its model"
            )
    return wanted


def torch_dtype(module: Any, dtype: Any) -> torch.dtype:
    """torch's name for a data type of TensorRT's."""
    types = module.DataType
    return {types.BF16: torch.bfloat16, types.HALF: torch.float16, types.FLOAT: torch.float32}[dtype]


def failure(title: str, what: str, log: Any) -> Exception:
    """TensorRT's own words as an error of the right kind: no memory, or anything else."""
    reason = log.errors[-1] if log.errors else "it gives no reason"
    line = f"{title} {what}: {reason}"
    if "out of memory" in reason.lower() or "OutOfMemory" in reason:
        return torch.cuda.OutOfMemoryError(line)
    return UnavailableError(line)
