"""Builds Google's drafter for Gemma 4 as a LiteRT graph, with the interface that LiteRT-LM's engine wants.

A drafter guesses the token after one whose embedding it is given, from the state that gave that token, and attends to
the caches of the model that it drafts for; docs/formats/manifest.md has its inputs and outputs.
Source: transformers 5.24 `models/gemma4_assistant/modeling_gemma4_assistant.py`, and
`generation/candidate_generator.py` (SinglePositionMultiTokenCandidateGenerator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from converters.gemma.config import Attention as AttentionKind
from converters.gemma.config import DecoderConfig
from converters.gemma.graphs.text.attention import Attention
from converters.gemma.graphs.text.attention_mask import AttentionMasks
from converters.gemma.graphs.text.decoder_step import Layer, Step, whole_size
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.graphs.text.rotary_embedding import RotaryEmbedding
from converters.gemma4.config import TextConfig
from converters.gemma4.graphs.decoder import attended_and_fed, scaled
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart


@dataclass(frozen=True, slots=True)
class Donor:
    """A cache of the target that layers of a drafter read: the names of its tensors, and the shape of the keys."""

    keys: str
    values: str
    shape: tuple[int, int, int, int]
    """[1, kv_heads, rows, head_dim]; values are [1, kv_heads, head_dim, rows]."""


@dataclass(frozen=True, slots=True)
class Target:
    """The model that is drafted for: its hidden size, and the caches that are read, by type of attention."""

    hidden_size: int
    context: int
    donors: Mapping[AttentionKind, Donor]

    def rows(self, seen: int) -> CacheRows:
        """The rows of the caches, of which those of the first `seen` positions are read."""
        sliding = self.donors["sliding"].shape[2] if "sliding" in self.donors else self.context
        return CacheRows(self.context, sliding, seen)


def assistant_graph(config: TextConfig, target: Target, bucket: int | None = None) -> Graph:
    """Build one draft: activations f32[1, 1, 2 D] -> logits f32[1, 1, vocab], projected_activations f32[1, 1, D].

    `activations` is the embedding of the last token, and the state that gave it. `input_pos`: the position before that
    token, which is the last one in the caches; it stays the same while drafts are made. `bucket`: how many positions
    `mask` covers, and the graph reads; None for the whole context.
    """
    # transformers lets a drafter see one key more than its window has.
    config = replace(config, sliding_window=config.sliding_window + 1)
    step = Step(whole_size(config), config, tokens=1)
    graph, hidden = step.graph, config.hidden_size
    activations = graph.input("activations", (1, 1, 2 * target.hidden_size))
    position = graph.input("input_pos", (1,), DType.INT32)
    seen = bucket or target.context
    mask = graph.input("mask", (1, 1, 1, seen))
    caches = _DonorCaches(graph, target, seen, position)
    # The engine's position is that of the last row in the caches; transformers turns queries by the one after it.
    turned = ops.add(position, graph.ints([1]))
    attention = Attention(
        caches, AttentionMasks(step, caches, position, mask), RotaryEmbedding(step, turned, target.context + 1)
    )
    x = ops.reshape(step.linear(activations, "pre_projection.weight", hidden), (1, 1, 1, hidden))
    for index in range(config.num_layers):
        layer = Layer(step, index)
        x = scaled(layer, attended_and_fed(layer, x, attention))
    normed = ops.reshape(step.norm(x, "norm.weight"), (1, 1, hidden))
    head = Weight("lm_head.weight", (config.vocab_size, hidden), (WeightPart("embed_tokens.weight"),))
    graph.output("logits", ops.fully_connected(normed, graph.weight(head)))
    graph.output("projected_activations", step.linear(normed, "post_projection.weight", target.hidden_size))
    return graph


class _DonorCaches:
    """The target's caches as inputs of a drafter's graph, which writes none (`LayerCaches`)."""

    def __init__(self, graph: Graph, target: Target, seen: int, position: Value) -> None:
        self.rows, self.first = target.rows(seen), position
        self._inputs: dict[str, tuple[Value, Value]] = {}
        self._seen: dict[str, tuple[Value, Value]] = {}
        for kind, donor in target.donors.items():
            one, heads, rows, dim = donor.shape
            keys = graph.input(donor.keys, donor.shape)
            self._inputs[kind] = keys, graph.input(donor.values, (one, heads, dim, rows))

    def write(self, layer: Layer[DecoderConfig], key: Value, value: Value) -> None:
        raise AssertionError("no layer of a drafter owns a cache")

    def read(self, layer: Layer[DecoderConfig]) -> tuple[Value, Value]:
        """The keys and values that a layer attends to; layers of a type share a copy of the first rows."""
        kind = layer.own.attention
        if kind not in self._seen:
            keys, values = self._inputs[kind]
            rows = self.rows.read(layer.own)
            self._seen[kind] = ops.take(keys, 2, 0, rows), ops.take(values, 3, 0, rows)
        return self._seen[kind]
