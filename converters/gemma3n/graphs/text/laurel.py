"""Builds LAuReL, the learned augmented residual layer: a low-rank map of attention's input, parallel to attention.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextLaurelBlock).
"""

from __future__ import annotations

from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma3n.config.text import TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import Value


def low_rank(layer: Layer[TextConfig], normed: Value) -> Value:
    """right(left(normed)), not yet normed: f32[1, tokens, 1, hidden]."""
    left = layer.linear(normed, "laurel.linear_left.weight", layer.config.laurel_rank)
    return layer.linear(left, "laurel.linear_right.weight", layer.config.hidden_size)


def joined(layer: Layer[TextConfig], active: Value, normed: Value, attended: Value, right: Value) -> Value:
    """(active + norm(attended) + normed + norm(right)) / sqrt(2): attention and LAuReL with their residuals.

    Both are normed at once, each with its own weight (text_source.py).
    """
    pair = ops.concatenation([attended, right], 2)
    pair = ops.mul(
        layer.step.scale(pair).unit_rms(pair),
        layer.rows("attention_and_laurel_norm.weight", 2, layer.config.hidden_size),
    )
    total = ops.sum_rows(ops.concatenation([active, normed, pair], 2))
    return ops.mul(total, layer.graph.scalar(2**-0.5))
