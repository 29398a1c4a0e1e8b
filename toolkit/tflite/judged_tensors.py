"""The tensors and buffers of a .tflite file, read together and judged: shapes, types, bytes and quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.elements import element_names, element_of
from toolkit.base.errors import GraphError, errors_about
from toolkit.base.layout import MATRIX_ALIGNMENT
from toolkit.tflite import schema
from toolkit.tflite.graph import bits_by_type
from toolkit.tflite.replay import Operand
from toolkit.tflite.tables import I64, Flatbuffer, Tables

_MAX_RANK = 6
_MAX_ELEMENTS = 2.0**39


@dataclass(frozen=True, slots=True)
class JudgedTensor:
    """An input or output of a signature: the name of its element type, and its shape."""

    type: str
    shape: tuple[int, ...]


class Buffers:
    """The buffers: each has bytes in the header (data), or after it (an offset in the file), or none."""

    def __init__(self, flat: Flatbuffer) -> None:
        self.root = flat.root(fields=8)
        tables = self.root.children(4, fields=3)
        self.starts, self.counts = flat.vectors(tables.targets(0), 1)
        self.offsets, self.sizes = tables.scalars(1, "<u8"), tables.scalars(2, "<u8")

    def check(self, file_bytes: int) -> None:
        """Raise GraphError for bytes past the end of the file, misaligned bytes, or bytes in two places."""
        behind = self.offsets > 0
        ends = self.offsets[behind] + self.sizes[behind]
        if np.any(self.sizes < 0) or np.any(self.offsets < 0) or np.any(ends > file_bytes) or np.any(ends < 0):
            raise GraphError("buffers", found="weights past the end of the file")
        if np.any(self.offsets[behind] % MATRIX_ALIGNMENT) or np.any(self.sizes[~behind]):
            raise GraphError("buffers", found="misaligned weights", wanted=f"multiples of {MATRIX_ALIGNMENT}")
        if np.any(behind & (self.counts > 0)) or not self.offsets.size or behind[0] or self.counts[0]:
            raise GraphError("buffers", found="a buffer with bytes in two places, or bytes in the empty buffer")


class TensorTable:
    """The tensors of all graphs, one graph after the other; `first`: the index of the first tensor of each graph."""

    def __init__(self, flat: Flatbuffer, graphs: Tables, buffers: Buffers) -> None:
        self._flat, self._buffers = flat, buffers
        _, self.counts = flat.vectors(graphs.targets(0), 4)
        self.first = np.cumsum(self.counts) - self.counts
        tables = graphs.children(0, fields=11)
        tables.require_absent("tensor", 6, 7, 9)
        for field, kind in ((5, "u1"), (10, "<u4")):
            if np.any(tables.scalars(field, "u1" if kind == "u1" else "<u4")):
                raise GraphError("tensor", found="a variable, or bytes in another file")
        self._shapes, self._ranks = flat.padded(tables.targets(0), _MAX_RANK, "tensor shape")
        self._types = tables.scalars(1, "i1")
        self._names = tables.targets(3)
        flat.check_texts(self._names)
        tables.scalars(8, "u1")  # `has_rank`: only its place is checked, either value is allowed
        self.buffer = tables.scalars(2, "<u4")
        if np.any(self.buffer >= len(buffers.offsets)):
            raise GraphError("tensor", found="a buffer that does not exist")
        self._in_header = buffers.counts[self.buffer] > 0
        self._behind = buffers.offsets[self.buffer] > 0
        self.stored = self._in_header | self._behind
        self.graph = np.repeat(np.arange(len(self.counts)), self.counts)
        self._quantized = tables.targets(4)
        self._type_names = schema.tensor_type_names()

    def check(self) -> None:
        """Raise GraphError unless types, shapes and bytes agree, and weights are quantised as ours are."""
        inside = self._shapes != -1
        if np.any((self._shapes <= 0) & inside) or np.any(inside.sum(1) != self._ranks):
            raise GraphError("tensor", found="a dimension that is not positive")
        self.elements = np.prod(np.where(inside, self._shapes, 1).astype(np.float64), axis=1)
        bits = np.zeros(256)
        for number, name in self._type_names.items():
            bits[number] = bits_by_type().get(name, 0)
        self._bits = bits[self._types & 255]
        if np.any(self._bits == 0) or np.any(self.elements > _MAX_ELEMENTS):
            raise GraphError("tensor", found="an element type or a size in bytes that our graphs never have")
        self.bytes = np.ceil(self.elements * self._bits / 8)
        there = np.where(self._in_header, self._buffers.counts[self.buffer], self._buffers.sizes[self.buffer])
        if np.any(self.stored & (there != self.bytes)):
            place = int(np.argmax(self.stored & (there != self.bytes)))
            raise GraphError(self._name(place), found=f"{there[place]} bytes", wanted=f"{self.bytes[place]:.0f}")
        self._check_quantization()

    def kinds(self, widened: NDArray[np.bool_]) -> I64:
        """A number for each tensor; it is equal for tensors that an operator cannot tell apart.

        `widened`: for each tensor, whether it is a stored float16 weight that an operator has widened to float32.
        """
        int_constant = self._in_header & (self._types == schema.tensor_type_number("INT32"))
        constant = np.where(int_constant, self.buffer + 1, 0)
        quantized = self._quantized > 0
        rows = np.column_stack([self._types, self._shapes, self.stored, quantized, self._behind, widened, constant])
        _, kinds = np.unique(as_keys(rows), return_inverse=True)
        return np.asarray(kinds, np.int64).ravel()

    def operand(self, place: int, *, widened: bool = False) -> Operand:
        """What an operator's constructor must know about a tensor; `widened`: as for `kinds`."""
        name = self._type_names[int(self._types[place])]
        shape = tuple(self._shapes[place][: self._ranks[place]].tolist())
        constant = None
        if name == "INT32" and self._in_header[place]:
            buffer = self.buffer[place]
            data = self._flat.bytes_at(int(self._buffers.starts[buffer]), int(self._buffers.counts[buffer]))
            constant = np.frombuffer(data, np.int32).reshape(shape)
        return Operand(name, shape, bool(self.stored[place]), bool(self._quantized[place]), widened, constant)

    def image_sizes(self, places: I64) -> NDArray[np.float64]:
        """Height times width of each tensor [n, height, width, channels]; axes that a tensor lacks count 1."""
        sides = np.maximum(self._shapes[places, 1:3], 1).astype(np.float64)
        return sides[:, 0] * sides[:, 1]

    def judged(self, graph: int, number: int) -> JudgedTensor:
        """A tensor of a graph, by its index there, as an input or output of a signature."""
        place = int(self.first[graph]) + number
        self._flat.text(int(self._names[place]))
        operand = self.operand(place)
        return JudgedTensor(operand.type, operand.shape)

    def _check_quantization(self) -> None:
        """Check scales: weights have a positive one per row, or float16 block scales; a computed int8 value has one."""
        quantized = np.flatnonzero(self._quantized)
        computed = ~self.stored[quantized] & (self._types[quantized] == schema.tensor_type_number("INT8"))
        if np.any(~self._behind[quantized] & ~computed):
            raise GraphError("tensor", found="scales of a value that is not a weight")
        if np.any((self._bits < 8) & (self._quantized == 0)):
            raise GraphError("tensor", found="integers without scales")
        places, firsts = np.unique(self._quantized[quantized], return_index=True)
        tables = Tables(self._flat, places, fields=7)
        tables.require_absent("quantization", 0, 1)
        kinds, axes = tables.scalars(4, "u1"), tables.scalars(6, "<i4")
        scales, counts = self._flat.vectors(tables.targets(2), 4)
        zeros, zero_counts = self._flat.vectors(tables.targets(3), 8)
        details = tables.targets(5)
        rows = np.zeros(len(places), np.int64)
        for n, first in enumerate(firsts.tolist()):
            tensor = int(quantized[first])
            with errors_about(self._name(tensor)):
                if kinds[n] == 0:
                    if axes[n] or details[n]:
                        raise GraphError(found=f"scales along axis {axes[n]}", wanted="along axis 0")
                    self._check_scales(int(scales[n]), int(counts[n]), int(zeros[n]), int(zero_counts[n]))
                    rows[n] = counts[n]
                elif kinds[n] != schema.BLOCKWISE or counts[n] or zero_counts[n]:
                    raise GraphError(found="another kind of quantisation", wanted="scales of rows or of blocks")
        index = np.searchsorted(places, self._quantized[quantized])
        per_row = kinds[index] == 0
        wanted = np.where(computed, 1, self._shapes[quantized, 0])
        if np.any(per_row & (rows[index] != wanted)) or np.any(~computed & (self._ranks[quantized] < 2)):
            raise GraphError("quantization", found="scales of another number of rows")
        if np.any(computed & ~per_row):
            raise GraphError("quantization", found="block scales of a value that is not a weight")
        self._check_blocks(quantized[~per_row], details[index][~per_row])
        self._check_integers(quantized, per_row)

    def _check_integers(self, quantized: I64, per_row: NDArray[np.bool_]) -> None:
        elements = _quantized_types()
        for name in {self._type_names[int(number)] for number in np.unique(self._types[quantized])}:
            if name not in elements:
                raise GraphError("quantization", found=f"scales of {name}", wanted=" or ".join(elements))
        blocks = {self._type_names[int(number)] for number in np.unique(self._types[quantized[~per_row]])}
        if any(not elements[name] for name in blocks):
            raise GraphError("quantization", found=f"blocks of {', '.join(blocks)}")

    def _check_scales(self, start: int, count: int, zeros: int, zero_count: int) -> None:
        values = self._flat.numbers(start, count, "<f4")
        if not np.all(np.isfinite(values)) or not np.all(values > 0):  # type: ignore[operator]
            raise GraphError(found="a scale that is not finite and positive")
        if zero_count not in (0, count) or np.any(self._flat.numbers(zeros, zero_count, "<i8")):
            raise GraphError(found="zero points", wanted="symmetric weights")

    def _check_blocks(self, tensors: I64, details: I64) -> None:
        """Check that block scales are a float16 weight of the same graph, with one scale for each block."""
        tables = Tables(self._flat, details, fields=3)
        scales, zero_points, sizes = (tables.scalars(field, "<i4") for field in range(3))
        graph = self.graph[tensors]
        if np.any(scales < 0) or np.any(scales >= self.counts[graph]) or np.any(zero_points != -1):
            raise GraphError("quantization", found="block scales that do not exist")
        found = scales + self.first[graph]
        rows, columns = self._shapes[tensors, 0], self._shapes[tensors, 1]
        if len(tensors) and (
            np.any(sizes < 8)
            or np.any(columns % np.maximum(sizes, 1))
            or np.any(self._ranks[tensors] != 2)
            or np.any(self._ranks[found] != 2)
            or np.any(self._shapes[found, 0] != rows)
            or np.any(self._shapes[found, 1] * sizes != columns)
            or np.any(self._types[found] != schema.tensor_type_number("FLOAT16"))
            or not np.all(self._behind[found])
        ):
            raise GraphError("quantization", found="block scales of another number than blocks")

    def _name(self, place: int) -> str:
        try:
            return f"tensor {self._flat.text(int(self._names[place]))}"
        except GraphError:
            return f"tensor {place}"


def _quantized_types() -> dict[str, bool]:
    """The types of quantised weights, and whether they may have block scales."""
    elements = map(element_of, element_names())
    return {element.tensor_type: element.block_scales for element in elements if element.quantised}


def as_keys(rows: NDArray[Any]) -> NDArray[Any]:
    """Each row of numbers as one opaque value that can be compared and sorted."""
    packed = np.ascontiguousarray(rows.astype(np.int64))
    return packed.view(np.dtype((np.void, packed.shape[1] * 8))).ravel()
