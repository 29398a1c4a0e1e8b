"""A forward pass of the text decoder under construction, and its layers: the graph, and weights by name.

Values are f32[1, tokens, 1, ...].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

from converters.gemma.config import AnyConfig, Config, DecoderLayer, Heads
from converters.gemma.graphs.norms import Scale
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Value, Weight


@dataclass(frozen=True, slots=True)
class DecoderSize(Generic[AnyConfig]):
    """One size, which uses the weights of the widest model in the file.

    `layers[i]`: the widest model's index of this size's layer i. `ffn_segments[i]`: the widths of the pieces of its
    feed-forward network that this size runs.
    """

    config: AnyConfig
    layers: tuple[int, ...]
    ffn_segments: tuple[tuple[int, ...], ...]


def whole_size(config: Config) -> DecoderSize[Config]:
    """The only size of a file: every layer, with each feed-forward network in one piece."""
    segments = tuple((layer.ffn_size,) for layer in config.layers)
    return DecoderSize(config, tuple(range(config.num_layers)), segments)


@dataclass(frozen=True, slots=True)
class Step(Generic[AnyConfig]):
    """A pass of `tokens` tokens through one size of the widest model in the file."""

    size: DecoderSize[AnyConfig]
    widest: AnyConfig
    tokens: int
    graph: Graph = field(default_factory=Graph)

    @property
    def config(self) -> AnyConfig:
        return self.size.config

    def vector(self, tensor: str, size: int) -> Value:
        """A weight f32[size] of the checkpoint."""
        return self.graph.weight(Weight.whole(tensor, (size,)))

    def matrix(self, tensor: str, rows: int, columns: int) -> Value:
        """A weight f32[rows, columns] of the checkpoint."""
        return self.graph.weight(Weight.whole(tensor, (rows, columns)))

    def linear(self, x: Value, tensor: str, rows: int) -> Value:
        """x @ matrix.T with a matrix [rows, last axis of x] of the checkpoint."""
        return ops.fully_connected(x, self.matrix(tensor, rows, x.shape[-1]))

    def norm(self, x: Value, tensor: str, scale: Scale | None = None) -> Value:
        """RMS norm over the last axis, by the checkpoint's weight of its size; `scale`: x's own, unless given."""
        return (scale or self.scale(x)).rms_norm(x, self.vector(tensor, x.shape[-1]))

    def scale(self, x: Value) -> Scale:
        """The scale by which a norm divides the rows of x."""
        return Scale.of(x, self.config.rms_norm_eps)


@dataclass(frozen=True, slots=True)
class Layer(Generic[AnyConfig]):
    """Layer `index` of a step's size; tensors have the checkpoint's names without `layers.N.`."""

    step: Step[AnyConfig]
    index: int

    @property
    def config(self) -> AnyConfig:
        return self.step.config

    @property
    def own(self) -> DecoderLayer:
        return self.config.layers[self.index]

    @property
    def heads(self) -> Heads:
        return self.config.heads(self.own.attention)

    @property
    def graph(self) -> Graph:
        return self.step.graph

    @property
    def tokens(self) -> int:
        return self.step.tokens

    def name(self, tensor: str) -> str:
        """A tensor's name in the checkpoint, with the widest model's layer number."""
        return f"layers.{self.step.size.layers[self.index]}.{tensor}"

    def vector(self, tensor: str) -> Value:
        """A weight f32[hidden]."""
        return self.step.vector(self.name(tensor), self.config.hidden_size)

    def rows(self, tensor: str, rows: int, columns: int) -> Value:
        """A weight f32[1, 1, rows, columns], with one row for each stream or head."""
        return self.graph.weight(Weight.whole(self.name(tensor), (1, 1, rows, columns)))

    def matrix(self, tensor: str, rows: int, columns: int) -> Value:
        """A weight f32[rows, columns]."""
        return self.step.matrix(self.name(tensor), rows, columns)

    def linear(self, x: Value, tensor: str, rows: int) -> Value:
        """x @ matrix.T with a matrix [rows, last axis of x]."""
        return self.step.linear(x, self.name(tensor), rows)

    def norm(self, x: Value, tensor: str, scale: Scale | None = None) -> Value:
        """RMS norm over the last axis; `scale`: x's own, unless given."""
        return self.step.norm(x, self.name(tensor), scale)
