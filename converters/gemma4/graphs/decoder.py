"""Builds Gemma 4's text decoder as LiteRT graphs: steps that give logits, and prefills that only fill the KV caches.

The residual stream is f32[1, tokens, 1, hidden]. Attention, caches and per-layer embeddings are in
`converters/gemma/graphs/text`.
Source: transformers `models/gemma4/modeling_gemma4.py`; `reference.py` computes the same in NumPy.
"""

from __future__ import annotations

from converters.gemma.graphs.text.attention import Attention
from converters.gemma.graphs.text.decoder_parts import DecoderParts
from converters.gemma.graphs.text.decoder_step import DecoderSize, Layer, Step
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma4.config import TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Value


def decode_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows) -> Graph:
    """Build the decode step: it takes one token, updates the caches at its position, gives logits f32[1, 1, vocab]."""
    decoder = _Decoder(Step(size, widest, tokens=1), rows)
    return decoder.parts.finish(logits=decoder.parts.logits(decoder.normed(decoder.layers(size.config.num_layers))))


def verify_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """Build a step of speculative decoding: it takes `tokens` tokens and updates the caches like a prefill.

    It gives logits for every token, f32[1, tokens, vocab], and for a drafter the normed rows that the logits are
    computed from: `activations`, f32[1, tokens, hidden]. With one token, it is the decode step with this extra output.
    """
    decoder = _Decoder(Step(size, widest, tokens), rows)
    normed = decoder.normed(decoder.layers(size.config.num_layers))
    activations = ops.reshape(normed, (1, tokens, size.config.hidden_size))
    return decoder.parts.finish(logits=decoder.parts.logits(activations), activations=activations)


def prefill_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """Build a prefill: it takes `tokens` tokens and updates the caches from the first one's position on; no logits.

    It computes only what the caches need: the layers that own a cache, and of the last of these only keys and values.
    """
    decoder = _Decoder(Step(size, widest, tokens), rows)
    last_owner = size.config.kv_layers[-1]
    decoder.fill_cache(last_owner, decoder.layers(last_owner))
    return decoder.parts.finish()


class _Decoder:
    """One forward pass under construction."""

    def __init__(self, step: Step[TextConfig], rows: CacheRows) -> None:
        self._step, self.parts = step, DecoderParts.of(step, rows)

    def layers(self, count: int) -> Value:
        """The residual stream after the first `count` layers."""
        x = self.parts.embeddings
        for index in range(count):
            x = self._layer(Layer(self._step, index), x)
        return x

    def fill_cache(self, index: int, x: Value) -> None:
        """The part of a layer that fills its KV cache."""
        layer = Layer(self._step, index)
        self.parts.attention.fill_cache(layer, layer.norm(x, "input_layernorm.weight"))

    def normed(self, x: Value) -> Value:
        """The residual stream normed: f32[1, tokens, 1, hidden]."""
        return self._step.norm(x, "norm.weight")

    def _layer(self, layer: Layer[TextConfig], x: Value) -> Value:
        """Attention, feed-forward and per-layer embedding are added to the stream; then all of it is scaled."""
        x = attended_and_fed(layer, x, self.parts.attention)
        gated = self.parts.per_layer.gated(layer, x)
        x = ops.add(x, layer.norm(gated, "post_per_layer_input_norm.weight"))
        return scaled(layer, x)


def attended_and_fed(layer: Layer[TextConfig], x: Value, attention: Attention) -> Value:
    """The residual stream with a layer's attention and feed-forward network added: f32[1, tokens, 1, hidden]."""
    attended = attention.attend(layer, layer.norm(x, "input_layernorm.weight"))
    x = ops.add(x, layer.norm(attended, "post_attention_layernorm.weight"))
    fed = feed_forward(layer, layer.norm(x, "pre_feedforward_layernorm.weight"))
    return ops.add(x, layer.norm(fed, "post_feedforward_layernorm.weight"))


def scaled(layer: Layer[TextConfig], x: Value) -> Value:
    """All of the stream times the layer's factor, by which each layer ends."""
    return ops.mul(x, layer.step.vector(layer.name("layer_scalar"), 1))


def feed_forward(layer: Layer[TextConfig], normed: Value) -> Value:
    """down(gelu(gate(x)) * up(x)): f32[1, tokens, 1, hidden]."""
    width = layer.own.ffn_size
    gate = ops.gelu_tanh(layer.linear(normed, "mlp.gate_proj.weight", width))
    up = layer.linear(normed, "mlp.up_proj.weight", width)
    return layer.linear(ops.mul(gate, up), "mlp.down_proj.weight", layer.config.hidden_size)
