"""Typed graphs: a value has its shape and element type as soon as it is made, so a mistake raises where it is made."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.base.elements import element_names, element_of
from toolkit.base.weights import Weight, WeightPart

__all__ = [
    "DType",
    "Graph",
    "Node",
    "OptionValue",
    "Options",
    "Signature",
    "TensorType",
    "Value",
    "Weight",
    "WeightPart",
]


class DType(enum.Enum):
    """Element types that our graphs compute with; the value is the name in LiteRT's schema."""

    FLOAT32 = "FLOAT32"
    FLOAT16 = "FLOAT16"
    INT32 = "INT32"
    INT8 = "INT8"
    BOOL = "BOOL"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy type of the same layout.

        >>> DType.FLOAT32.numpy.itemsize
        4
        """
        return np.dtype(_NUMPY[self.value])


_NUMPY = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT8": np.int8, "BOOL": np.bool_}


def bits_by_type() -> dict[str, int]:
    """Bits of one element, for all types that graphs compute with or weights have, by name in LiteRT's schema."""
    computed = {dtype.value: 8 * dtype.numpy.itemsize for dtype in DType}
    return computed | {element.tensor_type: element.bits for element in map(element_of, element_names())}


@dataclass(frozen=True, slots=True)
class TensorType:
    """The shape of a value, all of whose dimensions are known, and its element type.

    `scale`: for a value rounded to int8, the number that code 1 stands for.
    """

    shape: tuple[int, ...]
    dtype: DType = DType.FLOAT32
    scale: float | None = None

    def __post_init__(self) -> None:
        if any(d <= 0 for d in self.shape):
            raise ValueError(f"every dimension must be positive, found {self.shape}")

    def __str__(self) -> str:
        return f"{self.dtype.value.lower()}{list(self.shape)}"


OptionValue = int | float | bool | str | bytes | tuple[int | float | bool, ...]
"""The value of an option: a number, a text, bytes, or a list of numbers."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an operator: the name of their table in LiteRT's schema, and the table's fields by name."""

    table: str
    fields: tuple[tuple[str, OptionValue | DType], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of one graph: an input, a constant, a weight, a blob, or the result of a node.

    `index`: its index in `Graph.values`. If its bytes are stored in the file, one of `constant`, `weight` and `blob`
    says where they come from.
    """

    type: TensorType
    graph: Graph = field(repr=False)
    index: int
    constant: NDArray[np.generic] | None = field(default=None, repr=False)
    weight: Weight | None = None
    blob: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's dimensions."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The value's element type."""
        return self.type.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One builtin operator of LiteRT, applied to values."""

    builtin: str
    version: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    options: Options | None


class Graph:
    """A graph under construction: ops append nodes in execution order."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._weights: dict[Weight, Value] = {}

    def input(
        self, name: str, shape: Sequence[int], dtype: DType = DType.FLOAT32, *, scale: float | None = None
    ) -> Value:
        """Declare an input, which callers pass under this name. ValueError for a name used before."""
        if name in self.inputs:
            raise ValueError(f"graph input {name!r} is declared twice")
        value = self._append(Value(TensorType(tuple(shape), dtype, scale), self, len(self.values)))
        self.inputs[name] = value
        return value

    def output(self, name: str, value: Value) -> None:
        """Declare an output; ValueError for a name used before, or a value of another graph."""
        if name in self.outputs or value.graph is not self:
            raise ValueError(f"graph output {name!r} is declared twice, or its value belongs to another graph")
        self.outputs[name] = value

    def constant(self, array: NDArray[np.generic]) -> Value:
        """A small array in the file's header, where equal arrays are stored once; ValueError if no `DType` fits it."""
        dtype = next((d for d in DType if d.numpy == array.dtype), None)
        if dtype is None:
            raise ValueError(f"constants of {array.dtype} are not part of the op set")
        key = (dtype.value, array.shape, array.tobytes())
        if key not in self._constants:
            type_ = TensorType(array.shape, dtype)
            self._constants[key] = self._append(Value(type_, self, len(self.values), constant=array.copy()))
        return self._constants[key]

    def scalar(self, number: float) -> Value:
        """A float32 constant of shape [1]."""
        return self.constant(np.array([number], np.float32))

    def ints(self, numbers: Sequence[int]) -> Value:
        """An int32 constant of shape [len(numbers)]."""
        return self.constant(np.array(numbers, np.int32))

    def weight(self, weight: Weight) -> Value:
        """A weight, whose bytes follow the header; for the graph it is float32, however it is stored."""
        if weight not in self._weights:
            type_ = TensorType(weight.shape)
            self._weights[weight] = self._append(Value(type_, self, len(self.values), weight=weight))
        return self._weights[weight]

    def blob(self, name: str, shape: Sequence[int], dtype: DType) -> Value:
        """Bytes after the header that the caller writes itself, at the place in `TfliteLayout.blobs`."""
        return self._append(Value(TensorType(tuple(shape), dtype), self, len(self.values), blob=name))

    def live_nodes(self) -> tuple[Node, ...]:
        """The nodes that some output depends on, in the order in which they run; the other nodes are not written."""
        needed = {id(value) for value in self.outputs.values()}
        live: list[Node] = []
        for node in reversed(self.nodes):
            if any(id(output) in needed for output in node.outputs):
                needed.update(id(value) for value in node.inputs)
                live.append(node)
        return tuple(reversed(live))

    def node(
        self,
        builtin: str,
        inputs: Sequence[Value],
        outputs: Sequence[TensorType],
        options: Options | None = None,
        *,
        version: int = 1,
    ) -> tuple[Value, ...]:
        """Append a node and return its outputs. Only the functions of `ops` call this; they have checked the types."""
        if any(value.graph is not self for value in inputs):
            raise ValueError(f"{builtin} mixes values of two graphs")
        made = tuple(self._append(Value(type_, self, len(self.values))) for type_ in outputs)
        self.nodes.append(Node(builtin, version, tuple(inputs), made, options))
        return made

    def _append(self, value: Value) -> Value:
        self.values.append(value)
        return value


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph with the name under which a runtime calls it."""

    name: str
    graph: Graph
