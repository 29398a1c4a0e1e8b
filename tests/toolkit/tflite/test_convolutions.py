"""Convolutions and related ops against NumPy: weights stored channels first, in every type that LiteRT takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, RecipeError
from toolkit.quant import stream
from toolkit.quant.scheme import Scheme
from toolkit.tflite import image_ops, ops
from toolkit.tflite.graph import DType, Graph, Signature, Value, Weight
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.writer import layout_tflite, write_tflite

F32 = NDArray[np.float32]

OHWI, HWC = (0, 2, 3, 1), (1, 2, 3, 0)
F32_SCHEME, F16_SCHEME, INT8_SCHEME = Scheme("f32"), Scheme("f16"), Scheme("int8")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of more than 100 numbers is read and quantised in several pieces."""
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 100)


class Arrays:
    """A source of arrays."""

    def __init__(self, **arrays: F32) -> None:
        self._arrays = arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        assert columns is None
        return self._arrays[name][slice(*(rows or (None, None)))]


def floats(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(tmp_path: Path, x: F32, source: Arrays, scheme: Scheme, build: Callable[[Value], Value]) -> F32:
    graph = Graph()
    graph.output("y", build(graph.input("x", x.shape)))
    path = tmp_path / "op.tflite"
    weights = {value.weight.name: scheme for value in graph.values if value.weight is not None}
    write_tflite(path, layout_tflite([Signature("op", graph)], weights), source)
    read_tflite(path)
    result: F32 = Interpreter(str(path)).get_signature_runner("op")(x=x)["y"]
    return result


def same_padding(x: F32, kernel: int, stride: int) -> F32:
    """TensorFlow's: the odd row and column of zeros come last."""
    pads = [(0, 0)]
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)])


def convolve(x: F32, oihw: F32, stride: int) -> F32:
    """Padded x f32[n, h, w, in] with f32[out, in, k, k]."""
    kernel = oihw.shape[2]
    rows = range(0, x.shape[1] - kernel + 1, stride)
    columns = range(0, x.shape[2] - kernel + 1, stride)
    out = [[np.einsum("nhwi,oihw->no", x[:, r : r + kernel, c : c + kernel], oihw) for c in columns] for r in rows]
    return np.array(out, np.float32).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("scheme", [F32_SCHEME, F16_SCHEME], ids=str)
def test_conv_2d_is_numpys(
    tmp_path: Path, scheme: Scheme, kernel: int, stride: int, padding: image_ops.Padding
) -> None:
    x, weight = floats(1, 8, 11, 6), floats(16, 6, kernel, kernel, seed=1)
    asked = Weight.permuted("w", (16, kernel, kernel, 6), OHWI)
    got = run(
        tmp_path,
        x,
        Arrays(w=weight),
        scheme,
        lambda v: image_ops.conv_2d(v, v.graph.weight(asked), stride=stride, padding=padding),
    )
    stored = weight.astype(np.float16).astype(np.float32) if scheme is F16_SCHEME else weight
    want = convolve(same_padding(x, kernel, stride) if padding == "same" else x, stored, stride)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_conv_2d_adds_its_bias(tmp_path: Path) -> None:
    x, weight, bias = floats(1, 4, 4, 3), floats(8, 3, 3, 3, seed=1), floats(8, seed=2)

    def build(v: Value) -> Value:
        kernel = v.graph.weight(Weight.permuted("w", (8, 3, 3, 3), OHWI))
        return image_ops.conv_2d(v, kernel, v.graph.weight(Weight.whole("b", (8,))))

    got = run(tmp_path, x, Arrays(w=weight, b=bias), F32_SCHEME, build)
    np.testing.assert_allclose(got, convolve(same_padding(x, 3, 1), weight, 1) + bias, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_an_int8_convolution_has_a_scale_for_each_output(tmp_path: Path, kernel: int, stride: int) -> None:
    # Outputs of very different size: a scale for the whole tensor would lose the small ones.
    x, weight = floats(1, 12, 12, 16), floats(24, 16, kernel, kernel, seed=1)
    weight *= np.logspace(-3, 0, 24, dtype=np.float32)[:, None, None, None]
    asked = Weight.permuted("w", (24, kernel, kernel, 16), OHWI)
    got = run(
        tmp_path, x, Arrays(w=weight), INT8_SCHEME, lambda v: image_ops.conv_2d(v, v.graph.weight(asked), stride=stride)
    )
    want = convolve(same_padding(x, kernel, stride), weight, stride)
    error = np.abs(got - want).max((0, 1, 2)) / np.abs(want).max((0, 1, 2))
    assert 1e-5 < error.max() < 0.04


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("scheme", [F32_SCHEME, F16_SCHEME], ids=str)
def test_depthwise_conv_2d_keeps_channels_apart(tmp_path: Path, scheme: Scheme, kernel: int, stride: int) -> None:
    x, weight = floats(1, 8, 9, 24), floats(24, 1, kernel, kernel, seed=1)
    asked = Weight.permuted("w", (1, kernel, kernel, 24), HWC)
    got = run(
        tmp_path,
        x,
        Arrays(w=weight),
        scheme,
        lambda v: image_ops.depthwise_conv_2d(v, v.graph.weight(asked), stride=stride),
    )
    stored = weight.astype(np.float16).astype(np.float32) if scheme is F16_SCHEME else weight
    padded = same_padding(x, kernel, stride)
    want = np.concatenate([convolve(padded[..., c : c + 1], stored[c : c + 1], stride) for c in range(24)], -1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_average_pool_2d_means_over_squares(tmp_path: Path) -> None:
    x = floats(1, 6, 9, 5)
    got = run(tmp_path, x, Arrays(), F32_SCHEME, lambda v: image_ops.average_pool_2d(v, 3))
    np.testing.assert_allclose(got, x.reshape(1, 2, 3, 3, 3, 5).mean((2, 4)), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3])
def test_resize_nearest_neighbor_repeats_rows_and_columns(tmp_path: Path, factor: int) -> None:
    x = floats(1, 3, 4, 5)
    got = run(tmp_path, x, Arrays(), F32_SCHEME, lambda v: image_ops.resize_nearest_neighbor(v, 3 * factor, 4 * factor))
    np.testing.assert_array_equal(got, x.repeat(factor, 1).repeat(factor, 2))


def test_one_by_one_kernels_are_matrices(tmp_path: Path) -> None:
    x, weight = floats(1, 3, 4, 8), floats(16, 8, 1, 1, seed=1)
    asked = Weight.permuted("w", (16, 8), (0, 1, 2, 3))
    got = run(tmp_path, x, Arrays(w=weight), F32_SCHEME, lambda v: ops.fully_connected(v, v.graph.weight(asked)))
    np.testing.assert_allclose(got, x @ weight[:, :, 0, 0].T, rtol=1e-5, atol=1e-5)


def test_float16_takes_half_the_bytes(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.weight(Weight.permuted("w", (256, 3, 3, 64), OHWI))
    graph.output("y", image_ops.conv_2d(graph.input("x", (1, 4, 4, 64)), weight))
    whole, half = (layout_tflite([Signature("op", graph)], {"w": s}).weight_bytes for s in (F32_SCHEME, F16_SCHEME))
    assert whole == 2 * half == 256 * 3 * 3 * 64 * 4


def wrong(tmp_path: Path, weight: F32, asked: Weight, scheme: Scheme) -> None:
    x = floats(1, 4, 4, asked.shape[-1])
    run(tmp_path, x, Arrays(w=weight), scheme, lambda v: image_ops.conv_2d(v, v.graph.weight(asked)))


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    asked = Weight.permuted("w", (8, 3, 3, 4), OHWI)
    for shape in ((8, 3, 3, 4), (8, 4, 3), (9, 4, 3, 3), (8, 4, 3, 5)):
        with pytest.raises(CheckpointError, match="weight w"):
            wrong(tmp_path, floats(*shape), asked, F32_SCHEME)


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    asked = Weight.permuted("w", (8, 3, 3, 4), OHWI)
    weight = floats(8, 4, 3, 3)
    weight[3, 2, 1, 0] = -65520
    with pytest.raises(RecipeError, match="weight w as f16: found 65520"):
        wrong(tmp_path, weight, asked, F16_SCHEME)
    weight[3, 2, 1, 0] = np.nan
    with pytest.raises(CheckpointError, match="finite"):
        wrong(tmp_path, weight, asked, F16_SCHEME)


@pytest.mark.parametrize("scheme", [Scheme("int4"), Scheme("int8", 64), Scheme("int4", 32)], ids=str)
def test_a_convolution_takes_no_other_integers(tmp_path: Path, scheme: Scheme) -> None:
    with pytest.raises(RecipeError, match="a matrix"):
        wrong(tmp_path, floats(8, 64, 1, 1), Weight.permuted("w", (8, 1, 1, 64), OHWI), scheme)


def test_a_depthwise_kernel_takes_no_integers(tmp_path: Path) -> None:
    asked = Weight.permuted("w", (1, 3, 3, 8), HWC)
    with pytest.raises(RecipeError, match="keep it f32 or f16"):
        run(
            tmp_path,
            floats(1, 4, 4, 8),
            Arrays(w=floats(8, 1, 3, 3)),
            INT8_SCHEME,
            lambda v: image_ops.depthwise_conv_2d(v, v.graph.weight(asked)),
        )


def test_a_table_is_not_stored_as_float16() -> None:
    graph = Graph()
    table = graph.weight(Weight.whole("table", (8, 4)))
    graph.output("y", ops.embedding_lookup(graph.input("ids", (1,), DType.INT32), table))
    with pytest.raises(RecipeError, match="table table: found f16"):
        layout_tflite([Signature("op", graph)], {"table": F16_SCHEME})


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda g: image_ops.conv_2d(g.input("x", (1, 4, 4, 3)), g.input("w", (8, 3, 3, 4))), "NHWC, OHWI"),
        (
            lambda g: image_ops.conv_2d(g.input("x", (1, 4, 4, 3)), g.input("w", (8, 3, 3, 3)), g.input("b", (3,))),
            "bias",
        ),
        (
            lambda g: image_ops.conv_2d(g.input("x", (1, 2, 2, 3)), g.input("w", (8, 3, 3, 3)), padding="valid"),
            "positive",
        ),
        (
            lambda g: image_ops.depthwise_conv_2d(g.input("x", (1, 4, 4, 3)), g.input("w", (3, 3, 3, 1))),
            r"\[1, h, w, c\]",
        ),
        (lambda g: image_ops.average_pool_2d(g.input("x", (1, 4, 6, 3)), 4), "tile"),
        (lambda g: image_ops.resize_nearest_neighbor(g.input("x", (4, 6, 3)), 8, 12), "NHWC"),
    ],
)
def test_a_wrong_convolution_fails_where_it_is_written(build: Callable[[Graph], Value], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(Graph())
