"""AltUp, alternating updates: a layer computes on one of several streams and predicts and corrects the others.

Streams are f32[1, tokens, streams, hidden].
Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextAltUp; Gemma3nTextModel.forward for how streams
begin and end).
"""

from __future__ import annotations

import numpy as np

from converters.gemma3n.graphs.text.decoder_step import Layer, Step
from toolkit.tflite import ops
from toolkit.tflite.graph import Value, Weight, WeightPart

MAGNITUDE_FLOOR = 1e-5  # under the mean square of a projected stream


def spread(step: Step, embeddings: Value) -> Value:
    """The streams: f32[1, tokens, hidden] itself, and projections of it scaled to its magnitude."""
    hidden, others = step.config.hidden_size, step.config.altup_num_inputs - 1
    tensors = [f"altup_projections.{j}.weight" for j in range(others)]
    weight = Weight("altup_projections.weight", (others * hidden, hidden), tuple(map(WeightPart, tensors)))
    projected = ops.fully_connected(embeddings, step.graph.weight(weight))
    projected = ops.reshape(projected, (1, step.tokens, others, hidden))
    first = ops.reshape(embeddings, (1, step.tokens, 1, hidden))
    return ops.concatenation([first, _at_magnitude_of(first, projected)], 2)


def merge(step: Step, streams: Value) -> Value:
    """f32[1, tokens, hidden]: the first stream and projections of the others at its magnitude, averaged."""
    config = step.config
    first = step.stream(streams, 0)
    total = first
    for j in range(config.altup_num_inputs - 1):
        name = f"altup_unembed_projections.{j}.weight"
        projected = step.linear(step.stream(streams, j + 1), name, config.hidden_size)
        total = ops.add(total, _at_magnitude_of(first, projected))
    return ops.mul(total, step.graph.scalar(1 / config.altup_num_inputs))


def predict(layer: Layer, streams: Value) -> Value:
    """streams + coefficients @ streams; the identity is folded into the coefficients as a bias."""
    n = layer.config.altup_num_inputs
    coefficients = ops.fully_connected(
        _modalities(layer, layer.active(streams)),
        layer.matrix("altup.prediction_coefs.weight", n * n, n),
        layer.graph.constant(np.eye(n, dtype=np.float32).reshape(-1)),
    )
    return ops.batch_matmul(ops.reshape(coefficients, (1, layer.tokens, n, n)), streams)


def correct(layer: Layer, predicted: Value, active: Value, activated: Value) -> Value:
    """predicted + (1 + coefficients) * (activated - active), `active` being the active prediction."""
    n = layer.config.altup_num_inputs
    coefficients = ops.fully_connected(
        _modalities(layer, activated),
        layer.matrix("altup.correction_coefs.weight", n, n),
        layer.graph.constant(np.ones(n, np.float32)),
    )
    innovation = ops.reshape(ops.sub(activated, active), (1, layer.tokens, 1, layer.config.hidden_size))
    return ops.add(predicted, ops.mul(ops.reshape(coefficients, (1, layer.tokens, n, 1)), innovation))


def _modalities(layer: Layer, x: Value) -> Value:
    """The router: tanh of a linear map of x normed and divided by the hidden size; f32[1, tokens, streams]."""
    config = layer.config
    normed = layer.norm(x, "altup.router_norm.weight")
    routed = layer.linear(normed, "altup.modality_router.weight", config.altup_num_inputs)
    return ops.tanh(ops.mul(routed, layer.graph.scalar(1 / config.hidden_size)))


def _at_magnitude_of(reference: Value, x: Value) -> Value:
    """x scaled along the last axis to the root mean square of the reference."""
    wanted = ops.sqrt(ops.mean(ops.mul(reference, reference)))
    square = ops.maximum(ops.mean(ops.mul(x, x)), x.graph.scalar(MAGNITUDE_FLOOR))
    return ops.mul(x, ops.mul(wanted, ops.rsqrt(square)))
