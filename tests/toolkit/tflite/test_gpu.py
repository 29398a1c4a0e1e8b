"""LiteRT's GPU delegate, on a GPU or on Vulkan in software: that it runs here at all, and which ops it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpu_process import driver, run_graphs

from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Signature
from toolkit.tflite.writer import layout_tflite, write_tflite

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


class NoWeights:
    """A source for graphs without weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(self, name: str, rows: object = None, columns: object = None) -> np.ndarray:
        raise KeyError(name)


def written(directory: Path, graph: Graph) -> Path:
    path = directory / "graph.tflite"
    write_tflite(path, layout_tflite([Signature("run", graph)], {}), NoWeights())
    return path


def test_a_graph_runs_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 3, 8))
    graph.output("y", ops.mul(x, ops.rsqrt(ops.mean(ops.mul(x, x)))))
    numbers = np.random.default_rng(0).standard_normal((1, 3, 8), np.float32)
    model, inputs = written(tmp_path, graph), {"run": {"x": numbers}}
    print(driver())
    found, wanted = run_graphs(model, inputs, "gpu-f32"), run_graphs(model, inputs, "cpu")
    assert found.whole, found.log
    np.testing.assert_allclose(found.outputs["run"]["y"], wanted.outputs["run"]["y"], rtol=1e-4)


def test_a_refused_op_stays_on_the_cpu_and_is_named(tmp_path: Path) -> None:
    """So that a test of whole delegation can fail."""
    graph = Graph()
    x = graph.input("x", (1, 3, 8))
    graph.output("y", ops.add(ops.sub(x, x), ops.tanh(x)))
    found = run_graphs(written(tmp_path, graph), {"run": {"x": np.ones((1, 3, 8), np.float32)}}, "gpu-f32")
    assert not found.whole
    assert "SUB: No support of few identical inputs" in found.log
