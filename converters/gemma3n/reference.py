"""The text model of Gemma 3n in NumPy, in float32 and without torch: the reference for bundles.

The tokens of all sequences are concatenated on the first axis. So each matrix is read once, used, and dropped (only a
layer's small router twice), and only one matrix is in memory at a time. N is the total number of tokens, D the hidden
size, S the number of AltUp's streams.
What all Gemma models share (norms, attention, per-layer embeddings) is in `converters/gemma/reference.py`.
Source: transformers 5.23 `models/gemma3n/modeling_gemma3n.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

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
    few_rows,
    forget_unneeded,
    gated,
    gelu,
    logits,
    multiply,
    per_layer_embeddings,
    rms_norm,
)
from converters.gemma3n.config.text import TextConfig, TextModel

MAGNITUDE_FLOOR = np.float32(1e-5)  # AltUp's minimum for the mean square of a projected stream


# --- components ------------------------------------------------------------------------------------------------------


def gaussian_top_k(gate: Array, sparsity: float) -> Array:
    """max(x - cutoff, 0), where cutoff is the quantile of a normal distribution with the row's mean and deviation.

    >>> gaussian_top_k(np.float32([[0, 0, 0, 8]]), 0.5).tolist()
    [[0.0, 0.0, 0.0, 6.0]]
    """
    quantile = np.float32(NormalDist().inv_cdf(sparsity))
    cutoff = gate.mean(-1, keepdims=True) + gate.std(-1, keepdims=True) * quantile
    kept: Array = np.maximum(gate - cutoff, 0)
    return kept


def at_magnitude_of(first: Array, other: Array) -> Array:
    """Scale each row of `other` to the root mean square of `first`."""
    wanted = np.sqrt(np.square(first).mean(-1, keepdims=True))
    found = np.sqrt(np.maximum(np.square(other).mean(-1, keepdims=True), MAGNITUDE_FLOOR))
    scaled: Array = other * wanted / found
    return scaled


# --- layer -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer(AttentionLayer[TextConfig]):
    """One decoder layer; streams are f32[N, S, D], everything else f32[N, ...]."""

    def forward(self, streams: Array, per_layer: Array, shared: dict[int, KeyValue], batch: Batch) -> Array:
        """Compute the streams after this layer. A layer that owns keys and values stores them in `shared`."""
        predicted = self.predict(streams)
        active = predicted[:, self.config.altup_active_index]
        normed = self._norm(active, "input_layernorm")
        attended = active + self._norm(self.attention(normed, shared, batch), "post_attention_layernorm")
        hidden = (attended + self.laurel(normed)) * np.float32(0.5**0.5)
        fed = self.feed_forward(self._norm(hidden, "pre_feedforward_layernorm"))
        fed = self._norm(fed, "post_feedforward_layernorm")
        return self.inject(self.correct(predicted, hidden + fed), per_layer)

    def predict(self, streams: Array) -> Array:
        """AltUp's prediction: each stream plus a mixture of all streams, which depends on the active one."""
        count = self.config.altup_num_inputs
        chosen = self._route(streams[:, self.config.altup_active_index])
        mixture = self._linear(chosen, "altup.prediction_coefs").reshape(-1, count, count)  # [N, to, from]
        return streams + mixture @ streams

    def _route(self, x: Array) -> Array:
        """AltUp's router: the coefficients of each token's mixture, f32[N, S] within (-1, 1)."""
        scaled = self._norm(x, "altup.router_norm") / np.float32(self.config.hidden_size)
        return np.tanh(self._linear(scaled, "altup.modality_router"))

    def laurel(self, x: Array) -> Array:
        """LAuReL: x plus the norm of a low-rank projection of it."""
        narrow = self._linear(x, "laurel.linear_left")
        return x + self._norm(self._linear(narrow, "laurel.linear_right"), "laurel.post_laurel_norm")

    def feed_forward(self, x: Array) -> Array:
        """The gated feed-forward network; in some layers, most of the gate is set to zero."""
        gate, up = (self._linear(x, f"mlp.{name}") for name in ("gate_proj", "up_proj"))
        sparsity = self.config.layers[self.index].sparsity
        sparse = partial(gaussian_top_k, sparsity=sparsity) if sparsity > 0 else None
        return self._linear(gated(gate, up, sparse), "mlp.down_proj")

    def correct(self, predicted: Array, active: Array) -> Array:
        """AltUp's correction: add the layer's change of the active stream, weighted, to every stream, in place."""
        weight = self._linear(self._route(active), "altup.correction_coefs") + 1
        innovation = active - predicted[:, self.config.altup_active_index]
        for some in few_rows(predicted):
            predicted[some] += weight[some, :, None] * innovation[some, None, :]
        return predicted

    def inject(self, streams: Array, per_layer: Array) -> Array:
        """Add the token's per-layer embedding, gated by the active stream, to every stream except the first.

        `per_layer`: f32[N, ple_size]. The streams are changed in place.
        """
        x = streams[:, self.config.altup_active_index]
        if self.config.altup_correct_scale:
            x = x * self._read("altup.correct_output_scale")
        x = gelu(self._linear(x, "per_layer_input_gate")) * per_layer
        x = self._norm(self._linear(x, "per_layer_projection"), "post_per_layer_input_norm")
        streams[:, 1:] += x[:, None]
        return streams


# --- model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference(DecoderReference[TextConfig]):
    """The model in the form that the quality gate needs (`converters.family.ReferenceModel`)."""

    @property
    def text_vocab_size(self) -> int:
        """The number of ids that stand for text; higher ids stand for images and sounds."""
        return min(self.model.config.vocab_size, self.model.config.ple_vocab_size)

    def hidden_states(
        self,
        sequences: Sequence[NDArray[np.int32]],
        *,
        progress: LayersDone | None = None,
        product: MatrixProduct | None = None,
    ) -> list[Array]:
        """See the function of this name."""
        return hidden_states(self.model, sequences, progress=progress, product=product)

    def logits(self, hidden: Array, *, head: HeadRows | None = None) -> Array:
        """See the function of this name."""
        return logits(self.model, hidden, head=head)


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

    Memory: about S·D + 3·FFN numbers per token, plus the largest matrix of a layer and attention scores of [T, T].
    """
    config, multiplied = model.config, product or partial(multiply, model)
    ids, batch = checked_ids(config, sequences), Batch.of(sequences)
    embeddings = embed(model, ids)
    per_layer = per_layer_embeddings(model, ids, embeddings, multiplied)
    streams = spread(model, embeddings, multiplied)
    shared: dict[int, KeyValue] = {}
    for index in range(config.num_layers):
        streams = Layer(model, index, multiplied).forward(streams, per_layer[:, index], shared, batch)
        forget_unneeded(shared, config, after=index)
        if progress:
            progress(index + 1, config.num_layers)
    return batch.split(rms_norm(merge(model, streams, multiplied), config.rms_norm_eps, model.read("norm.weight")))


def spread(model: TextModel, embeddings: Array, product: MatrixProduct) -> Array:
    """AltUp's streams f32[N, S, D]: the embedding, and projections of it, scaled to its magnitude."""
    streams = [embeddings]
    for j in range(model.config.altup_num_inputs - 1):
        streams.append(at_magnitude_of(embeddings, product(embeddings, f"altup_projections.{j}.weight")))
    return np.stack(streams, axis=1)


def merge(model: TextModel, streams: Array, product: MatrixProduct) -> Array:
    """Average the first stream and projections of the others, scaled to its magnitude: f32[N, D]."""
    first = streams[:, 0]
    total = first.copy()
    for j in range(model.config.altup_num_inputs - 1):
        total += at_magnitude_of(first, product(streams[:, j + 1], f"altup_unembed_projections.{j}.weight"))
    return total / np.float32(model.config.altup_num_inputs)
