"""Cuts a graph of float weights into segments: runs of operators, each as a file of its own.

Between two segments the values that later operators need are in the caller's hands, who can look at them, and change
the weights of the operators that follow. Only the weights and activations of one segment are in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.base.layout import MATRIX_ALIGNMENT, align_up
from toolkit.quant.stream import Placement
from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, SubgraphRecord
from toolkit.tflite.schema_pack import pack, set_buffer_offsets
from toolkit.tflite.schema_unpack import unpack
from toolkit.tflite.writer import TfliteLayout

_MOST_ELEMENT_BYTES = 4
SEGMENT = "run"
"""The signature of a segment's file; its inputs and outputs are named by `value_name`."""


def value_name(tensor: int) -> str:
    """The name of a value in the signature of a segment, by its index in the graph."""
    return f"t{tensor}"


@dataclass(frozen=True, slots=True)
class Segment:
    """Some operators of a graph as a file; `inputs` and `outputs`: the graph's values by their index."""

    layout: TfliteLayout
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class SegmentedGraph:
    """A signature of a file that is laid out in float32, for cutting.

    `inputs`, `outputs`: indices of its values, by their names in the signature. `operators`: their number.
    """

    def __init__(self, layout: TfliteLayout, signature: str) -> None:
        """`layout`: without weights in other types than float32, whose operators would need more than they name."""
        assert all(placement.scheme.dtype == "f32" for placement in layout.placements) and not layout.blobs
        model = unpack(memoryview(layout.header))
        self._graph = model.subgraphs[model.signatures.index(signature)]
        self._buffers = model.buffers
        self._placements = {placement.payload_offset: placement for placement in layout.placements}
        self._made_at = {t: i for i, op in enumerate(self._graph.operators) for t in op.outputs}
        self._last_use = {t: i for i, op in enumerate(self._graph.operators) for t in op.inputs}
        self._last_use |= dict.fromkeys(self._graph.outputs.values(), self.operators)
        self._products = self._find_products()
        self._bytes = self._count_bytes()
        assert not any(op.called() for op in self._graph.operators), "operators that run other graphs are not cut"

    @property
    def inputs(self) -> Mapping[str, int]:
        """The indices of the values that the signature takes, by name."""
        return self._graph.inputs

    @property
    def outputs(self) -> Mapping[str, int]:
        """The indices of the values that the signature gives, by name."""
        return self._graph.outputs

    @property
    def operators(self) -> int:
        """How many operators it has."""
        return len(self._graph.operators)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self._graph.tensors[tensor].shape

    @property
    def products(self) -> Mapping[str, tuple[int, int]]:
        """By the name of each matrix: the index of the first operator that multiplies by it, and of that one's input.

        Matrices are the weights of FULLY_CONNECTED: products with rows of inputs.
        """
        return self._products

    def is_made_before(self, tensor: int, operator: int) -> bool:
        """Whether a value is an input of the signature or the result of an operator before this one."""
        return self._made_at.get(tensor, -1) < operator

    def needed_from(self, operator: int) -> tuple[int, ...]:
        """The values that this operator, later ones or the caller of the signature need of what is there before it."""
        values = (t for t in range(len(self._graph.tensors)) if not self._is_constant(t))
        return tuple(t for t in values if self.is_made_before(t, operator) and self._last_use.get(t, -1) >= operator)

    def bytes_at(self, operator: int) -> int:
        """The bytes of the values that `needed_from` lists, at most."""
        return self._bytes[operator]

    def segment(self, start: int, stop: int) -> Segment:
        """The operators [start, stop), of which there must be some, with what `needed_from(stop)` lists as outputs."""
        operators = self._graph.operators[start:stop]
        used = dict.fromkeys(t for op in operators for t in (*op.inputs, *op.outputs))
        values = [t for t in used if not self._is_constant(t)]
        inputs = tuple(t for t in values if self.is_made_before(t, start))
        outputs = tuple(t for t in self.needed_from(stop) if self._made_at.get(t, -1) >= start)
        return Segment(self._laid_out(operators, list(used), inputs, outputs), inputs, outputs)

    def _laid_out(
        self, operators: Sequence[OperatorRecord], used: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
    ) -> TfliteLayout:
        tensors, index = [], {old: new for new, old in enumerate(used)}
        buffers, placements = [BufferRecord()], []
        places: dict[int, int] = {}
        for old in used:
            tensor = self._graph.tensors[old]
            if self._is_constant(old) and tensor.buffer not in places:
                places[tensor.buffer] = len(buffers)
                buffers.append(self._buffers[tensor.buffer])
                placement = self._placement(old)
                if placement is not None:
                    placements.append((places[tensor.buffer], placement))
            tensors.append(replace(tensor, buffer=places.get(tensor.buffer, 0)))
        graph = SubgraphRecord(
            SEGMENT,
            tuple(tensors),
            tuple(_renumbered(op, index) for op in operators),
            {value_name(t): index[t] for t in inputs},
            {value_name(t): index[t] for t in outputs},
        )
        header = bytearray(pack(ModelRecord((graph,), tuple(buffers), (SEGMENT,))))
        end, placed = len(header), {}
        for place, placement in placements:
            offset = align_up(end, MATRIX_ALIGNMENT)
            end = offset + buffers[place].size_bytes
            placed[place] = replace(placement, payload_offset=offset)
        set_buffer_offsets(header, {place: placement.payload_offset for place, placement in placed.items()})
        return TfliteLayout(bytes(header), tuple(placed.values()), {}, end)

    def _find_products(self) -> Mapping[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for index, op in enumerate(self._graph.operators):
            if op.builtin == "FULLY_CONNECTED" and (placement := self._placement(op.inputs[1])) is not None:
                found.setdefault(placement.weight.name, (index, op.inputs[0]))
        return found

    def _count_bytes(self) -> Sequence[int]:
        """`bytes_at` for each operator and the end; no value's element is wider than 4 bytes."""
        changes = [0] * (self.operators + 2)
        for tensor, record in enumerate(self._graph.tensors):
            first, last = self._made_at.get(tensor, -1) + 1, self._last_use.get(tensor, -1)
            if not self._is_constant(tensor) and first <= last:
                size = _MOST_ELEMENT_BYTES * math.prod(record.shape)
                changes[first] += size
                changes[last + 1] -= size
        return list(itertools.accumulate(changes))[:-1]

    def _is_constant(self, tensor: int) -> bool:
        return self._graph.tensors[tensor].buffer > 0

    def _placement(self, tensor: int) -> Placement | None:
        return self._placements.get(self._buffers[self._graph.tensors[tensor].buffer].offset_bytes)


def _renumbered(op: OperatorRecord, index: Mapping[int, int]) -> OperatorRecord:
    inputs, outputs = (tuple(index[t] for t in tensors) for tensors in (op.inputs, op.outputs))
    return replace(op, inputs=inputs, outputs=outputs)
