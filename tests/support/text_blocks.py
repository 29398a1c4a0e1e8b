"""Blocks of the text decoder, each run by LiteRT from a graph of nothing else, over random models of odd sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
from numpy.typing import NDArray
from oracle import random_tensor

from converters.family import MatrixProduct
from converters.gemma.config import layer_kv_sources
from converters.gemma.graphs.text.decoder_step import Step, whole_size
from converters.gemma.reference import multiply
from converters.gemma3n import reference
from converters.gemma3n.config.text import LayerConfig, TextConfig
from converters.gemma3n.plan.text_source import TextSource
from converters.gemma3n.tensors import text_tensors
from toolkit.quant.scheme import Scheme
from toolkit.tflite.graph import Graph, Signature
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A text model whose tensors lie in memory."""

    config: TextConfig
    tensors: Mapping[str, Array]

    @classmethod
    def of(cls, config: TextConfig, seed: int = 0) -> RandomModel:
        return cls(config, {name: random_tensor(name, shape, seed) for name, shape in text_tensors(config).items()})

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> Array:
        part = self.tensors[name][slice(*rows) if rows else slice(None)]
        return part[..., slice(*columns)] if columns else part


def _config(
    kinds: str, sparsity: Sequence[float], shared: int, *, ffn: Sequence[int], **numbers: int | float | bool | None
) -> TextConfig:
    """Kinds: s for each sliding layer, f for each full one."""
    attention = [{"s": "sliding", "f": "full"}[kind] for kind in kinds]
    sources = layer_kv_sources(attention, shared)  # type: ignore[arg-type]
    layers = tuple(LayerConfig(*layer) for layer in zip(attention, ffn, sources, sparsity, strict=True))  # type: ignore[arg-type]
    config = TextConfig(
        vocab_size=41, ple_vocab_size=37, hidden_size=11, ple_size=5, num_heads=3, num_kv_heads=1, head_dim=6,
        sliding_window=3, max_positions=64, rms_norm_eps=1e-6, rope_theta_full=1e6, rope_theta_sliding=1e4,
        laurel_rank=3, altup_num_inputs=4, altup_active_index=0, altup_correct_scale=True, final_logit_softcap=30.0,
        layers=layers, bos_token_id=2, eos_token_ids=(1,), pad_token_id=0,
    )  # fmt: skip
    return replace(config, **numbers)  # type: ignore[arg-type]


MODELS: Mapping[str, RandomModel] = {
    "one key head": RandomModel.of(_config("sfsf", (0.9, 0.5, 0.0, 0.0), 2, ffn=(19, 13, 7, 23))),
    "two key heads": RandomModel.of(
        _config(
            "ffsssf",
            (0.0, 0.95, 0.8, 0.0, 0.0, 0.6),
            2,
            ffn=(9, 21, 15, 5, 11, 17),
            hidden_size=14,
            num_heads=6,
            num_kv_heads=2,
            head_dim=4,
            sliding_window=5,
            altup_num_inputs=3,
            altup_active_index=1,
            laurel_rank=2,
            ple_size=3,
        ),
        seed=1,
    ),
    "one layer": RandomModel.of(
        _config(
            "s",
            (0.7,),
            0,
            ffn=(27,),
            hidden_size=7,
            num_heads=2,
            num_kv_heads=2,
            head_dim=10,
            altup_num_inputs=2,
            altup_correct_scale=False,
            final_logit_softcap=None,
            rms_norm_eps=1e-3,
        ),
        seed=2,
    ),
}
"""Odd sizes; one and two key heads, sparse and dense layers, shared and own caches, other numbers of streams."""

LAYERS = [(name, index) for name, model in MODELS.items() for index in range(model.config.num_layers)]
"""Every layer of every model."""


def whole(model: RandomModel, tokens: int) -> Step[TextConfig]:
    """A pass of `tokens` tokens through all of a model."""
    return Step(whole_size(model.config), model.config, tokens)


def product_of(model: RandomModel) -> MatrixProduct:
    """Multiplies by the model's matrices."""
    return partial(multiply, model)


def layer_of(model: RandomModel, index: int) -> reference.Layer:
    """A layer of the NumPy reference."""
    return reference.Layer(model, index, product_of(model))


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def run(directory: Path, graph: Graph, model: RandomModel, inputs: Inputs) -> dict[str, Array]:
    """Every output of a graph, its weights in float32."""
    return Compiled(directory, {"block": graph}, model)("block", inputs)


class Compiled:
    """Graphs in one file, opened by LiteRT."""

    def __init__(self, directory: Path, graphs: Mapping[str, Graph], model: RandomModel) -> None:
        signatures = [Signature(name, graph) for name, graph in graphs.items()]
        schemes = {weight.name: Scheme("f32") for weight in distinct_weights(signatures)}
        path = directory / "block.tflite"
        write_tflite(path, layout_tflite(signatures, schemes), TextSource(model, model.config))
        self._interpreter = Interpreter(str(path))

    def __call__(self, signature: str, inputs: Inputs) -> dict[str, Array]:
        result: dict[str, Array] = self._interpreter.get_signature_runner(signature)(**inputs)
        return result


def assert_close(found: Array, wanted: Array, *, atol: float = 2e-5) -> None:
    """Equal but for rounding in float32."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol)


BLOCKED = np.float32(-0.7 * np.finfo(np.float32).max)
"""What callers put into a mask for a key that a token may not see."""


def causal_mask(positions: NDArray[np.int32], rows: int) -> Array:
    """A caller's mask over rows that are positions: f32[1, 1, tokens, rows]."""
    return np.where(np.arange(rows) <= positions[:, None], np.float32(0), BLOCKED)[None, None]


def cache_inputs(graph: Graph) -> dict[str, Array]:
    """Random numbers in every cache of a graph: what no token has written must not be seen."""
    return {name: numbers(*value.shape) for name, value in graph.inputs.items() if name.startswith("kv_cache")}


def rows_of(model: RandomModel, ids: NDArray[np.int32]) -> Array:
    """Per-layer embeddings as a runtime looks them up, times the root of ple_size: f32[tokens, layers, ple_size]."""
    config = model.config
    rows = model.tensors["embed_tokens_per_layer.weight"][np.where(ids < config.ple_vocab_size, ids, 0)]
    return rows.reshape(len(ids), config.num_layers, config.ple_size) * np.float32(config.ple_size**0.5)
