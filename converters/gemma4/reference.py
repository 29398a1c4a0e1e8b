"""The text model of Gemma 4 in NumPy, in float32 and without torch: the reference for bundles.

The tokens of all sequences are concatenated on the first axis, so each matrix is read once, used, and dropped. N is the
total number of tokens, D the hidden size. What all Gemma models share (norms, attention, per-layer embeddings) is in
`converters/gemma/reference.py`.
Source: transformers 5.24 `models/gemma4/modeling_gemma4.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from converters.family import HeadRows, LayersDone, MatrixProduct
from converters.gemma.reference import (
    Array,
    AttentionLayer,
    Batch,
    DecoderReference,
    KeyValue,
    checked_ids,
    embed,
    forget_unneeded,
    gated,
    gelu,
    logits,
    multiply,
    per_layer_embeddings,
    rms_norm,
    rounding,
)
from converters.gemma4.config import TextConfig, TextModel
from converters.gemma4.tensors import LAYER_SCALAR
from toolkit.base.activations import ActivationScales


@dataclass(frozen=True, slots=True)
class Layer(AttentionLayer[TextConfig]):
    """One decoder layer; everything is f32[N, ...]."""

    def forward(self, x: Array, per_layer: Array, shared: dict[int, KeyValue], batch: Batch) -> Array:
        """Compute the output of this layer for x. A layer that owns keys and values stores them in `shared`."""
        attended = self.attention(self._norm(x, "input_layernorm"), shared, batch)
        x = x + self._norm(attended, "post_attention_layernorm")
        fed = self.feed_forward(self._norm(x, "pre_feedforward_layernorm"))
        x = x + self._norm(fed, "post_feedforward_layernorm")
        return (x + self.injected(x, per_layer)) * self._read(LAYER_SCALAR)

    def feed_forward(self, x: Array) -> Array:
        """The gated feed-forward network."""
        gate, up = (self._linear(x, f"mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self._linear(gated(gate, up), "mlp.down_proj")

    def injected(self, x: Array, per_layer: Array) -> Array:
        """The token's per-layer embedding f32[N, ple_size], gated by x."""
        x = gelu(self._linear(x, "per_layer_input_gate")) * per_layer
        return self._norm(self._linear(x, "per_layer_projection"), "post_per_layer_input_norm")


@dataclass(frozen=True, slots=True)
class Reference(DecoderReference[TextConfig]):
    """The model in the form that the quality gate needs (`converters.family.ReferenceModel`)."""

    activation_scales: Callable[[str], ActivationScales] = lambda _: ActivationScales()
    """Gives the scales to which the product with a tensor rounds its inputs and outputs; most checkpoints have none."""

    @property
    def text_vocab_size(self) -> int:
        """The number of ids that have a per-layer embedding: all of them, also those of images and sounds."""
        return self.model.config.vocab_size

    def hidden_states(
        self,
        sequences: Sequence[NDArray[np.int32]],
        *,
        progress: LayersDone | None = None,
        product: MatrixProduct | None = None,
    ) -> list[Array]:
        """See the function of this name; a given `product` multiplies without rounding."""
        product = product or rounding(partial(multiply, self.model), self.activation_scales)
        return hidden_states(self.model, sequences, progress=progress, product=product)

    def logits(self, hidden: Array, *, head: HeadRows | None = None) -> Array:
        """See the function of this name."""
        return logits(self.model, hidden, self.activation_scales("embed_tokens.weight"), head=head)


def forward(
    model: TextModel, sequences: Sequence[NDArray[np.int32]], *, progress: LayersDone | None = None
) -> list[Array]:
    """The logits for every token of each sequence: f32[T, vocab] each.

    T is the length of a sequence. UsageError for an empty sequence or a token id outside the vocabulary.
    """
    hidden = hidden_states(model, sequences, progress=progress)
    return Batch.of(sequences).split(logits(model, np.concatenate(hidden)))


def hidden_states(
    model: TextModel,
    sequences: Sequence[NDArray[np.int32]],
    *,
    progress: LayersDone | None = None,
    product: MatrixProduct | None = None,
) -> list[Array]:
    """Compute everything before the output matrix: f32[T, D] for each sequence, normed; `logits` takes any rows of it.

    `product` multiplies by the matrices; None for the model's own product.
    Memory: about 3·FFN numbers per token, plus the largest matrix of a layer and attention scores of [T, T].
    """
    config, multiplied = model.config, product or partial(multiply, model)
    ids, batch = checked_ids(config, sequences), Batch.of(sequences)
    x = embed(model, ids)
    per_layer = per_layer_embeddings(model, ids, x, multiplied)
    shared: dict[int, KeyValue] = {}
    for index in range(config.num_layers):
        x = Layer(model, index, multiplied).forward(x, per_layer[:, index], shared, batch)
        forget_unneeded(shared, config, after=index)
        if progress:
            progress(index + 1, config.num_layers)
    return batch.split(rms_norm(x, config.rms_norm_eps, model.read("norm.weight")))
