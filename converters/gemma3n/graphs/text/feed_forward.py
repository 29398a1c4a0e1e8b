"""Builds a layer's MatFormer feed-forward network: its weights are in pieces, of which smaller sizes run the first.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextMLP).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma3n.config.text import TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import Value, Weight, WeightPart

GATE_SCALE = 16.0
"""The divisor of gates before squaring: a GPU computes in float16, where the square of 256 is infinite."""


def feed_forward(layer: Layer[TextConfig], normed: Value) -> Value:
    """The sum over all pieces of down(gelu(sparse(gate(x))) * up(x)); f32[1, tokens, 1, hidden]."""
    pieces = _pieces(layer)
    gates = [ops.fully_connected(normed, _rows(layer, "gate", n, units)) for n, units in enumerate(pieces)]
    if layer.config.layers[layer.index].sparsity > 0:
        gates = _keep_largest(gates, layer.config.layers[layer.index].sparsity)
    total: Value | None = None
    for n, (gate, units) in enumerate(zip(gates, pieces, strict=True)):
        up = ops.fully_connected(normed, _rows(layer, "up", n, units))
        down = _columns(layer, "down", n, units)
        result = ops.fully_connected(ops.mul(ops.gelu_tanh(gate), up), down)
        total = result if total is None else ops.add(total, result)
    assert total is not None
    return total


def _keep_largest(gates: Sequence[Value], sparsity: float) -> list[Value]:
    """relu(gate - (mean + z * std)) over the units that this size runs; z: normal quantile; std: of the population."""
    graph, units = gates[0].graph, sum(g.shape[-1] for g in gates)
    mean = _sum([_share(g, units) for g in gates])
    centred = [ops.sub(g, mean) for g in gates]
    small = [ops.mul(c, graph.scalar(1 / GATE_SCALE)) for c in centred]
    variance = _sum([_share(ops.mul(s, s), units) for s in small])
    cut = ops.mul(ops.sqrt(variance), graph.scalar(GATE_SCALE * NormalDist().inv_cdf(sparsity)))
    return [ops.relu(ops.sub(c, cut)) for c in centred]


def _share(x: Value, units: int) -> Value:
    """The contribution of one piece to the mean over all units; with a single piece, the mean itself."""
    own = x.shape[-1]
    return ops.mean(x) if own == units else ops.mul(ops.mean(x), x.graph.scalar(own / units))


def _pieces(layer: Layer[TextConfig]) -> list[tuple[int, int]]:
    """The half-open range of units of each piece that this size runs."""
    stops = np.cumsum(layer.step.size.ffn_segments[layer.index]).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _rows(layer: Layer[TextConfig], kind: str, n: int, units: tuple[int, int]) -> Value:
    """Rows of the gate's or the up projection's matrix: f32[units, hidden]."""
    part = WeightPart(_tensor(layer, kind), rows=units)
    shape = (units[1] - units[0], layer.config.hidden_size)
    return layer.graph.weight(Weight(_tensor(layer, kind, n), shape, (part,)))


def _columns(layer: Layer[TextConfig], kind: str, n: int, units: tuple[int, int]) -> Value:
    """Columns of the down projection's matrix: f32[hidden, units]."""
    part = WeightPart(_tensor(layer, kind), columns=units)
    shape = (layer.config.hidden_size, units[1] - units[0])
    return layer.graph.weight(Weight(_tensor(layer, kind, n), shape, (part,)))


def _tensor(layer: Layer[TextConfig], kind: str, n: int = 0) -> str:
    """The name of piece n of a tensor; the first piece has the tensor's own name."""
    return layer.name(f"mlp.{kind}_proj.{n}.weight" if n else f"mlp.{kind}_proj.weight")


def _sum(values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = ops.add(total, value)
    return total
