"""Judges a .tflite file before native code opens it: are its graphs such as our own constructors make?

Only the bytes before the weights are read. Each operator is made once more by its constructor in `ops`, from the types
and the constants of its inputs, and must come out as it is in the file: builtin, version, options, constants, and the
type of its result. The thousands of operators of a model are only a few hundred different ones, so this takes a fifth
of a second for a model of real size.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import GraphError, errors_about
from toolkit.base.strict_json import open_regular
from toolkit.tflite import schema
from toolkit.tflite.judged_tensors import Buffers, JudgedTensor, TensorTable, as_keys
from toolkit.tflite.replay import replay
from toolkit.tflite.tables import I64, Flatbuffer, Tables

MAX_HEADER_BYTES = 1 << 27
"""The header of an E4B with three sizes and per-channel scales takes under 64 MiB."""
MAX_LIVE_BYTES = 1 << 29
"""The most bytes that the values of one graph may need at once, besides inputs, outputs and weights; the vision tower
needs 229 MB. The prefill of a long context may need more, up to this multiple of its inputs and outputs:"""
MAX_LIVE_RATIO = 32
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_ADDRESS_BYTES = 8
_MAX_INPUTS = 5
_MOST_FIELD_BYTES = 4
"""The widest number in a table of options of our operators."""
_MAX_KINDS = 20_000
"""The most different operators in one file; a model of real size has a few hundred."""


@dataclass(frozen=True, slots=True)
class JudgedSignature:
    """The inputs and outputs of a signature, by name."""

    inputs: Mapping[str, JudgedTensor]
    outputs: Mapping[str, JudgedTensor]


@dataclass(frozen=True, slots=True)
class Header:
    """The bytes of a file before its first weight, and the size of the whole file."""

    data: bytes
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read the header; GraphError for a file that we cannot have written."""
    with open(open_regular(path, GraphError), "rb") as file, errors_about(file=path):
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise GraphError(found=f"{size} bytes", wanted="a .tflite file")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
        return Header(data[: _header_end(data, size)], size)


def judge(header: Header) -> dict[str, JudgedSignature]:
    """The signatures of a file, by name, if our constructors make all of its graphs so; GraphError otherwise."""
    return _File(header).signatures()


def _header_end(data: mmap.mmap, size: int) -> int:
    """The offset of the first weight."""
    if data[4:8] != schema.FILE_IDENTIFIER:
        raise GraphError("header", found=data[4:8], wanted=schema.FILE_IDENTIFIER)
    # The table of buffers lies in the header and says where the header ends; so it is read from the longest header.
    offsets = Buffers(Flatbuffer(memoryview(data)[: min(size, MAX_HEADER_BYTES)])).offsets
    weights = offsets[offsets > 0]
    end = int(weights.min()) if weights.size else size
    if not 8 <= end <= min(size, MAX_HEADER_BYTES):
        raise GraphError("header", found=f"{end} bytes", wanted=f"8 to {min(size, MAX_HEADER_BYTES)}")
    return end


class _File:
    """A header with its tables: those of all graphs at once, one graph after the other."""

    def __init__(self, header: Header) -> None:
        self._flat = Flatbuffer(memoryview(header.data))
        self._buffers = Buffers(self._flat)
        self._buffers.check(header.file_bytes)
        root = self._buffers.root
        root.require_absent("header", 3, 5, 6)
        if root.scalars(0, "<u4")[0] != schema.SCHEMA_VERSION:
            raise GraphError("schema version", found=root.scalars(0, "<u4")[0], wanted=schema.SCHEMA_VERSION)
        self._codes = self._read_codes(root.children(1, fields=4))
        self._graphs = root.children(2, fields=6)
        self._graphs.require_absent("graph", 5)
        self._flat.check_texts(self._graphs.targets(4))
        self._signatures = root.children(7, fields=5)
        self._tensors = TensorTable(self._flat, self._graphs, self._buffers)
        self._ops = _Operators(self._flat, self._graphs, len(self._codes))

    def signatures(self) -> dict[str, JudgedSignature]:
        """Judge everything."""
        self._tensors.check()
        self._check_flow()
        self._check_operators()
        return self._read_signatures()

    def _read_codes(self, tables: Tables) -> list[tuple[str, int]]:
        tables.require_absent("operator codes", 1)
        numbers = np.maximum(tables.scalars(0, "i1"), tables.scalars(3, "<i4"))
        names = schema.builtin_names()
        versions = tables.scalars(2, "<i4", 1)
        for number in numbers.tolist():
            if number not in names:
                raise GraphError("operator codes", found=number, wanted="an operator of the schema")
        return [(names[number], version) for number, version in zip(numbers.tolist(), versions.tolist(), strict=True)]

    # --- the order in which values are computed ----------------------------------------------------------------------

    def _check_flow(self) -> None:
        """Check that each value is computed once, before it is used, and that nothing writes to constants or inputs."""
        tensors, ops = self._tensors, self._ops
        made_at = np.where(tensors.stored, -1, len(ops) + 1)
        inputs, outputs = self._ends(1), self._ends(2)
        if np.any(tensors.stored[inputs]):
            raise GraphError("graph", found="an input that is stored in the file")
        made_at[inputs] = -1
        results = ops.outputs + tensors.first[ops.graph]
        if np.any(made_at[results] < 0) or len(np.unique(results)) < len(results):
            raise GraphError("graph", found="an operator whose result is an input, a constant or another's result")
        made_at[results] = np.arange(len(ops))
        uses = ops.inputs + np.where(ops.inputs >= 0, tensors.first[ops.graph][:, None], 0)
        used = np.where(ops.inputs >= 0, made_at[uses], -1)
        late = used >= np.arange(len(ops))[:, None]
        if np.any(late):
            place = int(np.argmax(late.any(1)))
            raise GraphError(self._place(place), found="an input that is not computed before it is used")
        if np.any(made_at[outputs] > len(ops)):
            raise GraphError("graph", found="an output that no operator computes")
        self._check_live(made_at, uses, outputs)

    def _check_live(self, made_at: I64, uses: I64, outputs: I64) -> None:
        """Check that the values of each graph that are needed at the same time fit in memory."""
        tensors, ops = self._tensors, self._ops
        count = len(ops)
        if not count:
            return
        last = made_at.copy()
        there = ops.inputs >= 0
        np.maximum.at(last, uses[there], np.broadcast_to(np.arange(count)[:, None], uses.shape)[there])
        sizes = np.where((made_at >= 0) & (made_at < count), tensors.bytes, 0.0)
        sizes[outputs] = 0
        computed = sizes > 0
        change = np.zeros(count + 1)
        np.add.at(change, made_at[computed], sizes[computed])
        np.subtract.at(change, last[computed] + 1, sizes[computed])
        live = np.cumsum(change)[:-1] + self._convolution_bytes()
        ends = np.concatenate([self._ends(1), outputs])
        at_ends = np.bincount(tensors.graph[ends], tensors.bytes[ends], len(tensors.counts))
        limits = np.maximum(MAX_LIVE_BYTES, MAX_LIVE_RATIO * at_ends)[ops.graph]
        if np.any(live > limits):
            place = int(np.argmax(live > limits))
            found, wanted = f"{live[place]:,.0f} bytes of values", f"at most {limits[place]:,.0f}"
            raise GraphError(self._place(place), found=found, wanted=wanted)

    def _convolution_bytes(self) -> NDArray[np.float64]:
        """What each operator needs besides its values: XNNPACK has an address for each product of a kernel's position
        with one of the result."""
        tensors, ops = self._tensors, self._ops
        found = np.zeros(len(ops))
        convolutions = [n for n, (builtin, _) in enumerate(self._codes) if builtin in _CONVOLUTIONS]
        there = np.flatnonzero(np.isin(ops.codes, convolutions) & (ops.inputs[:, 1] >= 0))
        first = tensors.first[ops.graph[there]]
        kernels, results = ops.inputs[there, 1] + first, ops.outputs[there] + first
        found[there] = _ADDRESS_BYTES * tensors.image_sizes(kernels) * tensors.image_sizes(results)
        return found

    def _widened(self) -> NDArray[np.bool_]:
        """Which tensors are stored weights that a DEQUANTIZE has widened."""
        tensors, ops = self._tensors, self._ops
        codes = [n for n, (builtin, _) in enumerate(self._codes) if builtin == "DEQUANTIZE"]
        there = np.flatnonzero(np.isin(ops.codes, codes) & (ops.inputs[:, 0] >= 0))
        first = tensors.first[ops.graph[there]]
        found = np.zeros(len(tensors.stored), bool)
        found[ops.outputs[there] + first] = tensors.stored[ops.inputs[there, 0] + first]
        return found

    def _ends(self, field: int) -> I64:
        """The tensors that are the inputs (field 1) or outputs (field 2) of the graphs."""
        starts, counts = self._flat.vectors(self._graphs.targets(field), 4)
        found = [self._flat.numbers(int(s), int(c), "<i4") for s, c in zip(starts, counts, strict=True)]
        for graph, numbers in enumerate(found):
            self._require_tensors(graph, numbers)
            if len(np.unique(numbers)) < len(numbers):
                raise GraphError(f"graph {graph}", found="a duplicate input or output")
        placed = [numbers + first for numbers, first in zip(found, self._tensors.first.tolist(), strict=True)]
        return np.concatenate(placed).astype(np.int64) if placed else np.zeros(0, np.int64)

    def _require_tensors(self, graph: int, numbers: NDArray[Any]) -> None:
        count = int(self._tensors.counts[graph])
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
            raise GraphError(f"graph {graph}", found="a tensor that does not exist", wanted=f"0 to {count - 1}")

    def _place(self, op: int) -> str:
        graph = int(self._ops.graph[op])
        number = op - int(np.searchsorted(self._ops.graph, graph))
        return f"graph {graph} op {number} {self._codes[int(self._ops.codes[op])][0]}"

    # --- operators ---------------------------------------------------------------------------------------------------

    def _check_operators(self) -> None:
        """Check that each different operator is what its constructor makes."""
        ops, tensors = self._ops, self._tensors
        widened = self._widened()
        kinds = np.append(tensors.kinds(widened), -1)  # tensor -1 stands for an absent input
        places = ops.inputs + np.where(ops.inputs >= 0, tensors.first[ops.graph][:, None], 0)
        results = kinds[ops.outputs + tensors.first[ops.graph]]
        rows = np.column_stack([ops.codes, ops.options_ids(), kinds[places], results])
        _, firsts = np.unique(as_keys(rows), return_index=True)
        if len(firsts) > _MAX_KINDS:
            raise GraphError("operators", found=f"{len(firsts)} different ones", wanted=f"at most {_MAX_KINDS}")
        for op in sorted(firsts.tolist()):
            builtin, version = self._codes[int(ops.codes[op])]
            inputs = [
                tensors.operand(int(place), widened=bool(widened[place]))
                for place, n in zip(places[op], ops.inputs[op], strict=True)
                if n >= 0
            ]
            result = tensors.operand(int(ops.outputs[op] + tensors.first[ops.graph[op]]))
            with errors_about(self._place(op)):
                options = schema.read_options(int(ops.options_type[op]), self._flat.view, int(ops.options[op]))
                replay(builtin, version, options, inputs, result)

    # --- signatures --------------------------------------------------------------------------------------------------

    def _read_signatures(self) -> dict[str, JudgedSignature]:
        tables = self._signatures
        graphs = tables.scalars(4, "<u4")
        if sorted(graphs.tolist()) != list(range(len(self._graphs))):
            raise GraphError("signatures", found=len(graphs), wanted="one for every graph")
        tables.require_absent("signatures", 3)
        self._flat.check_texts(tables.targets(2))
        keys = [self._flat.text(int(position)) for position in tables.targets(2)]
        if len(set(keys)) < len(keys):
            raise GraphError("signatures", found=keys, wanted="each name once")
        inputs, outputs = self._named(0, 1, graphs), self._named(1, 2, graphs)
        return {key: JudgedSignature(inputs[n], outputs[n]) for n, key in enumerate(keys)}

    def _named(self, field: int, graph_field: int, graphs: I64) -> list[dict[str, JudgedTensor]]:
        """The inputs or outputs of each signature by name; they must be those of its graph."""
        maps = self._signatures.children(field, fields=2)
        _, counts = self._flat.vectors(self._signatures.targets(field), 4)
        self._flat.check_texts(maps.targets(0))
        names = [self._flat.text(int(position)) for position in maps.targets(0)]
        numbers = maps.scalars(1, "<u4").tolist()
        starts, ends = self._flat.vectors(self._graphs.targets(graph_field), 4)
        found: list[dict[str, JudgedTensor]] = []
        begin = 0
        for count, graph in zip(counts.tolist(), graphs.tolist(), strict=True):
            own = dict(zip(names[begin : begin + count], numbers[begin : begin + count], strict=True))
            begin += count
            wanted = self._flat.numbers(int(starts[graph]), int(ends[graph]), "<i4").tolist()
            if len(own) < count or sorted(own.values()) != sorted(wanted):
                raise GraphError("signature", found=sorted(own), wanted="a name for each input and output of its graph")
            found.append({name: self._tensors.judged(graph, number) for name, number in own.items()})
        return found


class _Operators:
    """The operators of all graphs, one graph after the other; a tensor's index is that in its graph."""

    def __init__(self, flat: Flatbuffer, graphs: Tables, codes: int) -> None:
        _, counts = flat.vectors(graphs.targets(3), 4)
        _, tensors = flat.vectors(graphs.targets(0), 4)
        self._flat = flat
        self.graph = np.repeat(np.arange(len(counts)), counts)
        tables = graphs.children(3, fields=14)
        tables.require_absent("operator", 5, 6, 7, 8, 9, 10, 11, 12, 13)
        self.codes = tables.scalars(0, "<u4")
        self.inputs, input_counts = flat.padded(tables.targets(1), _MAX_INPUTS, "operator inputs")
        outputs, output_counts = flat.padded(tables.targets(2), 1, "operator outputs")
        if len(tables) and (
            self.codes.max() >= codes
            or np.any(output_counts != 1)
            or np.any(outputs[:, 0] < 0)
            or np.any(outputs[:, 0] >= tensors[self.graph])
            or np.any(self.inputs >= tensors[self.graph][:, None])
            or np.any((self.inputs >= 0).sum(1) != input_counts)
        ):
            raise GraphError("operator", found="a tensor or an operator code that does not exist")
        self.outputs = outputs[:, 0]
        self.options_type = tables.scalars(3, "u1")
        self.options = tables.targets(4)
        if np.any((self.options_type > 0) != (self.options > 0)):
            raise GraphError("operator", found="options without a type")

    def __len__(self) -> int:
        return len(self.codes)

    def options_ids(self) -> I64:
        """A number for each operator; operators with equal numbers have equal options.

        Numbers are given for the bytes that decide about a table's fields: each begins within the table, but only its
        type says where it ends.
        """
        there = np.flatnonzero(self.options)
        tables = Tables(self._flat, self.options[there], fields=64)
        ids: dict[tuple[int, bytes, bytes], int] = {}
        found = np.zeros(len(self), np.int64)
        spans = zip(
            there.tolist(),
            self.options_type[there].tolist(),
            tables.vtables.tolist(),
            tables.vtable_bytes.tolist(),
            tables.positions.tolist(),
            tables.table_bytes.tolist(),
            strict=True,
        )
        for op, kind, vtable, vtable_bytes, table, table_bytes in spans:
            fields = self._flat.bytes_at(table + 4, table_bytes - 4 + _MOST_FIELD_BYTES - 1)
            key = (kind, self._flat.bytes_at(vtable, vtable_bytes), fields)
            found[op] = ids.setdefault(key, len(ids) + 1)
        return found
