"""Builds Gemma 3n's text decoder as LiteRT graphs: steps that give logits, and prefills that only fill the KV caches.

Streams are f32[1, tokens, streams, hidden] (AltUp's predictions of the hidden state), all else f32[1, tokens, 1, ...].
Each component of a layer has a file of its own: here altup, laurel, feed_forward and per_layer_embedding, and in
`converters/gemma/graphs/text` those that Gemma 4 has too.
Source: transformers `models/gemma3n/modeling_gemma3n.py`; `reference.py` computes the same in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.gemma.graphs.norms import Scale
from converters.gemma.graphs.text.decoder_parts import DecoderParts
from converters.gemma.graphs.text.decoder_step import DecoderSize, Layer, Step
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.text import altup, laurel
from converters.gemma3n.graphs.text.feed_forward import feed_forward
from converters.gemma3n.graphs.text.per_layer_embedding import inject
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Value


def decode_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows) -> Graph:
    """Build the decode step: it takes one token, updates the caches at its position, gives logits f32[1, 1, vocab]."""
    decoder = _Decoder(Step(size, widest, tokens=1), rows)
    return decoder.finish(logits=decoder.logits(decoder.normed(decoder.layers(size.config.num_layers))))


def verify_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """Build a step of speculative decoding: it takes `tokens` tokens and updates the caches like a prefill.

    It gives logits for every token, f32[1, tokens, vocab], and for a drafter the normed rows that the logits are
    computed from: `activations`, f32[1, tokens, hidden]. With one token, it is the decode step with this extra output.
    """
    step = Step(size, widest, tokens)
    decoder = _Decoder(step, rows)
    normed = decoder.normed(decoder.layers(size.config.num_layers))
    activations = ops.reshape(normed, (1, tokens, size.config.hidden_size))
    return decoder.finish(logits=decoder.logits(activations), activations=activations)


def prefill_graph(size: DecoderSize[TextConfig], widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """Build a prefill: it takes `tokens` tokens and updates the caches from the first one's position on; no logits.

    It computes only what the caches need: the layers that own a cache, and of the last of these only keys and values.
    """
    decoder = _Decoder(Step(size, widest, tokens), rows)
    last_owner = size.config.kv_layers[-1]
    decoder.fill_cache(last_owner, decoder.layers(last_owner))
    return decoder.finish()


@dataclass(frozen=True, slots=True)
class Streams:
    """All streams, the active one of them, and its scale."""

    all: Value
    active: Value
    scale: Scale


class _Decoder:
    """One forward pass under construction."""

    def __init__(self, step: Step[TextConfig], rows: CacheRows) -> None:
        self._step, self._parts = step, DecoderParts.of(step, rows)

    def layers(self, count: int) -> Streams:
        """The streams after the first `count` layers."""
        # Every stream begins with the magnitude of the embedding.
        scale = self._step.scale(self._parts.embeddings)
        spread = altup.spread(self._step, self._parts.embeddings, scale)
        streams = Streams(spread, altup.active_stream(self._step, spread), scale)
        for index in range(count):
            streams = self._layer(Layer(self._step, index), streams)
        return streams

    def fill_cache(self, index: int, streams: Streams) -> None:
        """Add the part of a layer that fills its KV cache."""
        layer = Layer(self._step, index)
        active = altup.active_stream(layer.step, altup.predict(layer, streams.all, streams.active, streams.scale))
        self._parts.attention.fill_cache(layer, layer.norm(active, "input_layernorm.weight", streams.scale))

    def normed(self, streams: Streams) -> Value:
        """The streams merged and normed: f32[1, tokens, 1, hidden]."""
        merged = altup.merge(self._step, streams.all, streams.scale)
        return self._step.norm(merged, "norm.weight", streams.scale)

    def logits(self, normed: Value) -> Value:
        """See `DecoderParts.logits`."""
        return self._parts.logits(normed)

    def finish(self, *, logits: Value | None = None, activations: Value | None = None) -> Graph:
        """See `DecoderParts.finish`."""
        return self._parts.finish(logits=logits, activations=activations)

    def _layer(self, layer: Layer[TextConfig], streams: Streams) -> Streams:
        """AltUp's prediction, attention in parallel with LAuReL, feed-forward, AltUp's correction, per-layer embedding.

        The result has its own scale, for the next layer.
        """
        scale = streams.scale
        predicted = altup.predict(layer, streams.all, streams.active, scale)
        active = altup.active_stream(layer.step, predicted)
        normed = layer.norm(active, "input_layernorm.weight", scale)
        right = laurel.low_rank(layer, normed)
        hidden = laurel.joined(layer, active, normed, self._parts.attention.attend(layer, normed), right)
        fed = feed_forward(layer, layer.norm(hidden, "pre_feedforward_layernorm.weight", scale))
        activated = ops.add(hidden, layer.norm(fed, "post_feedforward_layernorm.weight"))
        scale = layer.step.scale(activated)
        corrected = altup.correct(layer, predicted, active, activated, scale)
        return Streams(*inject(self._parts.per_layer, layer, corrected), scale)
