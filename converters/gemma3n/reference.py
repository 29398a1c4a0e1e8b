"""The text model of Gemma 3n in NumPy, in float32 and without torch: the reference for bundles.

The tokens of all sequences are concatenated on the first axis. So each matrix is read once, used, and dropped (only a
layer's small router twice), and only one matrix is in memory at a time. N is the number of all tokens, D the hidden
size, S the number of AltUp's streams.
Source: transformers 5.23 `models/gemma3n/modeling_gemma3n.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from converters.family import LayersDone
from converters.gemma3n.config.text import LayerConfig, TextConfig, TextModel
from toolkit.base.errors import UsageError

Array = NDArray[np.float32]
KeyValue = tuple[Array, Array]
HEAD_ROWS = 8192  # rows of the output matrix processed at a time: 64 MiB at a hidden size of 2048
MAGNITUDE_FLOOR = np.float32(1e-5)  # AltUp's floor under the mean square of a projected stream


# --- blocks ----------------------------------------------------------------------------------------------------------


def rms_norm(x: Array, eps: float, weight: Array | None = None) -> Array:
    """x / sqrt(mean(x²) + eps), times the weight (not 1 + weight as in Gemma 2 and 3).

    >>> rms_norm(np.float32([2, -2]), 0.0, np.float32([1, 3])).tolist()
    [1.0, -3.0]
    """
    normed: Array = x * (np.square(x).mean(-1, keepdims=True) + np.float32(eps)) ** np.float32(-0.5)
    return normed if weight is None else normed * weight


def gelu(x: Array) -> Array:
    """GELU in its tanh approximation: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).

    >>> [round(float(y), 4) for y in gelu(np.float32([-1, 0, 1]))]
    [-0.1588, 0.0, 0.8412]
    """
    # In place: at these sizes each temporary would cost more than the arithmetic.
    result: Array = np.square(x)
    result *= np.float32(0.044715)
    result += 1
    result *= x
    result *= np.float32((2 / np.pi) ** 0.5)
    np.tanh(result, out=result)
    result += 1
    result *= x
    result *= np.float32(0.5)
    return result


def gaussian_top_k(gate: Array, sparsity: float) -> Array:
    """max(x - cutoff, 0), where cutoff is a quantile of the normal distribution with each row's mean and deviation.

    >>> gaussian_top_k(np.float32([[0, 0, 0, 8]]), 0.5).tolist()
    [[0.0, 0.0, 0.0, 6.0]]
    """
    quantile = np.float32(NormalDist().inv_cdf(sparsity))
    cutoff = gate.mean(-1, keepdims=True) + gate.std(-1, keepdims=True) * quantile
    kept: Array = np.maximum(gate - cutoff, 0)
    return kept


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; a score of -inf gets the weight 0.

    >>> softmax(np.float32([0, -np.inf, 0])).tolist()
    [0.5, 0.0, 0.5]
    """
    weights: Array = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights


def rotate(x: Array, positions: NDArray[np.int64], theta: float) -> Array:
    """Rotary embedding of x f32[N, heads, head_dim]: element j is rotated with element j + head_dim/2."""
    half = x.shape[-1] // 2
    # float32 throughout: at high positions, exact angles would differ from those the model was trained with.
    frequencies = 1 / np.float32(theta) ** (np.arange(half, dtype=np.float32) * 2 / np.float32(2 * half))
    angles = positions.astype(np.float32)[:, None, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def attend(query: Array, key: Array, value: Array, window: int | None) -> Array:
    """Causal attention within one sequence: query f32[T, heads, head_dim], key and value f32[T, kv_heads, head_dim].

    Scores are not scaled. With a window, a token attends to that many keys, including its own.
    """
    tokens, heads, _ = query.shape
    group = heads // key.shape[1]
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    hidden = (distance < 0) | (distance >= (window or tokens))
    result = np.empty_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // group].T
        scores[hidden] = -np.inf
        result[:, head] = softmax(scores) @ value[:, head // group]
    return result


def at_magnitude_of(first: Array, other: Array) -> Array:
    """Scale each row of `other` to the root mean square of `first`."""
    wanted = np.sqrt(np.square(first).mean(-1, keepdims=True))
    found = np.sqrt(np.maximum(np.square(other).mean(-1, keepdims=True), MAGNITUDE_FLOOR))
    scaled: Array = other * wanted / found
    return scaled


# --- layer -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """The half-open range of each sequence on the token axis."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, sequences: Sequence[NDArray[np.int32]]) -> Batch:
        """The ranges of sequences that are concatenated in this order."""
        ends = np.cumsum([len(sequence) for sequence in sequences]).tolist()
        return cls(tuple(zip([0, *ends[:-1]], ends, strict=True)))

    def positions(self) -> NDArray[np.int64]:
        """The position of each token in its own sequence: i64[N]."""
        return np.concatenate([np.arange(end - start) for start, end in self.ranges])

    def split(self, x: Array) -> list[Array]:
        """Split x f32[N, ...] into the rows of each sequence."""
        return [x[start:end] for start, end in self.ranges]


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; streams are f32[N, S, D], everything else f32[N, ...]."""

    model: TextModel
    index: int

    @property
    def config(self) -> TextConfig:
        return self.model.config

    @property
    def own(self) -> LayerConfig:
        return self.config.layers[self.index]

    def forward(self, streams: Array, per_layer: Array, shared: dict[int, KeyValue], batch: Batch) -> Array:
        """Compute the streams after this layer. A layer with its own keys and values stores them in `shared`."""
        predicted = self.predict(streams)
        active = predicted[:, self.config.altup_active_index]
        normed = self._norm(active, "input_layernorm")
        attended = active + self._norm(self.attention(normed, shared, batch), "post_attention_layernorm")
        hidden = (attended + self.laurel(normed)) * np.float32(0.5**0.5)
        fed = self.feed_forward(self._norm(hidden, "pre_feedforward_layernorm"))
        fed = self._norm(fed, "post_feedforward_layernorm")
        return self.inject(self.correct(predicted, hidden + fed), per_layer)

    def predict(self, streams: Array) -> Array:
        """AltUp's prediction: each stream plus a mixture of all, which depends on the active stream."""
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

    def attention(self, x: Array, shared: dict[int, KeyValue], batch: Batch) -> Array:
        source = self.own.kv_source
        if source is None:
            source, shared[self.index] = self.index, self.key_value(x, batch)
        query = self._norm(self._heads(x, "self_attn.q_proj"), "self_attn.q_norm")
        query = rotate(query, batch.positions(), self._theta())
        key, value = (batch.split(part) for part in shared[source])
        window = self.config.sliding_window if self.own.attention == "sliding" else None
        attended = [attend(*qkv, window) for qkv in zip(batch.split(query), key, value, strict=True)]
        return self._linear(np.concatenate(attended).reshape(len(x), -1), "self_attn.o_proj")

    def key_value(self, x: Array, batch: Batch) -> KeyValue:
        """Keys and values f32[N, kv_heads, head_dim] as in a cache: keys rotated, values normed without weight."""
        key = self._norm(self._heads(x, "self_attn.k_proj"), "self_attn.k_norm")
        value = rms_norm(self._heads(x, "self_attn.v_proj"), self.config.rms_norm_eps)
        return rotate(key, batch.positions(), self._theta()), value

    def _heads(self, x: Array, name: str) -> Array:
        return self._linear(x, name).reshape(len(x), -1, self.config.head_dim)

    def _theta(self) -> float:
        return self.config.rope_theta_sliding if self.own.attention == "sliding" else self.config.rope_theta_full

    def feed_forward(self, x: Array) -> Array:
        """The gated feed-forward network; in some layers most of the gate is set to zero."""
        gate = self._linear(x, "mlp.gate_proj")
        if self.own.sparsity > 0:
            gate = gaussian_top_k(gate, self.own.sparsity)
        gate = gelu(gate)
        gate *= self._linear(x, "mlp.up_proj")
        return self._linear(gate, "mlp.down_proj")

    def correct(self, predicted: Array, active: Array) -> Array:
        """AltUp's correction: add the layer's change of the active stream, weighted, to every stream."""
        weight = self._linear(self._route(active), "altup.correction_coefs") + 1
        innovation = active - predicted[:, self.config.altup_active_index]
        return predicted + weight[:, :, None] * innovation[:, None, :]

    def inject(self, streams: Array, per_layer: Array) -> Array:
        """Add the token's per-layer embedding, gated by the active stream, to every stream except the first.

        per_layer: f32[N, ple_size]. The streams are changed in place.
        """
        x = streams[:, self.config.altup_active_index]
        if self.config.altup_correct_scale:
            x = x * self._weight("altup.correct_output_scale")
        x = gelu(self._linear(x, "per_layer_input_gate")) * per_layer
        x = self._norm(self._linear(x, "per_layer_projection"), "post_per_layer_input_norm")
        streams[:, 1:] += x[:, None]
        return streams

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._weight(name).T

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.config.rms_norm_eps, self._weight(name))

    def _weight(self, name: str) -> Array:
        suffix = "" if name == "altup.correct_output_scale" else ".weight"
        return self.model.read(f"layers.{self.index}.{name}{suffix}")


# --- model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """The model in the form that the quality gate needs (`converters.family.ReferenceModel`)."""

    model: TextModel

    @property
    def vocab_size(self) -> int:
        """The length of the logits."""
        return self.model.config.vocab_size

    @property
    def text_vocab_size(self) -> int:
        """The number of ids that stand for text; further ids stand for images and sound."""
        return min(self.model.config.vocab_size, self.model.config.ple_vocab_size)

    def hidden_states(
        self, sequences: Sequence[NDArray[np.int32]], *, progress: LayersDone | None = None
    ) -> list[Array]:
        """See the function of this name."""
        return hidden_states(self.model, sequences, progress=progress)

    def logits(self, hidden: Array) -> Array:
        """See the function of this name."""
        return logits(self.model, hidden)


def forward(
    model: TextModel, sequences: Sequence[NDArray[np.int32]], *, progress: LayersDone | None = None
) -> list[Array]:
    """The logits for every token of each sequence: f32[T, vocab] each.

    UsageError for an empty sequence or a token id outside the vocabulary.
    """
    hidden = hidden_states(model, sequences, progress=progress)
    return Batch.of(sequences).split(logits(model, np.concatenate(hidden)))


def hidden_states(
    model: TextModel, sequences: Sequence[NDArray[np.int32]], *, progress: LayersDone | None = None
) -> list[Array]:
    """Compute all but the output matrix: f32[T, D] for each sequence, normed; pass any rows of it to `logits`.

    Memory: about S·D + 3·FFN numbers per token, plus the largest matrix of a layer and scores of [T, T].
    """
    config = model.config
    ids, batch = _checked_ids(config, sequences), Batch.of(sequences)
    embeddings = embed(model, ids)
    per_layer = per_layer_embeddings(model, ids, embeddings)
    streams = spread(model, embeddings)
    shared: dict[int, KeyValue] = {}
    for index in range(config.num_layers):
        streams = Layer(model, index).forward(streams, per_layer[:, index], shared, batch)
        needed = {layer.kv_source for layer in config.layers[index + 1 :]}
        shared = {source: states for source, states in shared.items() if source in needed}
        if progress:
            progress(index + 1, config.num_layers)
    return batch.split(rms_norm(merge(model, streams), config.rms_norm_eps, model.read("norm.weight")))


def logits(model: TextModel, hidden: Array) -> Array:
    """Multiply rows of `hidden_states` by the token embedding, with softcap: f32[n, D] to f32[n, vocab]."""
    config = model.config
    result = np.empty((len(hidden), config.vocab_size), np.float32)
    for start in range(0, config.vocab_size, HEAD_ROWS):
        end = min(start + HEAD_ROWS, config.vocab_size)
        np.matmul(hidden, model.read("embed_tokens.weight", rows=(start, end)).T, out=result[:, start:end])
    if config.final_logit_softcap is not None:
        cap = np.float32(config.final_logit_softcap)
        result = np.tanh(np.divide(result, cap, out=result), out=result)
        result *= cap
    return result


def embed(model: TextModel, ids: NDArray[np.int32]) -> Array:
    """The embedding of each token, f32[N, D]."""
    return _rows(model, "embed_tokens.weight", ids) * np.float32(model.config.hidden_size**0.5)


def per_layer_embeddings(model: TextModel, ids: NDArray[np.int32], embeddings: Array) -> Array:
    """The per-layer inputs of each token: its row of the table, and a projection of its embedding.

    f32[N, layers, ple_size]
    """
    config = model.config
    shape = (len(ids), config.num_layers, config.ple_size)
    # The ids of image and audio placeholders are outside the table and use row 0.
    rows = _rows(model, "embed_tokens_per_layer.weight", np.where(ids < config.ple_vocab_size, ids, 0))
    told = rows.reshape(shape) * np.float32(config.ple_size**0.5)
    projected = embeddings @ model.read("per_layer_model_projection.weight").T * np.float32(config.hidden_size**-0.5)
    norm = model.read("per_layer_projection_norm.weight")
    return (rms_norm(projected.reshape(shape), config.rms_norm_eps, norm) + told) * np.float32(0.5**0.5)


def spread(model: TextModel, embeddings: Array) -> Array:
    """AltUp's streams f32[N, S, D]: the embedding, and projections of it, scaled to its magnitude."""
    streams = [embeddings]
    for j in range(model.config.altup_num_inputs - 1):
        streams.append(at_magnitude_of(embeddings, embeddings @ model.read(f"altup_projections.{j}.weight").T))
    return np.stack(streams, axis=1)


def merge(model: TextModel, streams: Array) -> Array:
    """Average the first stream and projections of the others, scaled to its magnitude: f32[N, D]."""
    first = streams[:, 0]
    total = first.copy()
    for j in range(model.config.altup_num_inputs - 1):
        total += at_magnitude_of(first, streams[:, j + 1] @ model.read(f"altup_unembed_projections.{j}.weight").T)
    return total / np.float32(model.config.altup_num_inputs)


def _rows(model: TextModel, name: str, ids: NDArray[np.int32]) -> Array:
    """The table's row for each id, f32[N, width]; no other rows are read."""
    used, places = np.unique(ids, return_inverse=True)
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    return np.concatenate([model.read(name, rows=(int(run[0]), int(run[-1]) + 1)) for run in runs])[places]


def _checked_ids(config: TextConfig, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Concatenate all sequences: i32[N]."""
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise UsageError("sequence", found="no tokens")
    ids = np.concatenate(sequences)
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(outside):
        raise UsageError("token id", found=int(outside[0]), wanted=f"0 to {config.vocab_size - 1}")
    return ids
