"""Rotary position embedding (RoPE) of queries and keys, half-split, with a base of its own for each type of attention.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextRotaryEmbedding, apply_rotary_pos_emb).
"""

from __future__ import annotations

import numpy as np

from converters.gemma3n.config.text import LayerConfig
from converters.gemma3n.graphs.text.decoder_step import Step
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Value


class RotaryEmbedding:
    """Rotary embedding for the positions of one step; all layers of a type share the angles."""

    def __init__(self, step: Step, positions: Value) -> None:
        """positions: int32[tokens]."""
        self._step, self._positions = step, positions
        self._rotations: dict[str, tuple[Value, Value]] = {}

    def rotate(self, x: Value, layer: LayerConfig) -> Value:
        """x * cos + (-x2, x1) * sin, the sign folded into the sines; x: f32[1, tokens, heads, head_dim]."""
        cos, sin = self._rotation(layer)
        half = self._step.config.head_dim // 2
        swapped = ops.concatenation([ops.take(x, 3, half, 2 * half), ops.take(x, 3, 0, half)], 3)
        return ops.add(ops.mul(x, cos), ops.mul(swapped, sin))

    def _rotation(self, layer: LayerConfig) -> tuple[Value, Value]:
        """cos and signed sin of position * frequency, f32[1, tokens, 1, head_dim]."""
        if layer.attention not in self._rotations:
            config, graph = self._step.config, self._step.graph
            theta = config.rope_theta_full if layer.attention == "full" else config.rope_theta_sliding
            exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
            frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
            position = ops.reshape(ops.cast(self._positions, DType.FLOAT32), (1, self._step.tokens, 1, 1))
            angles = ops.mul(position, graph.constant(frequencies.reshape(1, 1, 1, -1)))
            cos, sin = ops.cos(angles), ops.sin(angles)
            signed = ops.concatenation([cos, cos], 3), ops.concatenation([ops.neg(sin), sin], 3)
            self._rotations[layer.attention] = signed
        return self._rotations[layer.attention]
