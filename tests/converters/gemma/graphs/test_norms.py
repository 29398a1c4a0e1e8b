"""Root mean square norms, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import MODELS, assert_close, numbers, run

from converters.gemma import reference
from converters.gemma.graphs.norms import Scale, rms_norm, unit_rms
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


@pytest.mark.parametrize("magnitude", [0.0, 1e-5, 1e-3, 1.0, 5e3, 1e7])
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_dividing_by_the_largest_element_first_changes_no_norm(
    tmp_path: Path, epsilon: float, magnitude: float
) -> None:
    graph = Graph()
    x, weight = graph.input("x", (1, 3, 64)), graph.input("weight", (64,))
    graph.output("y", Scale.of(x, epsilon).rms_norm(x, weight))
    inputs = {"x": np.float32(magnitude) * numbers(1, 3, 64), "weight": numbers(64, seed=1)}
    found = run(tmp_path, graph, MODEL, inputs)["y"]
    assert_close(found, reference.rms_norm(inputs["x"], epsilon, inputs["weight"]))


def test_a_single_large_element_moves_a_norm_by_less_than_one_in_ten_thousand(tmp_path: Path) -> None:
    """The most that epsilon can count for too much."""
    graph, width = Graph(), 2048
    x = graph.input("x", (1, 1, width))
    graph.output("y", Scale.of(x, 1e-6).unit_rms(x))
    alone = np.zeros((1, 1, width), np.float32)
    alone[0, 0, 5] = 3000
    found = run(tmp_path, graph, MODEL, {"x": alone})["y"]
    np.testing.assert_allclose(found, reference.rms_norm(alone, 1e-6), rtol=1e-4)


def test_a_gain_multiplies_what_a_norm_without_a_weight_gives(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 3, 5))
    graph.output("plain", unit_rms(x, 1e-3))
    graph.output("twice", unit_rms(x, 1e-3, gain=2.0))
    found = run(tmp_path, graph, MODEL, {"x": numbers(1, 3, 5)})
    assert_close(found["plain"], reference.rms_norm(numbers(1, 3, 5), 1e-3))
    assert_close(found["twice"], 2 * found["plain"])
