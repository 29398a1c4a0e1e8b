"""Reads .tflite files strictly: every index, range and shape is checked before anything is used."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import GraphError, errors_about
from toolkit.base.strict_json import open_regular, shorten
from toolkit.tflite.graph import bits_by_type
from toolkit.tflite.records import ModelRecord, SubgraphRecord, TensorRecord
from toolkit.tflite.schema_unpack import unpack

HEADER_LIMIT_BYTES = 1 << 29  # 512 MiB; the header of a 35-layer model with per-channel scales is under 50 MB


@dataclass(frozen=True, slots=True)
class TfliteContent:
    """The records of a .tflite file, checked for consistency and against the size of the file."""

    path: Path
    size_bytes: int
    model: ModelRecord

    def index(self, signature: str) -> int:
        """The index of a signature; GraphError if there is none of this name."""
        names = self.model.signatures
        if signature not in names:
            raise GraphError(f"signature {signature}", file=self.path, found=f"missing among {', '.join(names)}")
        return names.index(signature)

    def graph(self, signature: str) -> SubgraphRecord:
        """The subgraph of a signature; GraphError if there is none of this name."""
        return self.model.subgraphs[self.index(signature)]


def read_tflite(path: Path, section: tuple[int, int] | None = None) -> TfliteContent:
    """Read and check the header, without touching the weights. GraphError names the first fault.

    `section`: the byte range [begin, end) of a container that holds the file; offsets count from its begin.
    """
    with open(open_regular(path, GraphError), "rb") as file, errors_about(file=path):
        begin, end = section or (0, os.fstat(file.fileno()).st_size)
        size_bytes = end - begin
        if size_bytes < 8:
            raise GraphError(found=f"{size_bytes} bytes", wanted="a .tflite file")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
        model = unpack(memoryview(data)[begin : min(end, begin + HEADER_LIMIT_BYTES)])
        check_model(size_bytes, model)
    return TfliteContent(path, size_bytes, model)


def check_model(size_bytes: int, model: ModelRecord) -> None:
    """Raise GraphError for an index of something that does not exist, or bytes past the end of the file."""
    if not model.buffers:
        raise GraphError("buffers", found="none", wanted="at least the empty buffer")
    for n, buffer in enumerate(model.buffers):
        if buffer.offset_bytes and buffer.offset_bytes + buffer.size_bytes > size_bytes:
            end = buffer.offset_bytes + buffer.size_bytes
            raise GraphError(f"buffer {n}", found=f"an end at byte {end}", wanted=f"at most {size_bytes}")
    if len(set(model.signatures)) != len(model.signatures):
        raise GraphError("signatures", found=list(model.signatures), wanted="each name once")
    bits = bits_by_type()
    for graph in model.subgraphs:
        _check_graph(graph.name, model, graph, bits)


def _check_graph(name: str, model: ModelRecord, graph: SubgraphRecord, bits: Mapping[str, int]) -> None:
    for tensor in graph.tensors:
        _check_tensor(f"{name} tensor {tensor.name}", model, graph, tensor, bits)
    known = {i for i, t in enumerate(graph.tensors) if t.buffer and _has_bytes(model, t)}
    for key, index in graph.inputs.items():
        if not 0 <= index < len(graph.tensors):
            raise GraphError(f"{name} input {key}", found=f"tensor {index}", wanted=f"0 to {len(graph.tensors) - 1}")
        known.add(index)
    for n, op in enumerate(graph.operators):
        for index in (*op.inputs, *op.outputs):
            if not 0 <= index < len(graph.tensors):
                raise GraphError(
                    f"{name} op {n} {op.builtin}", found=f"tensor {index}", wanted=f"0 to {len(graph.tensors) - 1}"
                )
        for index in op.called():
            if not 0 <= index < len(model.subgraphs):
                last = len(model.subgraphs) - 1
                raise GraphError(f"{name} op {n} {op.builtin}", found=f"subgraph {index}", wanted=f"0 to {last}")
        if missing := [graph.tensors[i].name for i in op.inputs if i not in known]:
            raise GraphError(f"{name} op {n} {op.builtin}", found=f"the input {missing[0]} is not computed before it")
        known.update(op.outputs)
    if missing := [key for key, index in graph.outputs.items() if index not in known]:
        raise GraphError(f"{name} output {missing[0]}", found="no operator computes it")


def _check_tensor(
    name: str,
    model: ModelRecord,
    graph: SubgraphRecord,
    tensor: TensorRecord,
    bits: Mapping[str, int],
) -> None:
    if tensor.type not in bits or any(d <= 0 for d in tensor.shape):
        raise GraphError(
            name, found=f"{tensor.type}{shorten(list(tensor.shape))}", wanted=f"positive sizes of {', '.join(bits)}"
        )
    if not 0 <= tensor.buffer < len(model.buffers):
        raise GraphError(name, found=f"buffer {tensor.buffer}", wanted=f"0 to {len(model.buffers) - 1}")
    if tensor.buffer and _has_bytes(model, tensor):
        buffer = model.buffers[tensor.buffer]
        found = len(buffer.data) if buffer.data is not None else buffer.size_bytes
        wanted = (math.prod(tensor.shape) * bits[tensor.type] + 7) // 8
        if found != wanted:
            raise GraphError(name, found=f"{found} bytes", wanted=f"{wanted}")
    quantization = tensor.quantization
    if quantization is None:
        return
    if not tensor.shape:
        raise GraphError(name, found="scales for a tensor without axes")
    if quantization.scales is not None and quantization.scales.size not in (1, tensor.shape[0]):
        raise GraphError(name, found=f"{quantization.scales.size} scales", wanted=f"1 or {tensor.shape[0]}")
    if quantization.block_size is not None:
        index, size = quantization.block_scales_tensor, quantization.block_size
        if index is None or not 0 <= index < len(graph.tensors) or size <= 0 or tensor.shape[-1] % size:
            raise GraphError(
                name, found=f"blocks of {size}, scales in tensor {index}", wanted="blocks that divide the columns"
            )
        if graph.tensors[index].shape != (tensor.shape[0], tensor.shape[-1] // size):
            raise GraphError(name, found=f"block scales {graph.tensors[index].shape}", wanted="one per block")


def _has_bytes(model: ModelRecord, tensor: TensorRecord) -> bool:
    buffer = model.buffers[tensor.buffer]
    return buffer.data is not None or buffer.offset_bytes > 0
