"""Counts the nodes that LiteRT's delegate takes, with LiteRT's profiler; runs signatures once, outside measurements.

LiteRT's Python package and log do not report this, so it is read through the C API (litert/c of 2.3) by ctypes. Run it
in a separate process, which may crash without harm.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

from device_harness.parsers.delegates import undelegated_nodes
from toolkit.base.errors import EnvironmentFault
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import SubgraphRecord, TensorRecord

_CPU, _HOST_MEMORY = 1, 1
"""kLiteRtHwAcceleratorCpu, kLiteRtTensorBufferTypeHostMemory."""
_TYPES = {"FLOAT32": (1, 4), "INT32": (2, 4), "BOOL": (6, 1), "INT8": (9, 1)}
"""The number in LiteRtElementType, and the size in bytes, of each element type."""
_DELETE = ctypes.CFUNCTYPE(None, c_void_p)


class _Tensor(ctypes.Structure):
    """The C type LiteRtRankedTensorType: element type and shape."""

    _fields_ = (("element", c_int), ("rank", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8))


def count_nodes(
    library: Path, model: Path, signatures: Sequence[str], *, threads: int, weight_cache: Path
) -> tuple[int, int]:
    """Count delegated nodes and all nodes of these signatures; EnvironmentFault if LiteRT refuses."""
    runtime = _Runtime(library, model, threads, weight_cache)
    content = read_tflite(model)
    order = list(content.model.signatures)
    graphs = {name: content.graph(name) for name in signatures}
    for name, graph in graphs.items():
        runtime.run(order.index(name), graph)
    left = undelegated_nodes(runtime.summary())
    nodes = sum(len(graph.operators) for graph in graphs.values())
    return nodes - left, nodes


class _Runtime:
    """A compiled model with a profiler; it is never freed before the process ends."""

    def __init__(self, library: Path, model: Path, threads: int, weight_cache: Path) -> None:
        self._api = ctypes.CDLL(str(library))
        self._kept: list[object] = []
        self._environment, options, loaded = c_void_p(), c_void_p(), c_void_p()
        self._model, self._profiler = c_void_p(), c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, byref(self._environment))
        self._call("LiteRtCreateModelFromFile", self._environment, str(model).encode(), byref(loaded))
        self._call("LiteRtCreateOptions", byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        cpu = f'num_threads = {threads}\nweight_cache_file_path = "{weight_cache}"\n'
        for identifier, text in (("runtime_options_string", "enable_profiling = true\n"), ("xnnpack", cpu)):
            self._call("LiteRtAddOpaqueOptions", options, self._opaque(identifier, text))
        self._call("LiteRtCreateCompiledModel", self._environment, loaded, options, byref(self._model))
        self._call("LiteRtCompiledModelGetProfiler", self._model, byref(self._profiler))
        self._call("LiteRtStartProfiler", self._profiler)

    def summary(self) -> str:
        """The profiler's summary of all runs so far."""
        text = c_char_p()
        self._call("LiteRtGetProfileSummary", self._profiler, self._model, byref(text))
        return (text.value or b"").decode("utf-8", "replace")

    def run(self, index: int, graph: SubgraphRecord) -> None:
        """Run a signature once, on zeros; each cache is one buffer for input and output, as in our session."""
        inputs = {name: self._buffer(graph.tensors[tensor]) for name, tensor in graph.inputs.items()}
        outputs = [inputs.get(name) or self._buffer(graph.tensors[tensor]) for name, tensor in graph.outputs.items()]
        given, taken = (c_void_p * len(inputs))(*inputs.values()), (c_void_p * len(outputs))(*outputs)
        sizes = c_size_t(len(inputs)), c_size_t(len(outputs))
        self._call("LiteRtRunCompiledModel", self._model, c_size_t(index), sizes[0], given, sizes[1], taken)
        for buffer in {buffer.value: buffer for buffer in (*inputs.values(), *outputs)}.values():
            self._api.LiteRtDestroyTensorBuffer(buffer)

    def _buffer(self, tensor: TensorRecord) -> c_void_p:
        element, size = _TYPES[tensor.type]
        kind = _Tensor(element, len(tensor.shape), tensor.shape)
        buffer, count = c_void_p(), c_size_t(size * math.prod(tensor.shape))
        self._call(
            "LiteRtCreateManagedTensorBuffer", self._environment, _HOST_MEMORY, byref(kind), count, byref(buffer)
        )
        self._call("LiteRtClearTensorBuffer", buffer)
        return buffer

    def _opaque(self, identifier: str, text: str) -> c_void_p:
        payload, found = ctypes.create_string_buffer(text.encode()), c_void_p()
        delete = _DELETE(lambda _: None)
        self._kept += [payload, delete]
        address = ctypes.cast(payload, c_void_p)
        self._call("LiteRtCreateOpaqueOptions", identifier.encode(), address, delete, byref(found))
        return found

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._api, name)(*arguments)
        if status:
            raise EnvironmentFault(f"LiteRT {name}", found=f"it failed with status {status}")
