"""Writes .tflite files: first the weights, after the space for the header; then the header, with the weights' scales.

The length of the header does not depend on the values that are filled in later, so it is packed once, with placeholders
that are overwritten. No weight is kept in memory, and nothing that is written moves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toolkit.base.errors import RecipeError
from toolkit.base.files import write_at
from toolkit.base.layout import MATRIX_ALIGNMENT, PAGE_BYTES, align_up
from toolkit.base.weights import Weight
from toolkit.quant.recipe import Recipe
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Scheme, payload_bytes, scales_bytes
from toolkit.quant.source import PackedSource, TensorSource
from toolkit.quant.stream import FileWeights, Placement, stream_files
from toolkit.tflite import schema
from toolkit.tflite.graph import DType, Graph, Node, OptionValue, Signature, Value
from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, Quantization, SubgraphRecord, TensorRecord
from toolkit.tflite.schema_pack import pack, set_buffer_offsets, set_scales


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """The place in the file for the bytes of a `Graph.blob`."""

    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TfliteLayout:
    """A file before its weights are read: its header, with every scale 1, and the place of each weight and blob."""

    header: bytes
    placements: tuple[Placement, ...]
    blobs: Mapping[str, BlobPlace]
    size_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights without their scales: the sum of the progress that `write_tflite` reports."""
        return sum(payload_bytes(p.weight.shape, p.scheme) for p in self.placements)


def distinct_weights(signatures: Sequence[Signature]) -> tuple[Weight, ...]:
    """Every weight that is an output or that an output depends on, in order of first use."""
    graphs = [s.graph for s in signatures]
    used = [value for graph in graphs for node in graph.live_nodes() for value in node.inputs]
    used += [value for graph in graphs for value in graph.outputs.values()]
    weights = tuple(dict.fromkeys(value.weight for value in used if value.weight is not None))
    names = [w.name for w in weights]
    assert len(set(names)) == len(names), "two different weights share a name"
    return weights


def layout_tflite(signatures: Sequence[Signature], schemes: Mapping[str, Scheme]) -> TfliteLayout:
    """Lay out a file: its header, then each weight once, however many graphs use it.

    `schemes`: the scheme of each weight, by name. RecipeError for a lookup table in f16.
    """
    weights = distinct_weights(signatures)
    tables = {v.weight for s in signatures for n in s.graph.nodes if n.builtin == "EMBEDDING_LOOKUP" for v in n.inputs}
    for weight in weights:
        if weight in tables and schemes[weight.name].element.widened:
            # LiteRT would widen the whole table at every call.
            raise RecipeError(f"table {weight.name}", found=schemes[weight.name].dtype, wanted="f32 or integers")
    packing = _Packing(signatures, _place(weights, tables, schemes, header_bytes=1), _place_blobs(signatures, 1))
    header = bytearray(packing.pack())
    placements = _place(weights, tables, schemes, header_bytes=len(header))
    ends = [len(header)]
    for placement in placements:
        shape, scheme = placement.weight.shape, placement.scheme
        ends.append(placement.payload_offset + payload_bytes(shape, scheme))
        if placement.scales_offset is not None:
            ends.append(placement.scales_offset + scales_bytes(shape, scheme))
    blobs = _place_blobs(signatures, max(ends))
    ends += [place.offset_bytes + place.size_bytes for place in blobs.values()]
    set_buffer_offsets(header, packing.buffer_offsets(placements, blobs))
    return TfliteLayout(bytes(header), placements, blobs, max(ends))


def layout_files(files: Mapping[str, Sequence[Signature]], recipe: Recipe) -> dict[str, TfliteLayout]:
    """Lay out several files of one model, by name; the recipe assigns schemes to the weights of all of them at once."""
    schemes = recipe.plan(distinct_weights([signature for file in files.values() for signature in file]))
    return {name: layout_tflite(signatures, schemes) for name, signatures in files.items()}


def write_tflite(
    path: Path,
    layout: TfliteLayout,
    source: TensorSource,
    *,
    packed: PackedSource | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write one file; see `write_tflites`."""
    write_tflites({path: layout}, source, packed=packed, workers=workers, progress=progress)


def write_tflites(
    files: Mapping[Path, TfliteLayout],
    source: TensorSource,
    *,
    packed: PackedSource | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
    rounded: RoundedWeights | None = None,
) -> None:
    """Stream the weights to their places after the headers, then write the headers with the scales of the weights.

    A tensor that several files need is read once. Weights that `packed` has in their scheme, or that are in `rounded`,
    are copied. `progress` gets the bytes of weights, without scales, that were written since its last call.
    The files are written in place: the caller renames them when they are complete.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path, "wb")).fileno() for path in files]
        weights = []
        for fd, layout in zip(opened, files.values(), strict=True):
            os.truncate(fd, layout.size_bytes)
            weights.append(FileWeights(fd, layout.placements))
        scales = stream_files(weights, source, packed=packed, workers=workers, progress=progress, rounded=rounded)
        for fd, layout, found in zip(opened, files.values(), scales, strict=True):
            header = bytearray(layout.header)
            set_scales(header, found)
            write_at(fd, memoryview(header), 0)


def _place(
    weights: Sequence[Weight], tables: set[Weight | None], schemes: Mapping[str, Scheme], *, header_bytes: int
) -> tuple[Placement, ...]:
    """A place after the header for each weight, in order of use: its payload, followed by its block scales.

    Vectors come before all matrices. A runtime copies matrices into memory of its own but reads vectors in the mapped
    file: between the matrices, each vector would keep the pages around it in memory.
    """
    placed: dict[Weight, Placement] = {}
    offset = header_bytes
    for weight in sorted(weights, key=lambda weight: len(weight.shape) > 1):
        scheme = schemes[weight.name]
        payload_offset = align_up(offset, PAGE_BYTES if weight in tables else MATRIX_ALIGNMENT)
        offset = payload_offset + payload_bytes(weight.shape, scheme)
        scales_offset = None
        if scheme.quantised and scheme.block_size is not None:
            scales_offset = align_up(offset, MATRIX_ALIGNMENT)
            offset = scales_offset + scales_bytes(weight.shape, scheme)
        placed[weight] = Placement(weight, scheme, payload_offset, scales_offset)
    return tuple(placed[weight] for weight in weights)


def _place_blobs(signatures: Sequence[Signature], offset: int) -> dict[str, BlobPlace]:
    """A page-aligned place for each blob, from `offset` on."""
    places: dict[str, BlobPlace] = {}
    for value in (value for s in signatures for node in s.graph.live_nodes() for value in node.inputs):
        if value.blob is not None and value.blob not in places:
            offset = align_up(offset, PAGE_BYTES)
            places[value.blob] = BlobPlace(offset, math.prod(value.shape) * value.dtype.numpy.itemsize)
            offset += places[value.blob].size_bytes
    return places


class _Packing:
    """The buffers, tensors and subgraphs of one file with its weights at given places, and all scales 1."""

    def __init__(
        self,
        signatures: Sequence[Signature],
        placements: Sequence[Placement],
        blobs: Mapping[str, BlobPlace],
    ) -> None:
        self._signatures = signatures
        self._schemes = {p.weight.name: p.scheme for p in placements}
        self._per_channel = {
            p.weight.name: Quantization(scales=np.ones(p.weight.shape[0], np.float32))
            for p in placements
            if p.scheme.per_channel
        }
        self._buffers = [BufferRecord()]
        self._payload_buffer: dict[str, int] = {}
        self._scales_buffer: dict[str, int] = {}
        self._constant_buffer: dict[bytes, int] = {}
        for placement in placements:
            weight, scheme = placement.weight, placement.scheme
            size = payload_bytes(weight.shape, scheme)
            self._payload_buffer[weight.name] = self._buffer(offset_bytes=placement.payload_offset, size_bytes=size)
            if placement.scales_offset is not None:
                size = scales_bytes(weight.shape, scheme)
                self._scales_buffer[weight.name] = self._buffer(offset_bytes=placement.scales_offset, size_bytes=size)

        self._blob_buffer = {
            name: self._buffer(offset_bytes=place.offset_bytes, size_bytes=place.size_bytes)
            for name, place in blobs.items()
        }

    def pack(self) -> bytes:
        """The header, with one float32 scale per channel of each weight that has them."""
        subgraphs = tuple(self._subgraph(s) for s in self._signatures)
        names = tuple(s.name for s in self._signatures)
        return pack(ModelRecord(subgraphs, tuple(self._buffers), names))

    def buffer_offsets(self, placements: Sequence[Placement], blobs: Mapping[str, BlobPlace]) -> dict[int, int]:
        """The offset of each buffer, by its index, if the same weights and blobs lie at these places instead."""
        offsets = {self._payload_buffer[p.weight.name]: p.payload_offset for p in placements}
        for placement in placements:
            if placement.scales_offset is not None:
                offsets[self._scales_buffer[placement.weight.name]] = placement.scales_offset
        return offsets | {self._blob_buffer[name]: place.offset_bytes for name, place in blobs.items()}

    def _buffer(self, *, data: bytes | None = None, offset_bytes: int = 0, size_bytes: int = 0) -> int:
        self._buffers.append(BufferRecord(data, offset_bytes, size_bytes))
        return len(self._buffers) - 1

    def _subgraph(self, signature: Signature) -> SubgraphRecord:
        graph = signature.graph
        nodes = graph.live_nodes()
        values = _live_values(graph, nodes)
        index = {id(value): n for n, value in enumerate(values)}
        names = _tensor_names(graph)
        tensors = [self._tensor(value, names[value.index]) for value in values]
        widened = []
        for n, value in enumerate(values):
            if value.weight is not None and value.weight.name in self._scales_buffer:
                tensors[n] = self._with_block_scales(tensors[n], value.weight, tensors)
            if value.weight is not None and self._schemes[value.weight.name].element.widened:
                index[id(value)] = len(tensors)
                tensors.append(TensorRecord(f"{value.weight.name}.f32", value.shape, "FLOAT32", 0))
                widened.append(OperatorRecord("DEQUANTIZE", 3, (n,), (index[id(value)],), "DequantizeOptions"))
        return SubgraphRecord(
            signature.name,
            tuple(tensors),
            (*widened, *(_operator(node, index) for node in nodes)),
            {name: index[id(value)] for name, value in graph.inputs.items()},
            {name: index[id(value)] for name, value in graph.outputs.items()},
        )

    def _tensor(self, value: Value, name: str) -> TensorRecord:
        if value.weight is not None:
            weight = value.weight
            scheme = self._schemes[weight.name]
            buffer = self._payload_buffer[weight.name]
            kind, scales = scheme.element.tensor_type, self._per_channel.get(weight.name)
            return TensorRecord(name, weight.shape, kind, buffer, scales)
        buffer = self._blob_buffer[value.blob] if value.blob is not None else 0
        if value.constant is not None:
            data = value.constant.tobytes()
            if data not in self._constant_buffer:
                self._constant_buffer[data] = self._buffer(data=data)
            buffer = self._constant_buffer[data]
        scale = value.type.scale
        rounded = None if scale is None else Quantization(scales=np.array([scale], np.float32))
        return TensorRecord(name, value.shape, value.dtype.value, buffer, rounded)

    def _with_block_scales(self, tensor: TensorRecord, weight: Weight, tensors: list[TensorRecord]) -> TensorRecord:
        block_size = self._schemes[weight.name].block_size
        assert block_size is not None
        shape = (weight.shape[0], weight.shape[1] // block_size)
        tensors.append(TensorRecord(f"{weight.name}.scales", shape, "FLOAT16", self._scales_buffer[weight.name]))
        quantization = Quantization(block_size=block_size, block_scales_tensor=len(tensors) - 1)
        return replace(tensor, quantization=quantization)


def _live_values(graph: Graph, nodes: Sequence[Node]) -> list[Value]:
    """The values that a file needs, in the order in which they were made: inputs, outputs, and what the nodes use."""
    touched = {id(value) for node in nodes for value in (*node.inputs, *node.outputs)}
    touched.update(id(value) for value in (*graph.inputs.values(), *graph.outputs.values()))
    return [value for value in graph.values if id(value) in touched]


def _tensor_names(graph: Graph) -> dict[int, str]:
    """A name for each value, by index: a weight's own, an input's or output's in the signature, else `value_N`."""
    names = {v.index: f"{'constant' if v.constant is not None else 'value'}_{v.index}" for v in graph.values}
    names.update({v.index: v.weight.name for v in graph.values if v.weight is not None})
    names.update({value.index: name for name, value in graph.inputs.items()})
    names.update(
        {value.index: f"{name}_out" if name in graph.inputs else name for name, value in graph.outputs.items()}
    )
    return names


def _operator(node: Node, index: Mapping[int, int]) -> OperatorRecord:
    options = node.options
    fields = options.fields if options else ()
    return OperatorRecord(
        node.builtin,
        node.version,
        tuple(index[id(v)] for v in node.inputs),
        tuple(index[id(v)] for v in node.outputs),
        options.table if options else None,
        tuple((name, _option(value)) for name, value in fields),
    )


def _option(value: OptionValue | DType) -> OptionValue:
    return schema.tensor_type_number(value.value) if isinstance(value, DType) else value
