"""The TensorRT runtime uses nothing that TensorRT does not have: no GPU here runs it, so its words are checked.

Every attribute that our sources read from an object of TensorRT's is looked up in the real bindings: constructors and
methods on their classes, enums on the module. The table says which variable holds what.
"""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from conftest import ROOT

from core.edit.runtimes import trt_api

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's bindings are not installed")

SOURCES = ("core/edit/runtimes/tensorrt_runtime.py", "core/edit/runtimes/trt_api.py", "quant/engine.py")
HOLDS = {
    # an expression in our sources: the class it is of; None: the module itself
    "module": None, "self.module": None, "types": "DataType",
    "strategies": "DynamicShapesKernelSpecializationStrategy",
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "tensor": "ITensor",
    "errors[0]": "ParserError", "filled": "IOptimizationProfile",
    "runtime": "Runtime", "engine": "ICudaEngine", "self.engine": "ICudaEngine",
    "self.context": "IExecutionContext", "self.cache": "IRuntimeCache",
    "engine.create_engine_inspector()": "EngineInspector",
    "config.get_timing_cache()": "ITimingCache",
}  # fmt: skip
CONFIG = {"core/edit/runtimes/tensorrt_runtime.py": "IRuntimeConfig", "quant/engine.py": "IBuilderConfig"}


def uses() -> set[tuple[str, str | None, str]]:
    """(source, class or None for the module, attribute) of all attributes read from what HOLDS names."""
    found = set()
    for source in SOURCES:
        holds = {**HOLDS, **({"config": CONFIG[source]} if source in CONFIG else {})}
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if owner in holds:
                found.add((source, holds[owner], node.attr))
            elif match := re.fullmatch(r"(?:self\.)?module\.(\w+(?:\.\w+)?)", owner):
                found.add((source, match[1], node.attr))
    return found


def look_up(path: str | None):
    found = trt
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("source", "owner", "name"), sorted(uses(), key=str))
def test_it_is_in_the_bindings(source, owner, name):
    assert hasattr(look_up(owner), name), f"{source}: {owner or 'the module'} has no {name}"


def test_the_table_sees_what_the_runtime_does():
    names = {name for source, _, name in uses() if source.endswith("tensorrt_runtime.py")}
    assert names >= {"deserialize_cuda_engine", "create_runtime_config", "create_runtime_cache", "set_runtime_cache"}
    assert names >= {"deserialize", "serialize", "cuda_graph_strategy", "WHOLE_GRAPH_CAPTURE", "EAGER"}
    assert names >= {"dynamic_shapes_kernel_specialization_strategy", "create_execution_context", "set_input_shape"}
    assert names >= {"infer_shapes", "get_tensor_shape", "get_tensor_dtype", "get_tensor_profile_shape"}
    assert names >= {"set_tensor_address", "execute_async_v3", "device_memory_size_v2", "get_engine_information"}
    assert len(uses()) > 60


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        # in the order we pass them, by the signature that pybind11 writes into the docstring
        ("IExecutionContext.set_input_shape", ["name: str", "shape: tuple"]),
        ("IExecutionContext.set_tensor_address", ["name: str", "memory"]),
        ("IExecutionContext.execute_async_v3", ["stream_handle"]),
        ("IExecutionContext.get_tensor_shape", ["name: str"]),
        ("ICudaEngine.get_tensor_shape", ["name: str"]),
        ("ICudaEngine.get_tensor_dtype", ["name: str"]),
        ("ICudaEngine.get_tensor_profile_shape", ["name: str", "profile_index"]),
        ("ICudaEngine.create_execution_context", ["runtime_config"]),
        ("Runtime.deserialize_cuda_engine", ["serialized_engine"]),
        ("IRuntimeCache.deserialize", ["blob"]),
        ("IRuntimeConfig.set_runtime_cache", ["cache"]),
        ("EngineInspector.get_engine_information", ["format"]),
        ("IBuilderConfig.set_compute_capability", ["compute_capability", "index"]),
        ("IBuilderConfig.set_timing_cache", ["cache", "ignore_mismatch"]),
        ("IOptimizationProfile.set_shape", ["input: str", "min", "opt", "max"]),
        ("IProgressMonitor.phase_start", ["phase_name", "parent_phase", "num_steps"]),
        ("IProgressMonitor.step_complete", ["phase_name", "step"]),
        ("IProgressMonitor.phase_finish", ["phase_name"]),
        ("ILogger.log", ["severity", "msg"]),
    ],
)
def test_arguments_are_in_that_order(method, arguments):
    documented = inspect.getdoc(look_up(method)) or ""
    signatures = [" ".join(line.split()) for line in documented.splitlines() if "(self:" in line]
    pattern = r"\(self: [\w.]+, " + r"[^,()]*, ".join(map(re.escape, arguments))
    assert any(re.search(pattern, signature) for signature in signatures), signatures


def test_what_is_set_can_be_set():
    for owner, name in [
        ("IRuntimeConfig", "cuda_graph_strategy"),
        ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
        ("IBuilderConfig", "num_compute_capabilities"),
        ("IBuilderConfig", "profiling_verbosity"),
        ("IBuilderConfig", "progress_monitor"),
    ]:
        assert getattr(trt, owner).__dict__[name].fset is not None, name


def test_the_gpus_are_those_the_builder_knows():
    assert set(trt_api.supported(trt)) <= set(trt_api.GPUS)
    assert {"sm89", "sm120"} <= set(trt_api.supported(trt))


def test_both_ways_to_import_it():
    assert trt_api.load("tensorrt_rtx").__version__ == trt.__version__
    assert trt_api.is_installed("tensorrt_rtx")
