"""The beginning and the end of a decoder's graph, and the components that all its layers share."""

from __future__ import annotations

from dataclasses import dataclass

from converters.gemma.config import DecoderConfig
from converters.gemma.graphs.text.attention import Attention
from converters.gemma.graphs.text.attention_mask import AttentionMasks
from converters.gemma.graphs.text.decoder_step import Step
from converters.gemma.graphs.text.kv_cache import CacheRows, StepCaches
from converters.gemma.graphs.text.per_layer_embedding import PerLayerEmbeddings
from converters.gemma.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """The inputs of one step's graph in the form that its layers take, and its outputs."""

    step: Step[DecoderConfig]
    embeddings: Value
    """f32[1, tokens, 1, hidden]"""
    caches: StepCaches
    attention: Attention
    per_layer: PerLayerEmbeddings

    @classmethod
    def of(cls, step: Step[DecoderConfig], rows: CacheRows) -> DecoderParts:
        """Declare the inputs: embeddings, per-layer embeddings, positions, mask and caches."""
        config, graph, tokens = step.config, step.graph, step.tokens
        embeddings = graph.input("embeddings", (1, tokens, config.hidden_size))
        embeddings = ops.reshape(embeddings, (1, tokens, 1, config.hidden_size))
        ple_rows = graph.input("per_layer_embeddings", (1, tokens, step.widest.num_layers, config.ple_size))
        positions = graph.input("input_pos", (tokens,), DType.INT32)
        mask = graph.input("mask", (1, 1, tokens, rows.seen))
        caches = StepCaches(step, rows, positions)
        masks = AttentionMasks(step, caches, positions, mask)
        attention = Attention(caches, masks, RotaryEmbedding(step, positions, rows.context))
        return cls(step, embeddings, caches, attention, PerLayerEmbeddings(step, embeddings, ple_rows))

    def logits(self, normed: Value) -> Value:
        """Multiply by the embedding matrix, and apply the softcap: f32[1, tokens, vocab]."""
        step, config = self.step, self.step.config
        shape = (config.vocab_size, config.hidden_size)
        head = step.graph.weight(Weight("lm_head.weight", shape, (WeightPart("embed_tokens.weight"),)))
        logits = ops.reshape(ops.fully_connected(normed, head), (1, step.tokens, config.vocab_size))
        cap = config.final_logit_softcap
        if cap is None:
            return logits
        return ops.mul(ops.tanh(ops.mul(logits, step.graph.scalar(1 / cap))), step.graph.scalar(cap))

    def finish(self, *, logits: Value | None = None, activations: Value | None = None) -> Graph:
        """Declare the outputs, which are all caches (updated or not) and those given here, and return the graph."""
        self.caches.output()
        if logits is not None:
            self.step.graph.output("logits", logits)
        if activations is not None:
            self.step.graph.output("activations", activations)
        return self.step.graph
