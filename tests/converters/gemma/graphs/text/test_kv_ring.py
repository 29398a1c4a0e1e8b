"""New rows in a ring, against writing them one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from bundles import NoWeights

from converters.gemma.graphs.text.kv_ring import RingWrite
from toolkit.tflite.graph import DType, Graph, Signature
from toolkit.tflite.writer import layout_tflite, write_tflite

HEADS, DIM = 2, 3


@pytest.mark.parametrize("axis", [2, 3], ids=["keys", "values"])
@pytest.mark.parametrize("rows", [6, 9, 12], ids=lambda rows: f"{rows} rows")
def test_new_rows_go_round_the_end_of_a_ring(tmp_path: Path, axis: int, rows: int) -> None:
    count = 5
    ring_shape, new_shape = ((1, HEADS, *((n, DIM) if axis == 2 else (DIM, n))) for n in (rows, count))
    graph = Graph()
    ring, new = graph.input("ring", ring_shape), graph.input("new", new_shape)
    first = graph.input("first", (1,), DType.INT32)
    graph.output("y", RingWrite.at(graph, first, rows, new.shape, axis)(ring, new))
    path = tmp_path / "ring.tflite"
    write_tflite(path, layout_tflite([Signature("write", graph)], {}), NoWeights())
    runner = Interpreter(str(path)).get_signature_runner("write")
    rng = np.random.default_rng(0)
    for position in range(2 * rows + 1):
        old, fresh = (rng.standard_normal(shape, np.float32) for shape in (ring_shape, new_shape))
        wanted = old.copy()
        for i in range(count):
            where = [slice(None)] * 4
            where[axis] = slice((position + i) % rows, (position + i) % rows + 1)
            wanted[tuple(where)] = np.take(fresh, [i], axis)
        got = runner(ring=old, new=fresh, first=np.array([position], np.int32))["y"]
        np.testing.assert_array_equal(got, wanted, f"from position {position}")
