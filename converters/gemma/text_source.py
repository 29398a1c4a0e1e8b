"""Computes the small tensors that the text graphs need in another form than the checkpoint's.

Norms that are computed together need their weights as rows of one tensor. All computations are elementwise, so the
bytes depend only on the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from converters.gemma.config import AnyConfig
from toolkit.quant.source import TensorSource

F32 = NDArray[np.float32]

_HEAD_NORMS = re.compile(r"layers\.(\d+)\.self_attn\.(qkv_norm|q_norms)\.weight")


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor that is computed from others."""

    shape: tuple[int, ...]
    values: Callable[[], F32]


class TextSource(Generic[AnyConfig]):
    """A `TensorSource` with all text tensors of a checkpoint, and for each layer those that combine several tensors.

    `self_attn.qkv_norm` and `self_attn.q_norms` are [1, 1, heads, head_dim]: one row for each head, ones for values.
    """

    def __init__(self, source: TensorSource, config: AnyConfig) -> None:
        self._source = source
        self._config = config

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`."""
        derived = self._derived(name)
        return self._source.shape(name) if derived is None else derived.shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        """See `TensorSource`."""
        derived = self._derived(name)
        if derived is None:
            return self._source.read(name, rows, columns)
        values = np.ascontiguousarray(derived.values(), np.float32).reshape(derived.shape)
        if rows is not None:
            values = values[rows[0] : rows[1]]
        return values if columns is None else values[..., columns[0] : columns[1]]

    def _derived(self, name: str) -> Derived | None:
        """The tensor of this name if it has to be computed; None if it is in the checkpoint."""
        match = _HEAD_NORMS.fullmatch(name)
        if match is None:
            return None
        config, attention = self._config, f"layers.{match[1]}.self_attn"
        dim = config.heads(config.layers[int(match[1])].attention).dim
        keys = config.num_kv_heads if match[2] == "qkv_norm" else 0
        return Derived(
            (1, 1, config.num_heads + 2 * keys, dim), lambda: self._head_norms(attention, config.num_heads, keys)
        )

    def _head_norms(self, attention: str, queries: int, keys: int) -> F32:
        factors = [self._source.read(f"{attention}.q_norm.weight")] * queries
        if keys:
            key = self._source.read(f"{attention}.k_norm.weight")
            factors += [key] * keys + [np.ones_like(key)] * keys
        return np.stack(factors)
