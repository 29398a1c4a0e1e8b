"""Makes an operator of a file again with its constructor in `ops`, and compares: the file must have the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import GraphError
from toolkit.tflite import image_ops, ops, schema, static_int8
from toolkit.tflite.graph import DType, Graph, Node, OptionValue, Value
from toolkit.tflite.image_ops import Padding


@dataclass(frozen=True, slots=True)
class Operand:
    """An input or the result of an operator: its type in the file, its shape, and where its bytes come from.

    `widened`: it is a stored float16 weight, widened to float32 by a DEQUANTIZE. `constant`: the numbers of an INT32
    tensor that is stored in the header, such as axes; None for all other tensors.
    """

    type: str
    shape: tuple[int, ...]
    stored: bool = False
    quantized: bool = False
    widened: bool = False
    constant: NDArray[np.int32] | None = None

    @property
    def is_rounded(self) -> bool:
        """Whether this is a computed int8 value, with a scale of its own."""
        return self.quantized and not self.stored

    def __str__(self) -> str:
        return f"{self.type}{list(self.shape)}"


Fields = Mapping[str, OptionValue]
OptionTable = tuple[str | None, Fields]
"""The name of a table of options (None: no table), and its fields, including defaults."""


class Operation:
    """An operator of a file: its inputs as values of a new graph, and its options."""

    def __init__(self, inputs: Sequence[Operand], fields: Fields, result: Operand) -> None:
        self.operands, self.fields, self.result = inputs, fields, result
        graph = Graph()
        self.values = [
            graph.input(str(n), item.shape, _computed_type(item), scale=1.0 if item.is_rounded else None)
            for n, item in enumerate(inputs)
        ]
        self.graph = graph

    def value(self, index: int) -> Value:
        """An input; GraphError if there is none."""
        if index >= len(self.values):
            raise GraphError(found=f"{len(self.values)} inputs", wanted=f"at least {index + 1}")
        return self.values[index]

    def ints(self, index: int) -> NDArray[np.int32]:
        """The numbers of an input that must be a constant."""
        self.value(index)
        constant = self.operands[index].constant
        if constant is None:
            raise GraphError(f"input {index}", found="no constant", wanted="integers that are stored in the header")
        return constant

    def row(self, index: int) -> list[int]:
        """The numbers of a constant with one axis."""
        constant = self.ints(index)
        if constant.ndim != 1:
            raise GraphError(f"input {index}", found=f"{constant.ndim} axes", wanted="1")
        return [int(number) for number in constant]

    def number(self, name: str) -> int:
        """An option that is an integer."""
        return int(self.fields[name])  # type: ignore[arg-type]

    def axis(self) -> int:
        """The option `axis`, which must be an axis of the first input."""
        axis = self.number("axis")
        if not 0 <= axis < len(self.value(0).shape):
            raise GraphError("axis", found=axis, wanted=f"0 to {len(self.value(0).shape) - 1}")
        return axis


def replay(builtin: str, version: int, options: OptionTable, inputs: Sequence[Operand], result: Operand) -> None:
    """Raise GraphError unless the operator's constructor makes exactly this operator from these inputs."""
    _check_operands(builtin, inputs, result)
    if builtin == "DEQUANTIZE" and not (inputs and inputs[0].is_rounded):
        _check_dequantize(version, options, inputs, result)
        return
    if builtin not in _CONSTRUCTORS:
        raise GraphError(found=f"the operator {builtin}", wanted="one that our graphs use")
    operation = Operation(inputs, options[1], result)
    try:
        value = _CONSTRUCTORS[builtin](operation)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise GraphError(found=str(error)) from error
    if not operation.graph.nodes:
        raise GraphError(found="an operator that changes nothing")
    _compare(operation, operation.graph.nodes[-1], (builtin, version), options)
    found = (result.type, result.shape)
    if found != (value.dtype.value, value.shape):
        raise GraphError("result", found=str(result), wanted=f"{value.dtype.value}{list(value.shape)}")


def _compare(operation: Operation, node: Node, code: tuple[str, int], options: OptionTable) -> None:
    if (node.builtin, node.version) != code:
        raise GraphError(found=f"{code[0]} version {code[1]}", wanted=f"{node.builtin} version {node.version}")
    if len(node.inputs) != len(operation.values):
        raise GraphError(found=f"{len(operation.values)} inputs", wanted=len(node.inputs))
    for n, (value, given) in enumerate(zip(node.inputs, operation.values, strict=True)):
        constant = operation.operands[n].constant
        if value is given:
            continue
        if value.constant is None or constant is None or not np.array_equal(value.constant, constant):
            raise GraphError(f"input {n}", found="another value", wanted="the one that the constructor makes")
    table = None if node.options is None else node.options.table
    wanted = schema.option_values(node.options)
    if options != (table, wanted):
        raise GraphError("options", found=f"{options[0]} {dict(options[1])}", wanted=f"{table} {dict(wanted)}")


def _computed_type(operand: Operand) -> DType:
    """The element type of an operand in a graph, where weights are float32, however they are stored."""
    return DType.FLOAT32 if operand.quantized and operand.stored else DType(operand.type)


_MATRIX = {
    "FULLY_CONNECTED": {"INT8", "INT4", "INT2"},
    "EMBEDDING_LOOKUP": {"INT8", "INT4", "INT2"},
    "CONV_2D": {"INT8"},
    "DEPTHWISE_CONV_2D": {"INT8"},
}
"""The operators whose second input may be quantised, and the types of its codes."""
_ROUNDED = {"QUANTIZE": {False}, "FULLY_CONNECTED": {False, True}}
"""The operators whose first input (True) or result (False) may be a computed value of int8."""
_VALUES = {"FLOAT32", "INT32", "BOOL"}
"""What operators compute with."""
_DIVISIONS = {"DIV", "FLOOR_DIV", "FLOOR_MOD"}


def _check_operands(builtin: str, inputs: Sequence[Operand], result: Operand) -> None:
    """Check that codes and float16 are only where a kernel takes them, and that no integer is divided by 0 or -1."""
    for n, item in enumerate((*inputs, result)):
        if item.quantized and item.stored and n == 1 < len(inputs) and item.type in _MATRIX.get(builtin, ()):
            continue
        if builtin == "DEQUANTIZE" and n == 0:
            continue
        if item.is_rounded and item.type == "INT8" and n in (0, len(inputs)) and (n == 0) in _ROUNDED.get(builtin, ()):
            continue
        if item.quantized or item.type not in _VALUES:
            raise GraphError(f"input {n}" if n < len(inputs) else "result", found=str(item), wanted=", ".join(_VALUES))
    if builtin in _DIVISIONS and inputs and inputs[0].type == "INT32":
        divisor = inputs[1].constant if len(inputs) > 1 else None
        if divisor is None or not np.all(divisor > 0):
            raise GraphError("input 1", found="a divisor that is not known to be positive")


def _check_dequantize(version: int, options: OptionTable, inputs: Sequence[Operand], result: Operand) -> None:
    """Check a DEQUANTIZE: the writer uses it only to widen a float16 weight, for operators that compute in float32."""
    (item,) = inputs if len(inputs) == 1 else (None,)
    fits = item is not None and item.stored and not item.quantized and item.type == "FLOAT16"
    if item is None or not fits or (result.type, result.shape) != ("FLOAT32", item.shape):
        raise GraphError(found=f"{', '.join(map(str, inputs))} to {result}", wanted="a float16 weight to float32")
    if version != 3 or options != ("DequantizeOptions", {}):
        raise GraphError(found=f"version {version} with {options[0]}", wanted="version 3 with DequantizeOptions")


def _binary(make: Callable[[Value, Value], Value]) -> Callable[[Operation], Value]:
    return lambda op: make(op.value(0), op.value(1))


def _unary(make: Callable[[Value], Value]) -> Callable[[Operation], Value]:
    return lambda op: make(op.value(0))


def _sum(op: Operation) -> Value:
    rank = len(op.value(0).shape)
    return ops.sum_rows(op.value(0)) if op.row(1) == [rank - 2] else ops.sum_(op.value(0))


def _pad(op: Operation) -> Value:
    widths = op.ints(1)
    if widths.ndim != 2 or widths.shape[1] != 2:
        raise GraphError("input 1", found=f"int32{list(widths.shape)}", wanted="two numbers for each axis")
    return ops.pad(op.value(0), [(int(before), int(after)) for before, after in widths])


def _resize(op: Operation) -> Value:
    sizes = op.row(1)
    if len(sizes) != 2 or min(sizes) < 1:
        raise GraphError("input 1", found=sizes, wanted="a height and a width")
    return image_ops.resize_nearest_neighbor(op.value(0), sizes[0], sizes[1])


def _padding(op: Operation) -> Padding:
    names: dict[int, Padding] = {0: "same", 1: "valid"}
    if op.number("padding") not in names:
        raise GraphError("padding", found=op.number("padding"), wanted="0 or 1")
    return names[op.number("padding")]


def _convolution(make: Callable[..., Value]) -> Callable[[Operation], Value]:
    def convolve(op: Operation) -> Value:
        x, weight, bias = (op.value(n) for n in range(3))
        item = op.operands[1]
        # For a computed kernel, LiteRT copies the input once for each of the kernel's positions.
        if not (item.stored or item.widened):
            raise GraphError("input 1", found=f"a computed {item}", wanted="a weight that is stored in the file")
        return make(x, weight, bias, stride=op.number("strideH"), padding=_padding(op))

    return convolve


def _fully_connected(op: Operation) -> Value:
    if op.operands and op.operands[0].is_rounded:
        weight = op.operands[1] if len(op.operands) > 1 else None
        if weight is None or not (weight.stored and weight.quantized):
            raise GraphError("input 1", found=str(weight), wanted="a weight in codes")
        return static_int8.fully_connected(op.value(0), op.value(1), 1.0)
    return ops.fully_connected(op.value(0), op.value(1), op.value(2) if len(op.values) > 2 else None)


_CONSTRUCTORS: Mapping[str, Callable[[Operation], Value]] = {
    "ABS": _unary(ops.abs_),
    "ADD": _binary(ops.add),
    "AVERAGE_POOL_2D": lambda op: image_ops.average_pool_2d(op.value(0), op.number("filterHeight")),
    "BATCH_MATMUL": lambda op: ops.batch_matmul(op.value(0), op.value(1), transpose_b=bool(op.fields["adjY"])),
    "CAST": lambda op: ops.cast(op.value(0), DType(op.result.type)),
    "CONCATENATION": lambda op: ops.concatenation(op.values, op.axis()),
    "CONV_2D": _convolution(image_ops.conv_2d),
    "COS": _unary(ops.cos),
    "CUMSUM": lambda op: ops.cumsum(op.value(0), op.row(1)[0]),
    "DEPTHWISE_CONV_2D": _convolution(image_ops.depthwise_conv_2d),
    "DEQUANTIZE": _unary(static_int8.dequantize),
    "DIV": _binary(ops.div),
    "DYNAMIC_UPDATE_SLICE": lambda op: ops.dynamic_update_slice(op.value(0), op.value(1), op.value(2)),
    "EMBEDDING_LOOKUP": _binary(ops.embedding_lookup),
    "FLOOR": _unary(ops.floor),
    "FLOOR_DIV": _binary(ops.floor_div),
    "FLOOR_MOD": _binary(ops.floor_mod),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": lambda op: ops.gather(op.value(0), op.value(1), op.axis()),
    "GELU": _unary(ops.gelu_tanh),
    "GREATER": _binary(ops.greater),
    "GREATER_EQUAL": _binary(ops.greater_equal),
    "LESS": _binary(ops.less),
    "LOGICAL_AND": _binary(ops.logical_and),
    "LOGISTIC": _unary(ops.logistic),
    "MAXIMUM": _binary(ops.maximum),
    "MEAN": _unary(ops.mean),
    "MINIMUM": _binary(ops.minimum),
    "MUL": _binary(ops.mul),
    "PAD": _pad,
    "QUANTIZE": lambda op: static_int8.quantize(op.value(0), 1.0),
    "REDUCE_MAX": _unary(ops.reduce_max),
    "RELU": _unary(ops.relu),
    "RESHAPE": lambda op: ops.reshape(op.value(0), op.row(1)),
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "RSQRT": _unary(ops.rsqrt),
    "SELECT_V2": lambda op: ops.select(op.value(0), op.value(1), op.value(2)),
    "SIN": _unary(ops.sin),
    "SLICE": lambda op: ops.slice_(op.value(0), op.row(1), op.row(2)),
    "SOFTMAX": _unary(ops.softmax),
    "SQRT": _unary(ops.sqrt),
    "SUB": _binary(ops.sub),
    "SUM": _sum,
    "TANH": _unary(ops.tanh),
    "TRANSPOSE": lambda op: ops.transpose(op.value(0), op.row(1)),
}
"""The constructor of each operator, called as in the file. BITCAST is missing: only graphs of a .litertlm use it."""
