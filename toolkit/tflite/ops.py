"""The operators that our graphs use: one function for each builtin of LiteRT; those for images are in `image_ops`.

Each function infers the type of its result from the types of its inputs, and raises ValueError if they do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toolkit.tflite.graph import DType, Options, TensorType, Value
from toolkit.tflite.op_checks import apply, require, require_floats


def add(a: Value, b: Value) -> Value:
    """a + b with NumPy broadcasting."""
    return _binary("ADD", a, b, Options("AddOptions"))


def sub(a: Value, b: Value) -> Value:
    """a - b with NumPy broadcasting."""
    return _binary("SUB", a, b, Options("SubOptions"))


def mul(a: Value, b: Value) -> Value:
    """a * b with NumPy broadcasting."""
    return _binary("MUL", a, b, Options("MulOptions"))


def div(a: Value, b: Value) -> Value:
    """a / b with NumPy broadcasting."""
    return _binary("DIV", a, b, Options("DivOptions"))


def maximum(a: Value, b: Value) -> Value:
    """Elementwise maximum with NumPy broadcasting."""
    return _binary("MAXIMUM", a, b, Options("MaximumMinimumOptions"))


def minimum(a: Value, b: Value) -> Value:
    """Elementwise minimum with NumPy broadcasting."""
    return _binary("MINIMUM", a, b, Options("MaximumMinimumOptions"))


def floor_mod(a: Value, b: Value) -> Value:
    """a - floor(a / b) * b, with NumPy broadcasting: the remainder that has the sign of b."""
    return _binary("FLOOR_MOD", a, b, Options("FloorModOptions"))


def floor_div(a: Value, b: Value) -> Value:
    """floor(a / b) with NumPy broadcasting."""
    return _binary("FLOOR_DIV", a, b, Options("FloorDivOptions"))


def greater(a: Value, b: Value) -> Value:
    """a > b, bool, with NumPy broadcasting."""
    return _binary("GREATER", a, b, Options("GreaterOptions"), result=DType.BOOL)


def less(a: Value, b: Value) -> Value:
    """a < b, bool, with NumPy broadcasting."""
    return _binary("LESS", a, b, Options("LessOptions"), result=DType.BOOL)


def greater_equal(a: Value, b: Value) -> Value:
    """a >= b, bool, with NumPy broadcasting."""
    return _binary("GREATER_EQUAL", a, b, Options("GreaterEqualOptions"), result=DType.BOOL)


def logical_and(a: Value, b: Value) -> Value:
    """a and b, bool, with NumPy broadcasting."""
    require(a.dtype is DType.BOOL and b.dtype is DType.BOOL, "LOGICAL_AND wants bools", a, b)
    result = TensorType(_broadcast("LOGICAL_AND", a, b), DType.BOOL)
    return apply("LOGICAL_AND", [a, b], result, Options("LogicalAndOptions"))


def select(condition: Value, then: Value, otherwise: Value) -> Value:
    """`then` where the condition holds, `otherwise` elsewhere; all broadcast together."""
    require(condition.dtype is DType.BOOL, "SELECT_V2 wants a bool condition", condition)
    require(then.dtype is otherwise.dtype, "SELECT_V2 wants branches of one type", then, otherwise)
    shape = _broadcast("SELECT_V2", condition, then, otherwise)
    return apply("SELECT_V2", [condition, then, otherwise], TensorType(shape, then.dtype), Options("SelectV2Options"))


def abs_(x: Value) -> Value:
    """|x|."""
    return _unary("ABS", x, Options("AbsOptions"))


def floor(x: Value) -> Value:
    """The largest integer that is not above x."""
    return _unary("FLOOR", x)


def sqrt(x: Value) -> Value:
    """Square root."""
    return _unary("SQRT", x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x)."""
    return _unary("RSQRT", x)


def sin(x: Value) -> Value:
    """Sine, radians."""
    return _unary("SIN", x)


def cos(x: Value) -> Value:
    """Cosine, radians."""
    return _unary("COS", x, Options("CosOptions"))


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    return _unary("TANH", x)


def relu(x: Value) -> Value:
    """max(x, 0)."""
    return _unary("RELU", x)


def logistic(x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    return _unary("LOGISTIC", x)


def gelu_tanh(x: Value) -> Value:
    """The Gaussian error linear unit in its tanh approximation: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    return _unary("GELU", x, Options("GeluOptions", (("approximate", True),)))


def softmax(x: Value) -> Value:
    """Softmax over the last axis."""
    return _unary("SOFTMAX", x, Options("SoftmaxOptions", (("beta", 1.0),)))


def cast(x: Value, dtype: DType) -> Value:
    """Convert the element type."""
    options = Options("CastOptions", (("inDataType", x.dtype), ("outDataType", dtype)))
    return apply("CAST", [x], TensorType(x.shape, dtype), options)


def bitcast(x: Value, dtype: DType) -> Value:
    """The same bytes as a wider type; the elements of the last axis form one element of it, and the axis disappears."""
    size = dtype.numpy.itemsize
    require(x.shape[-1] * x.dtype.numpy.itemsize == size, f"BITCAST to {dtype.value} wants {size} bytes an element", x)
    return apply("BITCAST", [x], TensorType(x.shape[:-1], dtype), Options("BitcastOptions"))


def mean(x: Value) -> Value:
    """Mean over the last axis, which stays with size 1."""
    return _reduce_last("MEAN", x)


def sum_(x: Value) -> Value:
    """Sum over the last axis, which stays with size 1."""
    return _reduce_last("SUM", x)


def reduce_max(x: Value) -> Value:
    """Maximum over the last axis, which stays with size 1."""
    return _reduce_last("REDUCE_MAX", x)


def sum_rows(x: Value) -> Value:
    """Sum over the second-to-last axis, which stays with size 1."""
    require_floats("SUM", x)
    axis = len(x.shape) - 2
    result = TensorType((*x.shape[:axis], 1, x.shape[-1]))
    return apply("SUM", [x, x.graph.ints([axis])], result, Options("ReducerOptions", (("keepDims", True),)))


def cumsum(x: Value, axis: int) -> Value:
    """Running sum along one axis. XNNPACK has no kernel for it, so LiteRT's own, slower kernel runs."""
    require_floats("CUMSUM", x)
    require(0 <= axis < len(x.shape), f"CUMSUM wants a value with an axis {axis}", x)
    return apply("CUMSUM", [x, x.graph.ints([axis])], x.type, Options("CumsumOptions"))


def reshape(x: Value, shape: Sequence[int]) -> Value:
    """The same elements in row-major order with another shape; x itself if it has this shape."""
    wanted = tuple(shape)
    require(math.prod(wanted) == math.prod(x.shape), f"RESHAPE to {wanted} wants as many elements", x)
    if wanted == x.shape:
        return x
    return apply("RESHAPE", [x, x.graph.ints(wanted)], TensorType(wanted, x.dtype), Options("ReshapeOptions"))


def transpose(x: Value, axes: Sequence[int]) -> Value:
    """Permute the axes as numpy.transpose does."""
    require(sorted(axes) == list(range(len(x.shape))), f"TRANSPOSE axes {tuple(axes)} are not a permutation", x)
    result = TensorType(tuple(x.shape[a] for a in axes), x.dtype)
    return apply("TRANSPOSE", [x, x.graph.ints(axes)], result, Options("TransposeOptions"))


def slice_(x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
    """The part of x that begins at `begin` and has the shape `size`; x itself if this is all of x."""
    require(len(begin) == len(size) == len(x.shape), "SLICE wants a begin and a size for each axis", x)
    fits = all(b >= 0 and s > 0 and b + s <= d for b, s, d in zip(begin, size, x.shape, strict=True))
    require(fits, f"SLICE begin {tuple(begin)} size {tuple(size)} leaves the value", x)
    if tuple(size) == x.shape:
        return x
    result = TensorType(tuple(size), x.dtype)
    return apply("SLICE", [x, x.graph.ints(begin), x.graph.ints(size)], result, Options("SliceOptions"))


def take(x: Value, axis: int, start: int, stop: int) -> Value:
    """x[start:stop] along one axis."""
    begin = [0] * len(x.shape)
    size = list(x.shape)
    begin[axis], size[axis] = start, stop - start
    return slice_(x, begin, size)


def pad(x: Value, widths: Sequence[tuple[int, int]]) -> Value:
    """x with `widths` zeros before and after it on each axis, as in numpy.pad; x itself if there are none."""
    require(len(widths) == len(x.shape), "PAD wants a pair of counts for each axis", x)
    require(all(n >= 0 for pair in widths for n in pair), f"PAD wants counts of zeros, not {list(widths)}", x)
    if not any(n for pair in widths for n in pair):
        return x
    result = TensorType(tuple(a + d + b for d, (a, b) in zip(x.shape, widths, strict=True)), x.dtype)
    return apply("PAD", [x, x.graph.constant(np.array(widths, np.int32))], result, Options("PadOptions"))


def concatenation(values: Sequence[Value], axis: int) -> Value:
    """Two to five values joined along one axis; XNNPACK accepts no more than five."""
    first = values[0]
    require(1 < len(values) <= 5, f"CONCATENATION wants 2 to 5 values, found {len(values)}", first)
    same = all(
        v.dtype is first.dtype and v.shape[:axis] + v.shape[axis + 1 :] == first.shape[:axis] + first.shape[axis + 1 :]
        for v in values
    )
    require(same, f"CONCATENATION on axis {axis} wants values alike elsewhere", *values)
    shape = (*first.shape[:axis], sum(v.shape[axis] for v in values), *first.shape[axis + 1 :])
    return apply(
        "CONCATENATION", values, TensorType(shape, first.dtype), Options("ConcatenationOptions", (("axis", axis),))
    )


def fully_connected(x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x @ weight.T + bias on the last axis; x: f32[..., in], weight: [out, in], bias: f32[out]."""
    require_floats("FULLY_CONNECTED", x, weight, *([] if bias is None else [bias]))
    require(
        len(weight.shape) == 2 and x.shape[-1] == weight.shape[1], "FULLY_CONNECTED wants weights [out, in]", x, weight
    )
    require(bias is None or bias.shape == (weight.shape[0],), "FULLY_CONNECTED wants one bias an output", weight)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    result = TensorType((*x.shape[:-1], weight.shape[0]))
    # XNNPACK always quantises activations asymmetrically; with this option LiteRT's own kernel does the same.
    options = Options("FullyConnectedOptions", (("keepNumDims", True), ("asymmetricQuantizeInputs", True)))
    return apply("FULLY_CONNECTED", inputs, result, options)


def batch_matmul(a: Value, b: Value, *, transpose_b: bool = False) -> Value:
    """a @ b over the last two axes; the leading axes broadcast; a, b: f32."""
    require_floats("BATCH_MATMUL", a, b)
    inner, outer = (-1, -2) if transpose_b else (-2, -1)
    require(
        len(a.shape) >= 2 <= len(b.shape) and a.shape[-1] == b.shape[inner], "BATCH_MATMUL wants equal inner axes", a, b
    )
    lead = _broadcast_shapes("BATCH_MATMUL", a.shape[:-2], b.shape[:-2])
    result = TensorType((*lead, a.shape[-2], b.shape[outer]))
    return apply("BATCH_MATMUL", [a, b], result, Options("BatchMatMulOptions", (("adjY", transpose_b),)))


def embedding_lookup(ids: Value, table: Value) -> Value:
    """table[ids], integers dequantised to float32; ids: int32[n], table: [vocabulary, ...]."""
    require(ids.dtype is DType.INT32 and len(ids.shape) == 1, "EMBEDDING_LOOKUP wants int32[n] ids", ids, table)
    return apply("EMBEDDING_LOOKUP", [ids, table], TensorType((*ids.shape, *table.shape[1:]), table.dtype))


def gather(x: Value, indices: Value, axis: int) -> Value:
    """x taken at `indices` (int32[n]) along one axis, as numpy.take does; integers are not dequantised."""
    require(indices.dtype is DType.INT32 and len(indices.shape) == 1, "GATHER wants int32[n] indices", x, indices)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    options = Options("GatherOptions", (("axis", axis),))
    return apply("GATHER", [x, indices], TensorType(shape, x.dtype), options)


def dynamic_update_slice(x: Value, update: Value, start: Value) -> Value:
    """x with `update` written at `start` (int32[rank]); runtimes may write in place, so use only the result."""
    require(
        start.dtype is DType.INT32 and start.shape == (len(x.shape),),
        "DYNAMIC_UPDATE_SLICE wants int32[rank]",
        x,
        start,
    )
    fits = len(update.shape) == len(x.shape) and all(u <= d for u, d in zip(update.shape, x.shape, strict=True))
    require(fits and update.dtype is x.dtype, "DYNAMIC_UPDATE_SLICE wants an update that fits", x, update)
    return apply("DYNAMIC_UPDATE_SLICE", [x, update, start], x.type, Options("DynamicUpdateSliceOptions"))


def _unary(builtin: str, x: Value, options: Options | None = None) -> Value:
    require_floats(builtin, x)
    return apply(builtin, [x], x.type, options)


def _binary(builtin: str, a: Value, b: Value, options: Options, *, result: DType | None = None) -> Value:
    require(a.dtype is b.dtype and a.dtype is not DType.BOOL, f"{builtin} wants numbers of one type", a, b)
    return apply(builtin, [a, b], TensorType(_broadcast(builtin, a, b), result or a.dtype), options)


def _reduce_last(builtin: str, x: Value) -> Value:
    require_floats(builtin, x)
    axis = x.graph.ints([len(x.shape) - 1])
    return apply(builtin, [x, axis], TensorType((*x.shape[:-1], 1)), Options("ReducerOptions", (("keepDims", True),)))


def _broadcast(builtin: str, *values: Value) -> tuple[int, ...]:
    return _broadcast_shapes(builtin, *(v.shape for v in values))


def _broadcast_shapes(builtin: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    for dims in zip(*padded, strict=True):
        if len({d for d in dims if d != 1}) > 1:
            raise ValueError(f"{builtin} cannot broadcast {' with '.join(str(s) for s in shapes)}")
    return tuple(max(dims) for dims in zip(*padded, strict=True))
