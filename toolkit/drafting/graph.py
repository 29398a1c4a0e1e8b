"""Builds a drafter's LiteRT graph, with the inputs and outputs of LiteRT-LM's engine (docs/formats/litertlm.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError
from toolkit.bundle.manifest import TextRecord
from toolkit.bundle.signatures import DRAFT
from toolkit.drafting.fit import Drafter
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature, Value, Weight
from toolkit.tflite.writer import layout_files, write_tflite

F32 = NDArray[np.float32]

NEVER = -1e4
"""The logit of tokens that are not in the head."""
RECIPE = Recipe(
    "drafter",
    (
        Rule("drafter.scale", Scheme("f32")),
        Rule("drafter.*.bias", Scheme("f32")),
        Rule("drafter.*.weight", Scheme("int4", None, "mse")),
    ),
)


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Arrays in memory as a `TensorSource`."""

    arrays: Mapping[str, F32]

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.arrays:
            raise CheckpointError(f"tensor {name}", found="no such tensor")
        return self.arrays[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        array = self.arrays[name]
        array = array if rows is None else array[slice(*rows)]
        return array if columns is None else array[..., slice(*columns)]


def drafter_graph(drafter: Drafter, text: TextRecord) -> Graph:
    """Build the graph: activations f32[1, 1, 2 D] -> logits f32[1, 1, vocab], projected_activations f32[1, 1, D]."""
    graph = Graph()
    activations, _ = declare_inputs(graph, text)
    state, logits = guess(drafter, activations, text.vocab_size)
    graph.output("projected_activations", state)
    graph.output("logits", logits)
    return graph


def declare_inputs(graph: Graph, text: TextRecord) -> tuple[Value, Value]:
    """Declare what the engine passes to every drafter, and return `activations` f32[1, 1, 2 D] and `input_pos` i32[1].

    Only a drafter that attends to the caches needs `mask`.
    """
    activations = graph.input("activations", (1, 1, 2 * text.hidden_size))
    position = graph.input("input_pos", (1,), DType.INT32)
    graph.input("mask", (1, 1, 1, text.context))
    return activations, position


def guess(drafter: Drafter, activations: Value, vocab_size: int) -> tuple[Value, Value]:
    """The state f32[1, 1, D] and the logits f32[1, 1, vocab] that a drafter guesses from activations f32[1, 1, 2 D]."""
    graph = activations.graph

    def weight(name: str, array: F32) -> Value:
        return graph.weight(Weight.whole(f"drafter.{name}", array.shape))

    def mapped(x: Value, name: str, matrix: F32) -> Value:
        bias = weight(f"{name}.bias", matrix[:, -1])
        return ops.fully_connected(x, weight(f"{name}.weight", matrix[:, :-1]), bias)

    x = ops.mul(activations, weight("scale", drafter.scale))
    hidden = ops.relu(mapped(x, "hidden", drafter.hidden))
    state = mapped(ops.concatenation([x, hidden], 2), "state", drafter.state)
    some = ops.fully_connected(state, weight("head.weight", drafter.head))
    never = graph.constant(np.full((1, 1, 1), NEVER, np.float32))
    place = np.full(vocab_size, len(drafter.head_ids), np.int32)
    place[drafter.head_ids] = np.arange(len(drafter.head_ids), dtype=np.int32)
    return state, ops.gather(ops.concatenation([some, never], 2), graph.constant(place), 2)


def write_drafter(
    path: Path,
    drafter: Drafter,
    text: TextRecord,
    recipe: Recipe = RECIPE,
    *,
    build: Callable[[Drafter, TextRecord], Graph] = drafter_graph,
) -> None:
    """Write a drafter as a .tflite file, with the graph that `build` makes of it. The write is not atomic."""
    arrays = {"drafter.scale": drafter.scale, "drafter.head.weight": drafter.head}
    for name, matrix in (("hidden", drafter.hidden), ("state", drafter.state)):
        arrays[f"drafter.{name}.weight"] = np.ascontiguousarray(matrix[:, :-1])
        arrays[f"drafter.{name}.bias"] = np.ascontiguousarray(matrix[:, -1])
    layout = layout_files({path.name: [Signature(DRAFT, build(drafter, text))]}, recipe)[path.name]
    write_tflite(path, layout, _Arrays(arrays))
