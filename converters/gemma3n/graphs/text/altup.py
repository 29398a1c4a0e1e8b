"""Builds AltUp (alternating updates): a layer computes on one of several streams, and predicts and corrects the others.

Streams are f32[1, tokens, streams, hidden], one stream f32[1, tokens, 1, hidden].
Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextAltUp; Gemma3nTextModel.forward for how streams
begin and end).
"""

from __future__ import annotations

import numpy as np

from converters.gemma.graphs.norms import EPSILON, Scale
from converters.gemma.graphs.text.decoder_step import Layer, Step
from converters.gemma3n.config.text import TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import Value, Weight, WeightPart

MAGNITUDE_FLOOR = 1e-5  # minimum for the mean square of a projected stream


def stream(streams: Value, j: int) -> Value:
    """Stream j: f32[1, tokens, 1, hidden]."""
    return ops.take(streams, 2, j, j + 1)


def active_stream(step: Step[TextConfig], streams: Value) -> Value:
    """The stream that a layer computes on: f32[1, tokens, 1, hidden]."""
    return stream(streams, step.config.altup_active_index)


def spread(step: Step[TextConfig], embeddings: Value, scale: Scale) -> Value:
    """The streams: `embeddings`, f32[1, tokens, 1, hidden], and projections of it, scaled to its magnitude.

    `scale`: that of `embeddings`.
    """
    hidden, others = step.config.hidden_size, step.config.altup_num_inputs - 1
    tensors = [f"altup_projections.{j}.weight" for j in range(others)]
    weight = Weight("altup_projections.weight", (others * hidden, hidden), tuple(map(WeightPart, tensors)))
    projected = ops.fully_connected(embeddings, step.graph.weight(weight))
    projected = ops.reshape(projected, (1, step.tokens, others, hidden))
    return ops.concatenation([embeddings, _at_magnitude_of(embeddings, scale, projected)], 2)


def merge(step: Step[TextConfig], streams: Value, scale: Scale) -> Value:
    """Average the first stream and projections of the others, scaled to its magnitude: f32[1, tokens, 1, hidden].

    `scale`: that of the first stream.
    """
    config = step.config
    first, count = stream(streams, 0), config.altup_num_inputs
    projected = [
        step.linear(stream(streams, j + 1), f"altup_unembed_projections.{j}.weight", config.hidden_size)
        for j in range(count - 1)
    ]
    others = projected[0] if count == 2 else ops.concatenation(projected, 2)
    together = ops.concatenation([first, _at_magnitude_of(first, scale, others)], 2)
    return ops.mul(ops.sum_rows(together), step.graph.scalar(1 / count))


def predict(layer: Layer[TextConfig], streams: Value, active: Value, scale: Scale) -> Value:
    """streams + coefficients @ streams; the sum is part of the coefficients, which have the identity as their bias.

    `active`: the active stream; `scale`: its scale.
    """
    n = layer.config.altup_num_inputs
    coefficients = ops.fully_connected(
        _modalities(layer, active, scale),
        layer.matrix("altup.prediction_coefs.weight", n * n, n),
        layer.graph.constant(np.eye(n, dtype=np.float32).reshape(-1)),
    )
    return ops.batch_matmul(ops.reshape(coefficients, (1, layer.tokens, n, n)), streams)


def correct(layer: Layer[TextConfig], predicted: Value, active: Value, activated: Value, scale: Scale) -> Value:
    """predicted + (1 + coefficients) * (activated - active), where `active` is the active stream of the prediction.

    `scale`: that of `activated`.
    """
    n = layer.config.altup_num_inputs
    coefficients = ops.fully_connected(
        _modalities(layer, activated, scale),
        layer.matrix("altup.correction_coefs.weight", n, n),
        layer.graph.constant(np.ones(n, np.float32)),
    )
    innovation = ops.sub(activated, active)
    return ops.add(predicted, ops.mul(ops.reshape(coefficients, (1, layer.tokens, n, 1)), innovation))


def _modalities(layer: Layer[TextConfig], x: Value, scale: Scale) -> Value:
    """The router: tanh of a linear map of x, normed and divided by the hidden size; f32[1, tokens, 1, streams].

    The matrix includes the norm's weight and the division (text_source.py).
    """
    small, factor = scale.divided(x)
    routed = layer.linear(small, "altup.router.weight", layer.config.altup_num_inputs)
    return ops.tanh(ops.mul(routed, factor))


def _at_magnitude_of(reference: Value, scale: Scale, x: Value) -> Value:
    """x scaled along the last axis to the root mean square of the reference, f32[1, tokens, 1, hidden]."""
    small = ops.div(reference, scale.divisor)
    wanted = ops.mul(ops.sqrt(ops.mean(ops.mul(small, small))), scale.divisor)
    small = ops.div(x, Scale.of(x, MAGNITUDE_FLOOR).divisor)
    # If the divisor is larger than its floor, the mean square is far above EPSILON.
    square = ops.maximum(ops.mean(ops.mul(small, small)), x.graph.scalar(EPSILON))
    return ops.mul(small, ops.mul(ops.rsqrt(square), wanted))
