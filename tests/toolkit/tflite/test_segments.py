"""The segments of a graph, run one after the other, give what the whole graph gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from towers import Arrays

from toolkit.quant.scheme import Scheme
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Signature, Weight
from toolkit.tflite.segments import SEGMENT, SegmentedGraph, value_name
from toolkit.tflite.writer import TfliteLayout, layout_tflite, write_tflite

F32 = NDArray[np.float32]
_NUMBERS = np.random.default_rng(0)
ARRAYS = {
    "a": _NUMBERS.standard_normal((8, 6), np.float32),
    "b": _NUMBERS.standard_normal((8, 6), np.float32),
    "c": _NUMBERS.standard_normal((4, 8), np.float32),
    "scale": _NUMBERS.standard_normal(8, np.float32),
}


def layout() -> TfliteLayout:
    """rows @ c.T of (rows @ a.T) * scale + tanh(rows @ b.T); `a` is used twice."""
    graph = Graph()
    x = graph.input("x", (1, 5, 6))
    a, b, c = (graph.weight(Weight.whole(name, ARRAYS[name].shape)) for name in "abc")
    scaled = ops.mul(ops.fully_connected(x, a), graph.weight(Weight.whole("scale", (8,))))
    mixed = ops.add(scaled, ops.tanh(ops.fully_connected(x, b)))
    graph.output("y", ops.fully_connected(ops.mul(mixed, graph.scalar(0.5)), c))
    graph.output("again", ops.fully_connected(x, a))
    schemes = dict.fromkeys(ARRAYS, Scheme("f32"))
    return layout_tflite([Signature("whole", graph)], schemes)


def run(path: Path, signature: str, inputs: dict[str, F32]) -> dict[str, F32]:
    runtime = BACKENDS[0].start(BackendOptions(1, "memory"))
    try:
        model = runtime.open(ModelFile(path, "", path.stat().st_size), "small")
        info = model.signature(signature)
        given = {name: model.input_buffer(signature, name) for name in info.inputs}
        made = {name: model.output_buffer(signature, name) for name in info.outputs}
        for name, buffer in given.items():
            buffer.write(inputs[name])
        model.bind(signature, given, made)()
        return {name: buffer.read() for name, buffer in made.items()}
    finally:
        runtime.close()


@pytest.mark.parametrize("borders", [(), (1,), (2, 4), tuple(range(1, 7))], ids=str)
def test_segments_give_what_the_whole_graph_gives(tmp_path: Path, borders: tuple[int, ...]) -> None:
    whole, x = tmp_path / "whole.tflite", _NUMBERS.standard_normal((1, 5, 6), np.float32)
    write_tflite(whole, layout(), Arrays(ARRAYS))
    wanted = run(whole, "whole", {"x": x})
    graph = SegmentedGraph(layout(), "whole")
    values = {graph.inputs["x"]: x}
    for start, stop in zip((0, *borders), (*borders, graph.operators), strict=True):
        segment = graph.segment(start, stop)
        path = tmp_path / "segment.tflite"
        write_tflite(path, segment.layout, Arrays(ARRAYS))
        found = run(path, SEGMENT, {value_name(t): values[t] for t in segment.inputs})
        values |= {t: found[value_name(t)] for t in segment.outputs}
        assert values.keys() >= set(graph.needed_from(stop))
    for name, tensor in graph.outputs.items():
        np.testing.assert_allclose(values[tensor], wanted[name], rtol=1e-6, atol=1e-6)


def test_a_matrix_is_known_by_its_first_product_and_that_ones_input() -> None:
    graph = SegmentedGraph(layout(), "whole")
    products = graph.products
    assert list(products) == ["a", "b", "c"]
    assert products["a"][1] == products["b"][1] == graph.inputs["x"]
    assert graph.shape(products["c"][1]) == (1, 5, 8)
    assert products["a"][0] < products["b"][0] < products["c"][0] < graph.operators


def test_a_segment_has_the_weights_of_its_own_operators_alone() -> None:
    graph = SegmentedGraph(layout(), "whole")
    products = graph.products
    first = graph.segment(0, products["b"][0])
    assert {placement.weight.name for placement in first.layout.placements} <= {"a", "scale"}
    assert graph.needed_from(0) == (graph.inputs["x"],)
    assert set(graph.needed_from(graph.operators)) == set(graph.outputs.values())


def test_the_bytes_at_a_place_are_those_of_the_values_that_are_needed_there() -> None:
    graph = SegmentedGraph(layout(), "whole")
    for place in range(graph.operators + 1):
        assert graph.bytes_at(place) == sum(4 * math.prod(graph.shape(t)) for t in graph.needed_from(place))
