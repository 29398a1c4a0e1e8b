"""Root mean square norms, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_blocks import MODELS, assert_close, numbers, run

from converters.gemma3n import reference
from converters.gemma3n.graphs.norms import rms_norm, unit_rms
from toolkit.tflite.graph import Graph

MODEL = MODELS["one key head"]


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("width", [1, 7])
def test_a_norm_divides_by_the_root_mean_square_and_multiplies_by_the_weight(
    tmp_path: Path, epsilon: float, width: int
) -> None:
    graph = Graph()
    x, weight = graph.input("x", (1, 3, width)), graph.input("weight", (width,))
    graph.output("y", rms_norm(x, weight, epsilon))
    inputs = {"x": numbers(1, 3, width), "weight": numbers(width, seed=1)}
    found = run(tmp_path, graph, MODEL, inputs)["y"]
    assert_close(found, reference.rms_norm(inputs["x"], epsilon, inputs["weight"]))


def test_a_gain_multiplies_what_a_norm_without_a_weight_gives(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 3, 5))
    graph.output("plain", unit_rms(x, 1e-3))
    graph.output("twice", unit_rms(x, 1e-3, gain=2.0))
    found = run(tmp_path, graph, MODEL, {"x": numbers(1, 3, 5)})
    assert_close(found["plain"], reference.rms_norm(numbers(1, 3, 5), 1e-3))
    assert_close(found["twice"], 2 * found["plain"])
