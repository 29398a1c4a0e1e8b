"""Builds per-layer embeddings (PLE): each layer's extra input for each token, and its product with the layer's gate.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextModel.project_per_layer_inputs,
Gemma3nTextDecoderLayer.forward), and their counterparts in `models/gemma4`.
"""

from __future__ import annotations

from converters.gemma.config import DecoderConfig
from converters.gemma.graphs.norms import Scale
from converters.gemma.graphs.text.decoder_step import Layer, Step
from toolkit.tflite import ops
from toolkit.tflite.graph import Value


class PerLayerEmbeddings:
    """The per-layer inputs of all layers of the widest model, built on first use."""

    def __init__(self, step: Step[DecoderConfig], embeddings: Value, rows: Value) -> None:
        """`embeddings`: f32[1, tokens, 1, hidden]; `rows`: of the PLE table, f32[1, tokens, layers, ple]."""
        self._step, self._embeddings, self._rows = step, embeddings, rows
        self._all: Value | None = None

    def gated(self, layer: Layer[DecoderConfig], x: Value) -> Value:
        """The layer's embedding times a gate computed from x, projected, not yet normed: f32[1, tokens, 1, hidden]."""
        config = layer.config
        gate = ops.gelu_tanh(layer.linear(x, "per_layer_input_gate.weight", config.ple_size))
        return layer.linear(ops.mul(gate, self._of(layer)), "per_layer_projection.weight", config.hidden_size)

    def _of(self, layer: Layer[DecoderConfig]) -> Value:
        """The layer's embedding: f32[1, tokens, 1, ple]."""
        if self._all is None:
            self._all = self._project()
        index = layer.step.size.layers[layer.index]
        return ops.take(self._all, 2, index, index + 1)

    def _project(self) -> Value:
        """The sum of the table's rows and projections of the embeddings, times 2^-0.5: f32[1, tokens, layers, ple]."""
        step, config, layers = self._step, self._step.config, self._step.widest.num_layers
        projected = step.linear(self._embeddings, "per_layer_model_projection.weight", layers * config.ple_size)
        projected = ops.reshape(projected, (1, step.tokens, layers, config.ple_size))
        weight = step.vector("per_layer_projection_norm.weight", config.ple_size)
        # The model scales the projection by hidden^-0.5 before this norm, which is equivalent to a larger epsilon.
        projected = Scale.of(projected, config.rms_norm_eps * config.hidden_size).rms_norm(projected, weight)
        return ops.mul(ops.add(projected, self._rows), step.graph.scalar(2**-0.5))
