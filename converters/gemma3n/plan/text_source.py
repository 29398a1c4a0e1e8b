"""Computes those small tensors of a layer that the text graphs need in another form than the checkpoint's.

Norms that are computed together need their weights as rows of one tensor; a router's matrix includes the factors
around it. Everything here is elementwise, so the bytes depend only on the checkpoint.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from converters.gemma3n.config.text import TextConfig
from toolkit.quant.source import TensorSource

F32 = NDArray[np.float32]

_DERIVED = re.compile(
    r"(layers\.\d+\.)"
    r"(altup\.router|self_attn\.qkv_norm|self_attn\.q_norms|attention_and_laurel_norm|per_layer_streams_norm)\.weight"
)


class TextSource:
    """A TensorSource with all text tensors of a checkpoint, and those of each layer that combine several.

    `altup.router`: [streams, hidden], the router's matrix times its norm's weight, divided by the hidden size. The
    others are [1, 1, rows, columns]: `self_attn.qkv_norm` and `self_attn.q_norms`, one row for each head, ones for
    values; `attention_and_laurel_norm`; `per_layer_streams_norm`, zeros for the first stream.
    """

    def __init__(self, source: TensorSource, config: TextConfig) -> None:
        self._source = source
        self._config = config

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`."""
        config, match = self._config, _DERIVED.fullmatch(name)
        if match is None:
            return self._source.shape(name)
        if match[2] == "altup.router":
            return (config.altup_num_inputs, config.hidden_size)
        heads = config.num_heads
        return {
            "self_attn.qkv_norm": (1, 1, heads + 2 * config.num_kv_heads, config.head_dim),
            "self_attn.q_norms": (1, 1, heads, config.head_dim),
            "attention_and_laurel_norm": (1, 1, 2, config.hidden_size),
            "per_layer_streams_norm": (1, 1, config.altup_num_inputs, config.hidden_size),
        }[match[2]]

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        """See `TensorSource`."""
        match = _DERIVED.fullmatch(name)
        if match is None:
            return self._source.read(name, rows, columns)
        values = np.ascontiguousarray(self._made(match[1], match[2]), np.float32).reshape(self.shape(name))
        if rows is not None:
            values = values[rows[0] : rows[1]]
        return values if columns is None else values[..., columns[0] : columns[1]]

    def _made(self, layer: str, kind: str) -> F32:
        config = self._config
        if kind == "altup.router":
            matrix = self._vector(layer, "altup.modality_router") * self._vector(layer, "altup.router_norm")
            scaled: F32 = matrix / np.float32(config.hidden_size)
            return scaled
        if kind == "attention_and_laurel_norm":
            return np.stack([self._vector(layer, n) for n in ("post_attention_layernorm", "laurel.post_laurel_norm")])
        if kind == "per_layer_streams_norm":
            weight = self._vector(layer, "post_per_layer_input_norm")
            return np.stack([np.zeros_like(weight)] + [weight] * (config.altup_num_inputs - 1))
        factors = [self._vector(layer, "self_attn.q_norm")] * config.num_heads
        if kind == "self_attn.qkv_norm":
            key = self._vector(layer, "self_attn.k_norm")
            factors += [key] * config.num_kv_heads + [np.ones_like(key)] * config.num_kv_heads
        return np.stack(factors)

    def _vector(self, layer: str, tensor: str) -> F32:
        return self._source.read(f"{layer}{tensor}.weight")
