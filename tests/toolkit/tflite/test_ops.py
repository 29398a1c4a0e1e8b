"""Each constructor of the op set, run by LiteRT and compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from bundles import NoWeights
from numpy.typing import NDArray

from toolkit.tflite import image_ops, ops
from toolkit.tflite.graph import DType, Graph, Signature, Value
from toolkit.tflite.writer import layout_tflite, write_tflite

Array = NDArray[Any]


def run(tmp_path: Path, inputs: Sequence[Array], build: Callable[..., Value]) -> Array:
    """Emit a graph of one op, write it, run it on LiteRT's CPU kernels."""
    graph = Graph()
    dtypes = {d.numpy: d for d in DType}
    values = [graph.input(f"x{i}", a.shape, dtypes[a.dtype]) for i, a in enumerate(inputs)]
    graph.output("y", build(*values))
    path = tmp_path / "op.tflite"
    write_tflite(path, layout_tflite([Signature("op", graph)], {}), NoWeights())
    runner = Interpreter(str(path)).get_signature_runner("op")
    result: Array = runner(**{f"x{i}": a for i, a in enumerate(inputs)})["y"]
    return result


def floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


BINARY: Mapping[Callable[[Value, Value], Value], Callable[..., Array]] = {
    ops.add: np.add,
    ops.sub: np.subtract,
    ops.mul: np.multiply,
    ops.maximum: np.maximum,
    ops.minimum: np.minimum,
    ops.less: np.less,
    ops.greater_equal: np.greater_equal,
}


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
def test_binary_op_broadcasts_as_numpy_does(tmp_path: Path, op: Callable[[Value, Value], Value]) -> None:
    a, b = floats(2, 3, 1, 5), floats(1, 4, 5, seed=1)
    np.testing.assert_allclose(run(tmp_path, [a, b], op), BINARY[op](a, b), rtol=1e-6)


def numpy_gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    y: NDArray[np.float32] = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def numpy_softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(x - x.max(-1, keepdims=True))
    y: NDArray[np.float32] = e / e.sum(-1, keepdims=True)
    return y


UNARY: Mapping[Callable[[Value], Value], Callable[..., Array]] = {
    ops.sqrt: np.sqrt,
    ops.rsqrt: lambda x: 1 / np.sqrt(x),
    ops.sin: np.sin,
    ops.cos: np.cos,
    ops.tanh: np.tanh,
    ops.relu: lambda x: np.maximum(x, 0),
    ops.logistic: lambda x: 1 / (1 + np.exp(-x)),
    ops.gelu_tanh: numpy_gelu,
    ops.softmax: numpy_softmax,
    ops.mean: lambda x: x.mean(-1, keepdims=True),
    ops.sum_: lambda x: x.sum(-1, keepdims=True),
}


@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.__name__)
def test_unary_op_computes_what_numpy_does(tmp_path: Path, op: Callable[[Value], Value]) -> None:
    low = 0.1 if op in (ops.sqrt, ops.rsqrt) else -3.0
    x = floats(2, 3, 7, low=low, high=3.0)
    np.testing.assert_allclose(run(tmp_path, [x], op), UNARY[op](x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("op", [ops.sin, ops.cos], ids=lambda op: op.__name__)
def test_rotation_is_exact_at_the_last_position_of_a_32k_context(tmp_path: Path, op: Callable[[Value], Value]) -> None:
    x = floats(1, 512, low=32000.0, high=32768.0)
    np.testing.assert_allclose(run(tmp_path, [x], op), UNARY[op](x.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("transpose_b", [False, True])
def test_batch_matmul_broadcasts_leading_axes(tmp_path: Path, *, transpose_b: bool) -> None:
    a, b = floats(1, 2, 3, 4), floats(1, 2, 5, 4, seed=1)
    if not transpose_b:
        b = np.ascontiguousarray(b.swapaxes(-1, -2))
    want = a @ (b.swapaxes(-1, -2) if transpose_b else b)
    got = run(tmp_path, [a, b], lambda x, y: ops.batch_matmul(x, y, transpose_b=transpose_b))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_shape_ops_move_elements_as_numpy_does(tmp_path: Path) -> None:
    x = floats(2, 3, 4)
    np.testing.assert_array_equal(run(tmp_path, [x], lambda v: ops.transpose(v, (2, 0, 1))), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(run(tmp_path, [x], lambda v: ops.reshape(v, (4, 6))), x.reshape(4, 6))
    np.testing.assert_array_equal(run(tmp_path, [x], lambda v: ops.take(v, 1, 1, 3)), x[:, 1:3])
    joined = run(tmp_path, [x, x], lambda v, w: ops.concatenation([v, w], 1))
    np.testing.assert_array_equal(joined, np.concatenate([x, x], 1))


def test_pad_surrounds_with_zeros(tmp_path: Path) -> None:
    x, widths = floats(2, 3, 4), [(0, 0), (2, 1), (0, 3)]
    np.testing.assert_array_equal(run(tmp_path, [x], lambda v: ops.pad(v, widths)), np.pad(x, widths))


def test_select_takes_either_branch(tmp_path: Path) -> None:
    a, b = floats(4, 5), floats(4, 5, seed=1)
    np.testing.assert_array_equal(
        run(tmp_path, [a, b], lambda x, y: ops.select(ops.less(x, y), x, y)), np.minimum(a, b)
    )


def test_logical_and_and_cast_work_on_integers(tmp_path: Path) -> None:
    ids = np.array([-1, 0, 4, 5], np.int32)

    def inside(x: Value) -> Value:
        known = ops.logical_and(ops.greater_equal(x, x.graph.ints([0])), ops.less(x, x.graph.ints([5])))
        return ops.cast(ops.select(known, x, x.graph.ints([9])), DType.FLOAT32)

    np.testing.assert_array_equal(run(tmp_path, [ids], inside), np.array([9, 0, 4, 9], np.float32))


def test_floor_mod_takes_the_sign_of_the_divisor(tmp_path: Path) -> None:
    a = np.array([-9, -1, 0, 7, 8, 17], np.int32)
    got = run(tmp_path, [a], lambda x: ops.floor_mod(x, x.graph.ints([8])))
    np.testing.assert_array_equal(got, np.mod(a, 8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cumsum_runs_along_its_axis(tmp_path: Path, axis: int) -> None:
    x = floats(2, 3, 4)
    np.testing.assert_allclose(run(tmp_path, [x], lambda v: ops.cumsum(v, axis)), np.cumsum(x, axis), atol=1e-6)


def test_gather_takes_rows_of_any_axis(tmp_path: Path) -> None:
    x, rows = floats(1, 2, 5, 3), np.array([4, 0, 0], np.int32)
    np.testing.assert_array_equal(run(tmp_path, [x, rows], lambda v, i: ops.gather(v, i, 2)), x[:, :, rows])


def test_dynamic_update_slice_writes_at_the_start(tmp_path: Path) -> None:
    x, update, start = floats(1, 2, 6, 3), floats(1, 2, 2, 3, seed=1), np.array([0, 0, 3, 0], np.int32)
    want = x.copy()
    want[:, :, 3:5] = update
    np.testing.assert_array_equal(run(tmp_path, [x, update, start], ops.dynamic_update_slice), want)


def image(graph: Graph, dtype: DType = DType.FLOAT32) -> Value:
    return graph.input("image", (1, 4, 4, 2), dtype)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda g: ops.add(g.input("a", (2, 3)), g.input("b", (2, 4))), "broadcast"),
        (lambda g: ops.add(g.input("a", (2,)), g.input("b", (2,), DType.INT32)), "one type"),
        (lambda g: ops.reshape(g.input("a", (2, 3)), (5,)), "as many elements"),
        (lambda g: ops.take(g.input("a", (2, 3)), 1, 2, 5), "leaves the value"),
        (lambda g: ops.transpose(g.input("a", (2, 3)), (0, 0)), "not a permutation"),
        (lambda g: ops.pad(g.input("a", (2, 3)), [(1, 1)]), "each axis"),
        (lambda g: ops.pad(g.input("a", (2,)), [(1, -1)]), "counts of zeros"),
        (lambda g: ops.cumsum(g.input("a", (2, 3)), 2), "axis 2"),
        (lambda g: ops.batch_matmul(g.input("a", (2, 3)), g.input("b", (2, 3))), "inner axes"),
        (lambda g: ops.fully_connected(g.input("a", (2, 3)), g.input("w", (4, 5))), r"\[out, in\]"),
        (lambda g: ops.concatenation([g.input(f"a{i}", (1,)) for i in range(6)], 0), "2 to 5"),
        (lambda g: ops.softmax(g.input("a", (2,), DType.INT32)), "float32"),
        (lambda g: ops.sum_rows(g.input("a", (2, 3), DType.INT32)), "SUM wants float32"),
        (lambda g: ops.add(g.input("a", (2,), DType.BOOL), g.input("b", (2,), DType.BOOL)), "ADD wants numbers"),
        (lambda g: ops.batch_matmul(g.input("a", (2, 3)), g.input("b", (3, 2), DType.INT32)), "MATMUL wants float32"),
        (lambda g: ops.fully_connected(g.input("a", (2, 3)), g.input("w", (4, 3), DType.BOOL)), "CONNECTED wants f"),
        (lambda g: ops.fully_connected(g.input("a", (2, 3)), g.input("w", (4, 3)), g.input("b", (4,), DType.INT32)),
         "CONNECTED wants float32"),
        (lambda g: image_ops.conv_2d(image(g), g.input("w", (4, 3, 3, 2), DType.BOOL)), "CONV_2D wants float32"),
        (lambda g: image_ops.conv_2d(image(g), g.input("w", (4, 3, 3, 2)), g.input("b", (4,), DType.BOOL)),
         "bias wants float32"),
        (lambda g: image_ops.depthwise_conv_2d(image(g), g.input("w", (1, 3, 3, 2), DType.INT32)), "CONV_2D wants f"),
        (lambda g: image_ops.average_pool_2d(image(g, DType.INT32), 2), "POOL_2D wants float32"),
        (lambda g: ops.add(g.input("a", (2,)), Graph().input("b", (2,))), "two graphs"),
        (lambda g: g.input("a", (2, 0)), "positive"),
    ],
)  # fmt: skip
def test_a_wrong_graph_fails_where_it_is_written(build: Callable[[Graph], Value], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(Graph())
