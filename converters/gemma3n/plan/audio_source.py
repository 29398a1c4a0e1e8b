"""Computes the tensors of the audio graphs that the checkpoint has in another form: two per block, and two tokens.

Relative positions are constants, and so are their projections: 13 rows of the hidden size instead of a square matrix
(28 M of the tower's 681 M parameters). Every step is an elementwise IEEE operation in a fixed order, so that the bytes
depend only on the checkpoint.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from converters.gemma3n.config.audio import AudioConfig
from converters.gemma3n.graphs.audio.adapter import END_OF_AUDIO, PADDING
from converters.gemma3n.plan.token_row import token_row
from toolkit.quant.source import TensorSource

MAX_TIMESCALE = 1e4  # Gemma3nAudioRelativePositionEmbedding

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_DERIVED = re.compile(r"(audio_tower\.conformer\.\d+\.attention\.attn\.)(query_scale|position_keys)")


class AudioSource:
    """A `TensorSource` with all tensors of a checkpoint, and those that are computed from them.

    These are `query_scale` and `position_keys` of each block, and the embeddings of the padding token and of the token
    that ends a sound.
    """

    def __init__(self, source: TensorSource, config: AudioConfig) -> None:
        self._source = source
        self._config = config
        self._tokens = {PADDING: config.padding_token_id, END_OF_AUDIO: config.end_token_id}

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`; position_keys [1, heads, window, head_dim], query_scale [head_dim], tokens [1, 1, n]."""
        if name in self._tokens:
            return (1, 1, self._config.text_hidden_size)
        match = _DERIVED.fullmatch(name)
        if match is None:
            return self._source.shape(name)
        config = self._config
        if match[2] == "query_scale":
            return (config.head_dim,)
        return (1, config.num_heads, config.attention_window, config.head_dim)

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        """See `TensorSource`."""
        match = _DERIVED.fullmatch(name)
        if match is None and name not in self._tokens:
            return self._source.read(name, rows, columns)
        if match is None:
            row = self._tokens[name] - self._config.vocab_offset
            values = token_row(self._source, "embed_audio", row, self._config.rms_norm_eps)
        elif match[2] == "query_scale":
            values = query_scale(self._source.read(f"{match[1]}per_dim_scale"), self._config)
        else:
            projection = self._source.read(f"{match[1]}relative_position_embedding.pos_proj.weight")
            values = position_keys(projection, self._config)
        if rows is not None:
            values = values[rows[0] : rows[1]]
        return values if columns is None else values[..., columns[0] : columns[1]]


def query_scale(per_dim_scale: F32, config: AudioConfig) -> F32:
    """f32[head_dim]: softplus(per_dim_scale) / softplus(0) / sqrt(head_dim), divided by the cap of the scores."""
    fixed = config.head_dim**-0.5 / math.log(2.0) / config.logit_cap
    scales = [fixed * (max(x, 0.0) + math.log1p(math.exp(-abs(x)))) for x in per_dim_scale.tolist()]
    return np.array(scales, np.float32)


def position_keys(projection: F32, config: AudioConfig) -> F32:
    """f32[1, heads, window, head_dim]: the keys for the distances window - 1 to 0, in that order."""
    signal = _sinusoids(config).astype(np.float64)
    keys = np.zeros(signal.shape)
    # Not as a matrix product: BLAS sums in a different order on each processor.
    for sines, row in zip(signal.T, projection.T.astype(np.float64), strict=True):
        keys += sines[:, None] * row[None]
    by_head = keys.reshape(config.attention_window, config.num_heads, config.head_dim).transpose(1, 0, 2)
    return np.ascontiguousarray(by_head[None], np.float32)


def _sinusoids(config: AudioConfig) -> F32:
    """f32[window, hidden]: sines, then cosines, of distance times frequencies from 1 down to 1 / MAX_TIMESCALE."""
    count = config.hidden_size // 2
    step = math.log(MAX_TIMESCALE) / max(count - 1, 1)
    angles = [
        [distance * math.exp(-step * m) for m in range(count)]
        for distance in range(config.attention_window - 1, -1, -1)
    ]
    return np.array([[*map(math.sin, row), *map(math.cos, row)] for row in angles], np.float32)
