"""The config of a decoder with per-layer embeddings that its shared components need; each family adds its own part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from toolkit.quant.source import TensorSource

Attention = Literal["sliding", "full"]


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of the layers of one type: their size, and their rotary embedding."""

    dim: int
    rope_theta: float
    rotated: int
    """How many of the dim / 2 pairs of elements rotate with the position: the first ones; the others stay fixed."""


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer; `kv_source`: the index of the layer whose KV cache it reads, None if it owns one."""

    attention: Attention
    ffn_size: int
    kv_source: int | None


@dataclass(frozen=True, slots=True)
class DecoderConfig(ABC):
    """A text decoder's config. `ple_`: per-layer embeddings, with hidden_size_per_layer_input and their vocabulary."""

    vocab_size: int
    ple_vocab_size: int
    hidden_size: int
    ple_size: int
    num_heads: int
    num_kv_heads: int
    sliding_window: int
    max_positions: int
    rms_norm_eps: float
    final_logit_softcap: float | None
    layers: tuple[DecoderLayer, ...]
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def layer_kinds(self) -> Mapping[str, tuple[int, ...]]:
        """The layers of each kind that rules of a recipe can name: `kv-donors`, whose KV caches other layers read."""
        return {"kv-donors": tuple(sorted({layer.kv_source for layer in self.layers if layer.kv_source is not None}))}

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """The layers that own a KV cache, in order."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.kv_source is None)

    @abstractmethod
    def heads(self, attention: Attention) -> Heads:
        """The attention heads of the layers of one type."""


AnyConfig = TypeVar("AnyConfig", bound=DecoderConfig, covariant=True)
Config = TypeVar("Config", bound=DecoderConfig)


class DecoderModel(TensorSource, Protocol[AnyConfig]):
    """The text model that the converter reads: a checkpoint, or a slice of one."""

    @property
    def config(self) -> AnyConfig: ...


def layer_kv_sources(attention: Sequence[Attention], num_kv_shared: int) -> tuple[int | None, ...]:
    """For each layer, the index of the layer whose cache it reads, or None if it owns one.

    Each shared layer reads the last owner of its own type (kv_sharing_modes); ValueError if there is none.

    >>> layer_kv_sources(["sliding", "full", "sliding", "sliding", "full"], 2)
    (None, None, None, 2, 1)
    """
    owners = len(attention) - num_kv_shared
    last_owner = {kind: index for index, kind in enumerate(attention[:owners])}
    missing = sorted(set(attention[owners:]) - last_owner.keys())
    if missing or owners < 1:
        raise ValueError(f"no layer before {owners} owns a cache of type {missing[0] if missing else attention[0]}")
    return (*(None for _ in range(owners)), *(last_owner[kind] for kind in attention[owners:]))
