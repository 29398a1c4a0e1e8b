"""Builds Gemma 3n's text decoder as LiteRT graphs: a decode step, and prefills that only fill the KV caches.

Streams are f32[1, tokens, streams, hidden] (AltUp's predictions of the hidden state), all else f32[1, tokens, 1, ...].
Each block of a layer has a file of its own: altup, laurel, attention, feed_forward, per_layer_embedding.
Source: transformers `models/gemma3n/modeling_gemma3n.py`; `reference.py` computes the same in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.norms import Scale
from converters.gemma3n.graphs.text import altup, laurel
from converters.gemma3n.graphs.text.attention import Attention
from converters.gemma3n.graphs.text.attention_mask import AttentionMasks
from converters.gemma3n.graphs.text.decoder_step import DecoderSize, Layer, Step
from converters.gemma3n.graphs.text.feed_forward import feed_forward
from converters.gemma3n.graphs.text.kv_cache import CacheRows, StepCaches
from converters.gemma3n.graphs.text.per_layer_embedding import PerLayerEmbeddings
from converters.gemma3n.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart


def decode_graph(size: DecoderSize, widest: TextConfig, rows: CacheRows) -> Graph:
    """Build the decode step: takes one token, updates the caches at its position, gives logits f32[1, 1, vocab]."""
    decoder = _Decoder(Step(size, widest, tokens=1), rows)
    return decoder.finish(logits=decoder.logits(decoder.layers(size.config.num_layers)))


def prefill_graph(size: DecoderSize, widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """Build a prefill: takes `tokens` tokens, and updates the caches from the first one's position on; no logits.

    Computes only what the caches need: the layers that own one, and only the keys and values of the last of these.
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

    def __init__(self, step: Step, rows: CacheRows) -> None:
        config, graph, tokens = step.config, step.graph, step.tokens
        self._step = step
        embeddings = graph.input("embeddings", (1, tokens, config.hidden_size))
        self._embeddings = ops.reshape(embeddings, (1, tokens, 1, config.hidden_size))
        ple_rows = graph.input("per_layer_embeddings", (1, tokens, step.widest.num_layers, config.ple_size))
        positions = graph.input("input_pos", (tokens,), DType.INT32)
        mask = graph.input("mask", (1, 1, tokens, rows.seen))
        self._caches = caches = StepCaches(step, rows, positions)
        masks = AttentionMasks(step, caches, positions, mask)
        self._attention = Attention(caches, masks, RotaryEmbedding(step, positions, rows.context))
        self._per_layer = PerLayerEmbeddings(step, self._embeddings, ple_rows)

    def layers(self, count: int) -> Streams:
        """The streams after the first `count` layers."""
        # Every stream begins at the magnitude of the embedding.
        scale = self._step.scale(self._embeddings)
        spread = altup.spread(self._step, self._embeddings, scale)
        streams = Streams(spread, self._step.stream(spread, self._step.config.altup_active_index), scale)
        for index in range(count):
            streams = self._layer(Layer(self._step, index), streams)
        return streams

    def fill_cache(self, index: int, streams: Streams) -> None:
        """The part of a layer that fills its KV cache."""
        layer = Layer(self._step, index)
        active = layer.active(altup.predict(layer, streams.all, streams.active, streams.scale))
        self._attention.fill_cache(layer, layer.norm(active, "input_layernorm.weight", streams.scale))

    def logits(self, streams: Streams) -> Value:
        """Merge and norm the streams, multiply by the embedding, and apply the softcap: f32[1, tokens, vocab]."""
        step, config = self._step, self._step.config
        normed = step.norm(altup.merge(step, streams.all, streams.scale), "norm.weight", streams.scale)
        shape = (config.vocab_size, config.hidden_size)
        head = step.graph.weight(Weight("lm_head.weight", shape, (WeightPart("embed_tokens.weight"),)))
        logits = ops.reshape(ops.fully_connected(normed, head), (1, step.tokens, config.vocab_size))
        cap = config.final_logit_softcap
        if cap is None:
            return logits
        return ops.mul(ops.tanh(ops.mul(logits, step.graph.scalar(1 / cap))), step.graph.scalar(cap))

    def finish(self, *, logits: Value | None = None) -> Graph:
        """Declare the outputs, all caches (updated or not) and the logits, and return the graph."""
        self._caches.output()
        if logits is not None:
            self._step.graph.output("logits", logits)
        return self._step.graph

    def _layer(self, layer: Layer, streams: Streams) -> Streams:
        """AltUp's prediction, attention in parallel with LAuReL, feed-forward, AltUp's correction, per-layer embedding.

        The scale for the next layer is that of this layer's result.
        """
        scale = streams.scale
        predicted = altup.predict(layer, streams.all, streams.active, scale)
        active = layer.active(predicted)
        normed = layer.norm(active, "input_layernorm.weight", scale)
        right = laurel.low_rank(layer, normed)
        hidden = laurel.joined(layer, active, normed, self._attention.attend(layer, normed), right)
        fed = feed_forward(layer, layer.norm(hidden, "pre_feedforward_layernorm.weight", scale))
        activated = ops.add(hidden, layer.norm(fed, "post_feedforward_layernorm.weight"))
        scale = layer.step.scale(activated)
        corrected = altup.correct(layer, predicted, active, activated, scale)
        return Streams(*self._per_layer.inject(layer, corrected), scale)
