"""The text decoder of Gemma 3n as LiteRT graphs: a decode step, and prefills that fill the KV caches alone.

Streams are f32[1, tokens, streams, hidden] (AltUp's predictions of the hidden state); all else is f32[1, tokens, ...].
Each block of a layer has a file of its own: altup, laurel, attention, feed_forward, per_layer_embedding.
Source: transformers `models/gemma3n/modeling_gemma3n.py`; `reference.py` has the same mathematics in NumPy.
"""

from __future__ import annotations

from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.text import altup
from converters.gemma3n.graphs.text.attention import Attention
from converters.gemma3n.graphs.text.attention_mask import AttentionMasks
from converters.gemma3n.graphs.text.decoder_step import DecoderSize, Layer, Step
from converters.gemma3n.graphs.text.feed_forward import feed_forward
from converters.gemma3n.graphs.text.kv_cache import CacheRows, KvCaches
from converters.gemma3n.graphs.text.laurel import laurel
from converters.gemma3n.graphs.text.per_layer_embedding import PerLayerEmbeddings
from converters.gemma3n.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart


def decode_graph(size: DecoderSize, widest: TextConfig, rows: CacheRows) -> Graph:
    """One token in, caches updated at its position, logits f32[1, 1, vocab] out."""
    decoder = _Decoder(Step(size, widest, tokens=1), rows)
    streams = decoder.layers(decoder.embed(), size.config.num_layers)
    return decoder.finish(logits=decoder.logits(streams))


def prefill_graph(size: DecoderSize, widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """`tokens` tokens in, caches updated from the first one's position on; no logits.

    Computes only what fills the caches: the layers that own one, and of the last of them its keys and values.
    """
    decoder = _Decoder(Step(size, widest, tokens), rows)
    last_owner = size.config.kv_layers[-1]
    decoder.fill_cache(last_owner, decoder.layers(decoder.embed(), last_owner))
    return decoder.finish()


class _Decoder:
    """One forward pass under construction."""

    def __init__(self, step: Step, rows: CacheRows) -> None:
        config, graph, tokens = step.config, step.graph, step.tokens
        self._step = step
        self._embeddings = graph.input("embeddings", (1, tokens, config.hidden_size))
        ple_rows = graph.input("per_layer_embeddings", (1, tokens, step.widest.num_layers, config.ple_size))
        positions = graph.input("input_pos", (tokens,), DType.INT32)
        mask = graph.input("mask", (1, 1, tokens, rows.seen))
        self._caches = caches = KvCaches(step, rows, positions)
        masks = AttentionMasks(step, caches, positions, mask)
        self._attention = Attention(caches, masks, RotaryEmbedding(step, positions))
        self._per_layer = PerLayerEmbeddings(step, self._embeddings, ple_rows)

    def embed(self) -> Value:
        """The streams before the first layer."""
        return altup.spread(self._step, self._embeddings)

    def layers(self, streams: Value, count: int) -> Value:
        """The streams after the first `count` layers."""
        for index in range(count):
            streams = self._layer(Layer(self._step, index), streams)
        return streams

    def fill_cache(self, index: int, streams: Value) -> None:
        """The part of a layer that fills its KV cache."""
        layer = Layer(self._step, index)
        active = layer.active(altup.predict(layer, streams))
        self._attention.fill_cache(layer, layer.norm(active, "input_layernorm.weight"))

    def logits(self, streams: Value) -> Value:
        """Streams as one, normed, against the embedding, soft-capped: f32[1, tokens, vocab]."""
        step, config = self._step, self._step.config
        normed = step.norm(altup.merge(step, streams), "norm.weight")
        shape = (config.vocab_size, config.hidden_size)
        head = step.graph.weight(Weight("lm_head.weight", shape, (WeightPart("embed_tokens.weight"),)))
        logits = ops.fully_connected(normed, head)
        cap = config.final_logit_softcap
        if cap is None:
            return logits
        return ops.mul(ops.tanh(ops.mul(logits, step.graph.scalar(1 / cap))), step.graph.scalar(cap))

    def finish(self, *, logits: Value | None = None) -> Graph:
        """The graph, its outputs declared: every cache, updated or not, and the logits."""
        self._caches.output()
        if logits is not None:
            self._step.graph.output("logits", logits)
        return self._step.graph

    def _layer(self, layer: Layer, streams: Value) -> Value:
        """Predict, LAuReL beside attention, feed-forward, correct, per-layer embedding."""
        predicted = altup.predict(layer, streams)
        active = layer.active(predicted)
        normed = layer.norm(active, "input_layernorm.weight")
        low_rank = laurel(layer, normed)
        attended = layer.norm(self._attention.attend(layer, normed), "post_attention_layernorm.weight")
        hidden = ops.mul(ops.add(ops.add(active, attended), low_rank), layer.graph.scalar(2**-0.5))
        fed = feed_forward(layer, layer.norm(hidden, "pre_feedforward_layernorm.weight"))
        fed = layer.norm(fed, "post_feedforward_layernorm.weight")
        corrected = altup.correct(layer, predicted, active, ops.add(hidden, fed))
        return self._per_layer.inject(layer, corrected)
