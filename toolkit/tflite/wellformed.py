"""Verifies the flatbuffer of a .tflite that any program may have written, before native code reads it.

`judge.py` cannot judge graphs that are not ours, because their operators may be any. What can be verified is what the
verifier of flatbuffers checks, and what else LiteRT takes for granted: all tables, vectors, texts and weights lie
within the file, and every index of a tensor, a buffer, an operator code or a graph is that of an existing one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import GraphError, errors_about
from toolkit.base.strict_json import open_regular
from toolkit.tflite import schema
from toolkit.tflite.tables import I64, Flatbuffer, Tables

_ANY = 1 << 14
"""The most fields of a table: a later schema may have more fields than ours, and these are not read."""
_VECTORS: Mapping[str, Mapping[int, int]] = {
    "ReshapeOptions": {0: 4},
    "SqueezeOptions": {0: 4},
    "BucketizeOptions": {0: 4},
    "ConcatEmbeddingsOptions": {1: 4, 2: 4},
    "StableHLOCompositeOptions": {2: 1},
}
"""The vectors in tables of options: field number and bytes of an item; all other tables hold only scalars."""
_TEXTS: Mapping[str, tuple[int, ...]] = {"VarHandleOptions": (0, 1), "StableHLOCompositeOptions": (0,)}
_GRAPHS: Mapping[str, tuple[int, ...]] = {
    "IfOptions": (0, 1),
    "WhileOptions": (0, 1),
    "CallOptions": (0,),
    "CallOnceOptions": (0,),
    "StableHLOCompositeOptions": (1,),
}
"""The fields of tables of options that are indices of graphs."""
_SECOND_OPTIONS = ("StableHLOCompositeOptions", "DilateOptions", "ReduceWindowOptions", "StablehloShiftLeftOptions")
"""The tables of the second union that are read here; the others are for StableHLO operators, which LiteRT-LM lacks."""
_SPARSITY = 6
"""The field of a tensor that says which of its elements are stored; LiteRT trusts every number in it."""
_OPTIONAL = -1
"""The index of a tensor that stands for an absent input."""


def require_wellformed(path: Path, section: tuple[int, int] | None = None) -> None:
    """Raise GraphError unless a .tflite is a complete flatbuffer whose parts refer to each other correctly.

    `section`: the byte range [begin, end) of a container that holds the file; offsets count from its begin.
    """
    with open(open_regular(path, GraphError), "rb") as file, errors_about(file=path):
        begin, end = section or (0, os.fstat(file.fileno()).st_size)
        if end - begin < 8:
            raise GraphError(found=f"{end - begin} bytes", wanted="a .tflite file")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
        view = memoryview(data)[begin:end]
        if view[4:8] != schema.FILE_IDENTIFIER:
            raise GraphError("header", found=bytes(view[4:8]), wanted=schema.FILE_IDENTIFIER)
        _Model(view).check()


class _Model:
    """The tables of all graphs at once, one graph after the other."""

    def __init__(self, data: memoryview) -> None:
        self._flat = Flatbuffer(data)
        self._root = self._flat.root(_ANY)
        self._graphs = self._root.children(2, _ANY)
        _, self._tensor_counts = self._flat.vectors(self._graphs.targets(0), 4)
        self._tensor_graph = np.repeat(np.arange(len(self._tensor_counts)), self._tensor_counts)

    def check(self) -> None:
        version = self._root.scalars(0, "<u4")[0]
        if version != schema.SCHEMA_VERSION:
            raise GraphError("schema version", found=version, wanted=schema.SCHEMA_VERSION)
        self._flat.check_texts(self._root.targets(3))
        codes = self._root.children(1, _ANY)
        self._flat.check_texts(codes.targets(1))
        buffers = self._check_buffers()
        self._check_tensors(buffers)
        self._check_operators(len(codes))
        self._check_signatures()
        metadata = self._root.children(6, _ANY)
        self._flat.check_texts(metadata.targets(0))
        _require_below("metadata", metadata.scalars(1, "<u4"), buffers)

    def _check_buffers(self) -> int:
        buffers = self._root.children(4, _ANY)
        self._flat.vectors(buffers.targets(0), 1)
        self._require_inside("buffers", buffers.scalars(1, "<u8"), buffers.scalars(2, "<u8"))
        return len(buffers)

    def _check_tensors(self, buffers: int) -> None:
        tensors = self._graphs.children(0, _ANY)
        self._flat.check_texts(self._graphs.targets(4))
        self._flat.check_texts(tensors.targets(3))
        _require_below("tensor", tensors.scalars(2, "<u4"), buffers)
        numbers, owner = self._numbers(tensors, 0)
        if numbers.size and numbers.min() < -1:
            raise GraphError("tensor", found=f"a dimension of {numbers.min()}")
        self._flat.vectors(tensors.targets(7), 4)
        if np.any(tensors.has(_SPARSITY)):
            raise GraphError("tensor", found="sparse elements, whose indices are not verified")
        elements = np.ones(len(tensors))
        np.multiply.at(elements, owner, numbers)
        self._check_quantization(tensors, elements)
        for field in (1, 2):
            ends, graph = self._numbers(self._graphs, field)
            self._require_tensors("graph", ends, graph)

    def _check_quantization(self, tensors: Tables, elements: NDArray[np.float64]) -> None:
        there = np.flatnonzero(tensors.has(4))
        # A table may belong to tensors of several graphs, so it is not read once for all.
        quantized = Tables(self._flat, tensors.targets(4)[there], _ANY)
        for field, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
            self._flat.vectors(np.unique(quantized.targets(field)), width)
        kinds, places = quantized.scalars(4, "u1"), quantized.targets(5)
        blocks = (places > 0) & (kinds == schema.BLOCKWISE)
        self._check_blocks(Tables(self._flat, places[blocks], _ANY), there[blocks], elements)
        other = Tables(self._flat, np.unique(places[(places > 0) & ~blocks]), _ANY)
        self._flat.vectors(other.targets(0), 1)

    def _check_blocks(self, tables: Tables, weights: I64, elements: NDArray[np.float64]) -> None:
        """Check that there is a scale for each block of these tensors; `elements`: how many each tensor has."""
        graph = self._tensor_graph[weights]
        scales, zeros, sizes = (tables.scalars(field, "<i4") for field in range(3))
        self._flat.vectors(np.unique(tables.targets(3)), 4)
        for numbers in (scales, zeros):
            self._require_tensors("quantization", numbers, graph)
        first = np.cumsum(self._tensor_counts) - self._tensor_counts
        if np.any(scales < 0) or np.any(elements[first[graph] + scales] * sizes < elements[weights]):
            raise GraphError("quantization", found="fewer scales than blocks")

    def _check_operators(self, codes: int) -> None:
        _, counts = self._flat.vectors(self._graphs.targets(3), 4)
        operators = self._graphs.children(3, _ANY)
        graph = np.repeat(np.arange(len(counts)), counts)
        _require_below("operator", operators.scalars(0, "<u4"), codes)
        for field in (1, 2, 8):  # inputs, outputs, intermediates
            numbers, owner = self._numbers(operators, field)
            self._require_tensors("operator", numbers, graph[owner])
        for field in (5, 7):  # custom options, and which inputs the operator changes
            self._flat.vectors(operators.targets(field), 1)
        self._require_inside("operator", operators.scalars(9, "<u8"), operators.scalars(10, "<u8"))
        self._check_options(operators)

    def _check_options(self, operators: Tables) -> None:
        for union, (kind_field, field) in zip(schema.options_names(), ((3, 4), (11, 12)), strict=True):
            kinds, places = operators.scalars(kind_field, "u1"), operators.targets(field)
            for kind in np.unique(kinds[places > 0]).tolist():
                name = union.get(kind, "")
                tables = Tables(self._flat, np.unique(places[(places > 0) & (kinds == kind)]), _ANY)
                self._check_pointers(name, tables)
                if field == 12 and name not in _SECOND_OPTIONS:
                    wanted = " or ".join(_SECOND_OPTIONS)
                    raise GraphError("operator", found=name or f"options of kind {kind}", wanted=wanted)

    def _check_pointers(self, name: str, tables: Tables) -> None:
        """Check what a table of options points to, and the graphs that it names."""
        for index, width in _VECTORS.get(name, {}).items():
            self._flat.vectors(tables.targets(index), width)
        for index in _TEXTS.get(name, ()):
            self._flat.check_texts(tables.targets(index))
        for index in _GRAPHS.get(name, ()):
            _require_below("operator", tables.scalars(index, "<u4"), len(self._graphs))

    def _check_signatures(self) -> None:
        signatures = self._root.children(7, _ANY)
        self._flat.check_texts(signatures.targets(2))
        graphs = signatures.scalars(4, "<u4")
        _require_below("signature", graphs, len(self._graphs))
        for field in (0, 1):
            _, counts = self._flat.vectors(signatures.targets(field), 4)
            named = signatures.children(field, _ANY)
            self._flat.check_texts(named.targets(0))
            self._require_tensors("signature", named.scalars(1, "<u4"), np.repeat(graphs, counts))

    # --- parts -------------------------------------------------------------------------------------------------------

    def _tables(self, tables: Tables, field: int) -> Tables:
        """The tables that a field points to, of those tables that have it."""
        places = tables.targets(field)
        return Tables(self._flat, np.unique(places[places > 0]), _ANY)

    def _numbers(self, tables: Tables, field: int) -> tuple[I64, I64]:
        """The int32 items of a field's vectors, and for each item the index of its table."""
        starts, counts = self._flat.vectors(tables.targets(field), 4)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(starts, counts) + 4 * (np.arange(int(counts.sum())) - first)
        return self._flat.read(places, "<i4"), np.repeat(np.arange(len(counts)), counts)

    def _require_tensors(self, place: str, numbers: I64, graph: NDArray[Any]) -> None:
        wrong = (numbers < _OPTIONAL) | (numbers >= self._tensor_counts[graph])
        if np.any(wrong):
            raise GraphError(place, found=f"tensor {numbers[int(np.argmax(wrong))]}, which does not exist")

    def _require_inside(self, place: str, offsets: I64, sizes: I64) -> None:
        """Check that the byte ranges at these offsets lie within the file; offsets 0 and 1 stand for no bytes."""
        there = (offsets > 1) | (offsets < 0)
        if np.any(there & ((offsets < 0) | (sizes < 0) | (offsets > self._flat.size - sizes))):
            raise GraphError(place, found="bytes past the end of the file")


def _require_below(place: str, numbers: I64, count: int) -> None:
    if numbers.size and numbers.max() >= count:
        raise GraphError(place, found=f"the number {numbers.max()}", wanted=f"a number below {count}")
