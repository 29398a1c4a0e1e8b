"""LiteRT computes with exactly the numbers that the quantiser chose its codes for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from toolkit.base.weights import Weight
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature
from toolkit.tflite.writer import layout_tflite, write_tflite

SCHEMES = [Scheme("int8"), Scheme("int4"), Scheme("int2"), *(Scheme("int4", block) for block in (32, 64, 128, 256))]
ROWS, COLUMNS = 24, 512


class Matrix:
    """A source of one matrix under every name."""

    def __init__(self, w: NDArray[np.float32]) -> None:
        self.w = w

    def shape(self, name: str) -> tuple[int, ...]:
        return self.w.shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        return self.w if rows is None else self.w[slice(*rows)]


def weights() -> NDArray[np.float32]:
    """Rows of several magnitudes, and one of zeros."""
    w = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    w *= np.geomspace(1e-3, 10, ROWS, dtype=np.float32)[:, None]
    w[5] = 0
    return w


def run(path: Path, graph: Graph, scheme: Scheme, x: NDArray[np.generic]) -> NDArray[np.float32]:
    write_tflite(path, layout_tflite([Signature("run", graph)], {"w": scheme}), Matrix(weights()))
    result: NDArray[np.float32] = Interpreter(str(path)).get_signature_runner("run")(x=x)["y"]
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_embedding_lookup_gives_the_dequantised_rows_bit_for_bit(tmp_path: Path, scheme: Scheme) -> None:
    graph = Graph()
    table = graph.weight(Weight.whole("w", (ROWS, COLUMNS)))
    graph.output("y", ops.embedding_lookup(graph.input("x", (ROWS,), DType.INT32), table))
    rows = run(tmp_path / "m.tflite", graph, scheme, np.arange(ROWS, dtype=np.int32))
    np.testing.assert_array_equal(rows, dequantize_rows(quantize_rows(weights(), scheme)))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_fully_connected_layer_uses_the_dequantised_weights(tmp_path: Path, scheme: Scheme) -> None:
    # One-hot inputs survive XNNPACK's int8 activations, so what comes out are the weights themselves. Were block scales
    # not also bfloat16 numbers, XNNPACK's would be off by up to 0.4 %.
    graph = Graph()
    x = graph.input("x", (1, COLUMNS, COLUMNS))
    graph.output("y", ops.fully_connected(x, graph.weight(Weight.whole("w", (ROWS, COLUMNS)))))
    seen = run(tmp_path / "m.tflite", graph, scheme, np.eye(COLUMNS, dtype=np.float32)[None])[0].T
    want = dequantize_rows(quantize_rows(weights(), scheme))
    np.testing.assert_allclose(seen, want, rtol=2e-6, atol=0)
