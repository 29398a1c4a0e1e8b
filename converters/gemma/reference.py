"""What the forward passes of the Gemma models share, in NumPy, in float32 and without torch.

N is the total number of tokens, T that of one sequence, D the hidden size.
Source: transformers 5.23 `models/gemma3n/modeling_gemma3n.py`, 5.24 `models/gemma4/modeling_gemma4.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from converters.family import HeadRows, MatrixProduct
from converters.gemma.config import AnyConfig, DecoderConfig, DecoderLayer, DecoderModel, Heads
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import UsageError
from toolkit.quant.int8_activations import static_int8

Array = NDArray[np.float32]
KeyValue = tuple[Array, Array]
_FEW = 1 << 17  # elements: half a megabyte
HEAD_ROWS = 8192  # rows of the output matrix processed at a time: 64 MiB at a hidden size of 2048


# --- components ------------------------------------------------------------------------------------------------------


def few_rows(x: Array) -> Iterator[slice]:
    """Some rows of f32[rows, ...] at a time, whose temporary arrays stay in the processor's cache."""
    step = max(1, _FEW * len(x) // max(1, x.size))
    yield from (slice(start, start + step) for start in range(0, len(x), step))


def rms_norm(x: Array, eps: float, weight: Array | None = None) -> Array:
    """x / sqrt(mean(x²) + eps), times the weight (not 1 + weight as in Gemma 2 and 3).

    >>> rms_norm(np.float32([2, -2]), 0.0, np.float32([1, 3])).tolist()
    [1.0, -3.0]
    """
    rows = x.reshape(-1, x.shape[-1])
    normed = np.empty(rows.shape, np.float32)
    for some in few_rows(rows):
        part = rows[some]
        np.multiply(part, (np.square(part).mean(-1, keepdims=True) + np.float32(eps)) ** np.float32(-0.5), normed[some])
        if weight is not None:
            normed[some] *= weight
    return normed.reshape(x.shape)


def gelu(x: Array) -> Array:
    """GELU in its tanh approximation: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).

    >>> [round(float(y), 4) for y in gelu(np.float32([-1, 0, 1]))]
    [-0.1588, 0.0, 0.8412]
    """
    # In place, because at these sizes each temporary array would cost more than the arithmetic.
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


def gated(gate: Array, up: Array, sparse: Callable[[Array], Array] | None = None) -> Array:
    """gelu(sparse(gate)) * up, in place of `gate`."""
    for some in few_rows(gate):
        np.multiply(gelu(gate[some] if sparse is None else sparse(gate[some])), up[some], out=gate[some])
    return gate


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, in place; a score of -inf gets the weight 0.

    >>> softmax(np.float32([0, -np.inf, 0])).tolist()
    [0.5, 0.0, 0.5]
    """
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores


def rotate(x: Array, positions: NDArray[np.int64], heads: Heads) -> Array:
    """Rotary embedding of x f32[N, heads, head_dim]: elements j < `rotated` and j + head_dim/2 rotate together."""
    half = x.shape[-1] // 2
    # float32 throughout: at high positions, exact angles would differ from those that the model was trained with.
    frequencies = 1 / np.float32(heads.rope_theta) ** (np.arange(half, dtype=np.float32) * 2 / np.float32(2 * half))
    frequencies[heads.rotated :] = 0
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
    mask = np.where((distance < 0) | (distance >= (window or tokens)), np.float32(-np.inf), np.float32(0))
    result = np.empty_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // group].T
        scores += mask
        result[:, head] = softmax(scores) @ value[:, head // group]
    return result


def multiply(model: DecoderModel[DecoderConfig], x: Array, tensor: str) -> Array:
    """x @ W.T: f32[N, in] to f32[N, out]."""
    return x @ model.read(tensor).T


def rounding(product: MatrixProduct, scales_of: Callable[[str], ActivationScales]) -> MatrixProduct:
    """The product with inputs and outputs rounded to the scales that the checkpoint states for each tensor."""

    def product_of_rounded(x: Array, tensor: str) -> Array:
        scales = scales_of(tensor)
        return static_int8(product(static_int8(x, scales.input), tensor), scales.output)

    return product_of_rounded


# --- attention -------------------------------------------------------------------------------------------------------


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
class AttentionLayer(Generic[AnyConfig]):
    """The attention of a decoder layer, and access to the layer's tensors; everything is f32[N, ...]."""

    model: DecoderModel[AnyConfig]
    index: int
    product: MatrixProduct
    """Multiplies by a matrix of the model; see `ReferenceModel.hidden_states`."""

    @property
    def config(self) -> AnyConfig:
        return self.model.config

    @property
    def layer(self) -> DecoderLayer:
        return self.config.layers[self.index]

    @property
    def heads(self) -> Heads:
        return self.config.heads(self.layer.attention)

    def attention(self, x: Array, shared: dict[int, KeyValue], batch: Batch) -> Array:
        source = self.layer.kv_source
        if source is None:
            source, shared[self.index] = self.index, self.key_value(x, batch)
        query = self._norm(self._heads(x, "self_attn.q_proj"), "self_attn.q_norm")
        query = rotate(query, batch.positions(), self.heads)
        key, value = (batch.split(part) for part in shared[source])
        window = self.config.sliding_window if self.layer.attention == "sliding" else None
        attended = [attend(*qkv, window) for qkv in zip(batch.split(query), key, value, strict=True)]
        return self._linear(np.concatenate(attended).reshape(len(x), -1), "self_attn.o_proj")

    def key_value(self, x: Array, batch: Batch) -> KeyValue:
        """Keys and values f32[N, kv_heads, head_dim] as in a KV cache: keys rotated, values normed without a weight."""
        key = self._norm(self._heads(x, "self_attn.k_proj"), "self_attn.k_norm")
        value = rms_norm(self._heads(x, "self_attn.v_proj"), self.config.rms_norm_eps)
        return rotate(key, batch.positions(), self.heads), value

    def _heads(self, x: Array, name: str) -> Array:
        return self._linear(x, name).reshape(len(x), -1, self.heads.dim)

    def _linear(self, x: Array, name: str) -> Array:
        return self.product(x, f"layers.{self.index}.{name}.weight")

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.config.rms_norm_eps, self._read(f"{name}.weight"))

    def _read(self, name: str) -> Array:
        return self.model.read(f"layers.{self.index}.{name}")


# --- model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecoderReference(Generic[AnyConfig]):
    """What the reference models of all families share: access to their tensors by the models' own names."""

    model: DecoderModel[AnyConfig]

    @property
    def vocab_size(self) -> int:
        """The length of the logits."""
        return self.model.config.vocab_size

    @property
    def head(self) -> str:
        """The name of the token embedding, which is also the output matrix."""
        return "embed_tokens.weight"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        return self.model.shape(name)

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Array:
        """A tensor of the model, or a half-open range of its rows."""
        return self.model.read(name, rows)


def forget_unneeded(shared: dict[int, KeyValue], config: DecoderConfig, *, after: int) -> None:
    """Drop the keys and values that no layer after this one reads."""
    needed = {layer.kv_source for layer in config.layers[after + 1 :]}
    for source in shared.keys() - needed:
        del shared[source]


def logits(
    model: DecoderModel[DecoderConfig],
    hidden: Array,
    scales: ActivationScales | None = None,
    *,
    head: HeadRows | None = None,
) -> Array:
    """Multiply rows of `hidden_states` by the token embedding, with softcap: f32[n, D] to f32[n, vocab].

    `scales`: those that the checkpoint states for this product, if it states some. `head`: another matrix instead.
    """
    config, scales = model.config, scales or ActivationScales()
    hidden = static_int8(hidden, scales.input)
    result = np.empty((len(hidden), config.vocab_size), np.float32)
    for start in range(0, config.vocab_size, HEAD_ROWS):
        end = min(start + HEAD_ROWS, config.vocab_size)
        matrix = model.read("embed_tokens.weight", rows=(start, end)) if head is None else head(start, end)
        np.matmul(hidden, matrix.T, out=result[:, start:end])
    result = static_int8(result, scales.output)
    if config.final_logit_softcap is not None:
        cap = np.float32(config.final_logit_softcap)
        result = np.tanh(np.divide(result, cap, out=result), out=result)
        result *= cap
    return result


def embed(model: DecoderModel[DecoderConfig], ids: NDArray[np.int32]) -> Array:
    """The embedding of each token, f32[N, D]."""
    return rows_of(model, "embed_tokens.weight", ids) * np.float32(model.config.hidden_size**0.5)


def per_layer_embeddings(
    model: DecoderModel[DecoderConfig],
    ids: NDArray[np.int32],
    embeddings: Array,
    product: MatrixProduct,
) -> Array:
    """The per-layer inputs of each token, f32[N, layers, ple_size]: the sum of its row in the table and a projection of
    its embedding.
    """
    config = model.config
    shape = (len(ids), config.num_layers, config.ple_size)
    # The ids of image and audio placeholders are outside the table and use row 0.
    rows = rows_of(model, "embed_tokens_per_layer.weight", np.where(ids < config.ple_vocab_size, ids, 0))
    told = rows.reshape(shape) * np.float32(config.ple_size**0.5)
    projected = product(embeddings, "per_layer_model_projection.weight") * np.float32(config.hidden_size**-0.5)
    norm = model.read("per_layer_projection_norm.weight")
    return (rms_norm(projected.reshape(shape), config.rms_norm_eps, norm) + told) * np.float32(0.5**0.5)


def rows_of(model: DecoderModel[DecoderConfig], name: str, ids: NDArray[np.int32]) -> Array:
    """The table's row for each id, f32[N, width]; no other rows are read."""
    used, places = np.unique(ids, return_inverse=True)
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    return np.concatenate([model.read(name, rows=(int(run[0]), int(run[-1]) + 1)) for run in runs])[places]


def checked_ids(config: DecoderConfig, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Concatenate all sequences: i32[N]."""
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise UsageError("sequence", found="no tokens")
    ids = np.concatenate(sequences)
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(outside):
        raise UsageError("token id", found=int(outside[0]), wanted=f"0 to {config.vocab_size - 1}")
    return ids
