"""LAuReL, the learned augmented residual layer: beside attention, a low-rank map of its input.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextLaurelBlock).
"""

from __future__ import annotations

from converters.gemma3n.graphs.text.decoder_step import Layer
from toolkit.tflite import ops
from toolkit.tflite.graph import Value


def laurel(layer: Layer, normed: Value) -> Value:
    """normed + norm(right(left(normed))); normed: f32[1, tokens, hidden]."""
    left = layer.linear(normed, "laurel.linear_left.weight", layer.config.laurel_rank)
    right = layer.linear(left, "laurel.linear_right.weight", layer.config.hidden_size)
    return ops.add(normed, layer.norm(right, "laurel.post_laurel_norm.weight"))
