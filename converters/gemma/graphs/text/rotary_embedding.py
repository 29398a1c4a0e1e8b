"""Builds the rotary position embedding (RoPE) of queries and keys, half-split, with a base per type of attention.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextRotaryEmbedding, apply_rotary_pos_emb), and
`modeling_rope_utils.py` (proportional: only the first pairs rotate).
"""

from __future__ import annotations

import numpy as np

from converters.gemma.config import DecoderConfig, DecoderLayer, Heads
from converters.gemma.graphs.text.decoder_step import Step
from toolkit.base.layout import ceil_div
from toolkit.tflite import ops
from toolkit.tflite.graph import Value

LOW = 128
"""The number of rows in the tables of low angles."""


class RotaryEmbedding:
    """Rotary embedding for the positions of one step; all layers of a type share the angles.

    A position is split into `LOW` times a high part plus a low part, and its angle into a sum of two. The cosine and
    sine of each are looked up, and those of the sum computed from them: a GPU computes in float16, where the product of
    position and frequency would lose all digits.
    """

    def __init__(self, step: Step[DecoderConfig], positions: Value, context: int) -> None:
        """`positions`: int32[tokens], below the context; those of padding after a prompt are arbitrary."""
        self._step, graph = step, step.graph
        rows = ceil_div(context, LOW)
        high = ops.floor_mod(ops.floor_div(positions, graph.ints([LOW])), graph.ints([rows]))
        self._low, self._high = (ops.floor_mod(positions, graph.ints([LOW])), LOW), (high, rows)
        self._rotations: dict[str, tuple[Value, Value]] = {}

    def rotate(self, x: Value, layer: DecoderLayer) -> Value:
        """x * cos + (-x2, x1) * sin, with the sign included in the sines; x: f32[1, tokens, heads, head_dim]."""
        cos, sin = self._rotation(layer)
        half = x.shape[-1] // 2
        # The part of two joined copies of x that begins in the middle of the first copy.
        swapped = ops.take(ops.concatenation([x, x], 3), 3, half, 3 * half)
        return ops.add(ops.mul(x, cos), ops.mul(swapped, sin))

    def _rotation(self, layer: DecoderLayer) -> tuple[Value, Value]:
        """The cosine and signed sine of position * frequency, f32[1, tokens, 1, head_dim]."""
        if layer.attention not in self._rotations:
            heads = self._step.config.heads(layer.attention)
            (cos, sin), (more_cos, more_sin) = (
                self._looked_up(rows, heads, step) for rows, step in ((self._low, 1), (self._high, LOW))
            )
            # Both sines include the sign, so their product has none.
            turned = (
                ops.sub(ops.mul(cos, more_cos), ops.mul(sin, more_sin)),
                ops.add(ops.mul(sin, more_cos), ops.mul(cos, more_sin)),
            )
            shape = (1, self._step.tokens, 1, heads.dim)
            self._rotations[layer.attention] = ops.reshape(turned[0], shape), ops.reshape(turned[1], shape)
        return self._rotations[layer.attention]

    def _looked_up(self, rows: tuple[Value, int], heads: Heads, step: int) -> tuple[Value, Value]:
        """The cosine and signed sine of index * step * frequency, f32[tokens, head_dim], looked up in tables."""
        index, count = rows
        exponents = np.arange(0, 2 * heads.rotated, 2, dtype=np.float32) / np.float32(heads.dim)
        turning = (1.0 / np.power(np.float32(heads.rope_theta), exponents)).astype(np.float32)
        frequencies = np.pad(turning, (0, heads.dim // 2 - heads.rotated))
        angles = np.arange(count)[:, None] * float(step) * frequencies[None].astype(np.float64)
        cos, sin = np.cos(angles), np.sin(angles)
        tables = np.concatenate([cos, cos], 1), np.concatenate([-sin, sin], 1)
        graph = self._step.graph
        looked_up = [ops.gather(graph.constant(table.astype(np.float32)), index, 0) for table in tables]
        return looked_up[0], looked_up[1]
