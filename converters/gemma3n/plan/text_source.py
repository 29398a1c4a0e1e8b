"""Computes the small tensors of a layer that Gemma 3n's graphs need in another form than the checkpoint's.

A router's matrix includes the factors around it. All computations are elementwise, so the bytes depend only on the
checkpoint.
"""

from __future__ import annotations

import re

import numpy as np

from converters.gemma.text_source import F32, Derived
from converters.gemma.text_source import TextSource as HeadNorms
from converters.gemma3n.config.text import TextConfig

_DERIVED = re.compile(r"(layers\.\d+\.)(altup\.router|attention_and_laurel_norm|per_layer_streams_norm)\.weight")


class TextSource(HeadNorms[TextConfig]):
    """A `TensorSource` with all text tensors of a checkpoint, and for each layer those that combine several tensors.

    `altup.router`: [streams, hidden], the router's matrix times its norm's weight, divided by the hidden size. The
    others are [1, 1, rows, columns]: `attention_and_laurel_norm`, and `per_layer_streams_norm` with zeros for the first
    stream.
    """

    def _derived(self, name: str) -> Derived | None:
        match = _DERIVED.fullmatch(name)
        if match is None:
            return super()._derived(name)
        layer, config = match[1], self._config
        if match[2] == "altup.router":
            return Derived((config.altup_num_inputs, config.hidden_size), lambda: self._router(layer))
        if match[2] == "attention_and_laurel_norm":
            return Derived((1, 1, 2, config.hidden_size), lambda: self._attention_and_laurel_norm(layer))
        return Derived((1, 1, config.altup_num_inputs, config.hidden_size), lambda: self._streams_norm(layer))

    def _router(self, layer: str) -> F32:
        matrix = self._vector(layer, "altup.modality_router") * self._vector(layer, "altup.router_norm")
        scaled: F32 = matrix / np.float32(self._config.hidden_size)
        return scaled

    def _attention_and_laurel_norm(self, layer: str) -> F32:
        return np.stack([self._vector(layer, n) for n in ("post_attention_layernorm", "laurel.post_laurel_norm")])

    def _streams_norm(self, layer: str) -> F32:
        weight = self._vector(layer, "post_per_layer_input_norm")
        return np.stack([np.zeros_like(weight)] + [weight] * (self._config.altup_num_inputs - 1))

    def _vector(self, layer: str, tensor: str) -> F32:
        return self._source.read(f"{layer}{tensor}.weight")
