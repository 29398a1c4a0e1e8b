"""What a GPU refuses of a graph, told without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toolkit.check import refused_by_gpu
from toolkit.tflite import ops
from toolkit.tflite.gpu import Refusal, gpu_refusals
from toolkit.tflite.graph import Graph, Signature, Value
from toolkit.tflite.schema_unpack import unpack
from toolkit.tflite.writer import layout_tflite


def refused(make: Callable[[Graph, Value], Value]) -> list[tuple[str, str]]:
    """Builtins and reasons of a graph over x: f32[2, 8]."""
    graph = Graph()
    graph.output("y", make(graph, graph.input("x", (2, 8))))
    return [(refusal.builtin, refusal.reason) for refusal in gpu_refusals(unpack(memoryview(header_of(graph))))]


def header_of(graph: Graph) -> bytes:
    return layout_tflite([Signature("run", graph)], {}).header


def test_a_bundles_refused_ops_are_found_by_file(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (2, 8))
    graph.output("y", ops.sub(x, x))
    (tmp_path / "text_decoder.tflite").write_bytes(header_of(graph))
    (tmp_path / "embedder.tflite").write_bytes(b"no graph")
    assert refused_by_gpu(tmp_path) == [
        ("text_decoder.tflite", Refusal("run", 0, "SUB", "both of its inputs are the same value"))
    ]


def numbers(graph: Graph, *shape: int) -> Value:
    return graph.constant(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


def test_a_graph_of_ops_that_a_gpu_takes_has_no_refusal() -> None:
    def make(graph: Graph, x: Value) -> Value:
        doubled = ops.take(ops.concatenation([x, x], 1), 1, 4, 12)
        padded = ops.pad(ops.reshape(ops.mul(doubled, doubled), (1, 2, 8)), [(0, 0), (0, 1), (0, 0)])
        return ops.add(ops.reshape(padded, (3, 8)), ops.mul(numbers(graph, 1, 8), numbers(graph, 1)))

    assert refused(make) == []


@pytest.mark.parametrize(
    ("builtin", "reason", "make"),
    [
        ("SUB", "both of its inputs are the same value", lambda g, x: ops.sub(x, x)),
        (
            "RESHAPE",
            "all of its inputs are constants",
            lambda g, x: ops.mul(x, ops.reshape(numbers(g, 8), (1, 8))),
        ),
        ("PAD", "it pads 2 axes, and a GPU can pad only 3 or 4", lambda g, x: ops.pad(x, [(0, 0), (1, 0)])),
        (
            "DYNAMIC_UPDATE_SLICE",
            "its start is a constant",
            lambda g, x: ops.dynamic_update_slice(x, ops.take(x, 0, 0, 1), g.ints([0, 0])),
        ),
        ("BATCH_MATMUL", "its first operand is a constant", lambda g, x: ops.batch_matmul(numbers(g, 3, 2), x)),
        (
            "GATHER",
            "all of its inputs are constants",
            lambda g, x: ops.mul(x, ops.gather(numbers(g, 4, 8), g.ints([1, 2]), 0)),
        ),
    ],
    ids=["twice", "constants", "pad", "slice", "matmul", "lookup"],
)
def test_each_op_that_a_gpu_refuses_is_named_with_its_reason(
    builtin: str, reason: str, make: Callable[[Graph, Value], Value]
) -> None:
    assert refused(make) == [(builtin, reason)]
