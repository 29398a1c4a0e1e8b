"""What the functions that make operators share: checks of their inputs, and operators with one result."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.tflite.graph import DType, Options, TensorType, Value

# The lowest versions that LiteRT's kernels accept for the types of our graphs (LiteRT `register.cc`); 1 for the others.
_VERSIONS = {
    "BATCH_MATMUL": 4,
    "CONV_2D": 5,
    "DEQUANTIZE": 2,
    "EMBEDDING_LOOKUP": 4,
    "FULLY_CONNECTED": 9,
    "QUANTIZE": 2,
}


def apply(builtin: str, inputs: Sequence[Value], result: TensorType, options: Options | None = None) -> Value:
    """Append an operator with one result of type `result`, and return the result."""
    return inputs[0].graph.node(builtin, inputs, [result], options, version=_VERSIONS.get(builtin, 1))[0]


def require_floats(builtin: str, *values: Value) -> None:
    """Raise ValueError unless all values are float32; some of LiteRT's kernels read any others as if they were."""
    require(all(value.dtype is DType.FLOAT32 for value in values), f"{builtin} wants float32", *values)


def require(holds: bool, what: str, *values: Value) -> None:
    """Raise ValueError with `what` and the types of `values` unless the condition holds."""
    if not holds:
        raise ValueError(f"{what}; found {', '.join(str(v.type) for v in values)}")
