"""Plans the text groups: the decoder in every size, the token embedder, and the per-layer embedding table.

text_decoder.tflite has for each size `prefill_N` and `decode`, for shorter contexts `in_B_prefill_N` and `in_B_decode`,
and for speculative decoding `verify` and `in_B_verify`.
embedder.tflite has `embed_1` and `embed_N`. docs/formats/manifest.md has their inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol

from converters.gemma.config import Config, DecoderConfig
from converters.gemma.graphs.text.decoder_step import DecoderSize
from converters.gemma.graphs.text.embedder import embedder_graph
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.tensors import PER_LAYER_EMBEDDING, TOKEN_EMBEDDING
from converters.plan import GraphFiles, Plan, PlanRequest, ShardFiles
from converters.slices import Slice
from toolkit.base.activations import ActivationScales
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER, KvCache, SizeRecord, TextRecord
from toolkit.bundle.ple_shards import PleLayout
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Scheme, payload_bytes, scales_bytes
from toolkit.quant.source import PackedSource, TensorSource
from toolkit.tflite.graph import Graph, Signature, Weight
from toolkit.tflite.static_int8 import with_static_activations
from toolkit.tflite.writer import distinct_weights, layout_files


@dataclass(frozen=True, slots=True)
class PlannedSize(Generic[Config]):
    """A size of the bundle, and the prefix of its signatures."""

    slice: Slice
    prefix: str
    decoder: DecoderSize[Config]


class CodedTensors(PackedSource, Protocol):
    """Tensors that may be stored as codes, with the scales that the checkpoint states for activations."""

    def scheme(self, name: str) -> Scheme | None:
        """The scheme in which a tensor is stored; None for floats."""
        ...

    def activation_scales(self, name: str) -> ActivationScales:
        """The scales to which the product with a tensor rounds its inputs and outputs."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedText(Generic[Config]):
    """A text model whose sizes share their weights and KV caches."""

    config: Config
    """The config of the widest model."""
    source: TensorSource
    """The widest model's tensors, including those that graphs need in another form than the checkpoint's."""
    tensors: Mapping[str, tuple[int, ...]]
    """The names and shapes of the widest model's tensors in the checkpoint."""
    sizes: tuple[PlannedSize[Config], ...]
    """The default size first."""
    decode: Callable[[DecoderSize[Config], Config, CacheRows], Graph]
    """Builds the decode step of a size of the widest model."""
    prefill: Callable[[DecoderSize[Config], Config, CacheRows, int], Graph]
    """Builds a prefill of a given number of tokens."""
    verify: Callable[[DecoderSize[Config], Config, CacheRows, int], Graph]
    """Builds a step of speculative decoding of a given number of tokens; for one token, the decode step beside it."""
    codes: CodedTensors | None = None
    """The checkpoint, if its weights may be stored as codes."""


def plan_text(text: PlannedText[Config], request: PlanRequest) -> Plan:
    """The plan of a bundle without towers."""
    layouts = layout_files(_signatures(text, request), request.recipes["text"])
    used = {part.tensor for layout in layouts.values() for item in layout.placements for part in item.weight.parts}
    graphs = GraphFiles(layouts, text.source, text.codes, computed=used - text.tensors.keys())
    shards = _shards(text, request)
    parameters = {name: math.prod(shape) for name, shape in text.tensors.items()}
    embedding, per_layer = parameters.pop(TOKEN_EMBEDDING), parameters.pop(PER_LAYER_EMBEDDING)
    record = _text_record(request, text.config)
    return Plan(
        files=(graphs, shards),
        groups={
            "text": GroupDraft("text", (TEXT_DECODER,), sum(parameters.values()), record),
            "token_embedding": GroupDraft("token_embedding", (EMBEDDER,), embedding),
            "per_layer_embedding": GroupDraft("per_layer_embedding", shards.names, per_layer),
        },
        sizes={
            size.slice.name: SizeRecord(size.slice.layers, size.slice.ffn_sizes, size.prefix) for size in text.sizes
        },
        recipes={role: request.recipes[role] for role in ("text", "ple")},
    )


def step_bytes(text: PlannedText[Config], recipe: Recipe) -> int:
    """Bytes of weights and block scales that each token reads in the default size, stored by this recipe.

    RecipeError for a weight without a rule.
    """
    recipe = recipe.for_layers(text.config.layer_kinds)
    rows = CacheRows.fitting(text.config, 1, 1)  # the weights are those of every context
    step = Signature("decode", text.decode(text.sizes[0].decoder, text.config, rows))
    weights = [(weight.shape, recipe.scheme(weight.name)) for weight in distinct_weights([_stored(text, recipe, step)])]
    return sum(payload_bytes(*weight) + scales_bytes(*weight) for weight in weights)


def _signatures(text: PlannedText[Config], request: PlanRequest) -> Mapping[str, list[Signature]]:
    """The signatures of each file; small files first, so that a fault is found early."""
    counts = sorted({step.tokens for step in request.steps()})
    recipe = request.recipes["text"]
    decoder = [
        _stored(text, recipe, signature)
        for size in text.sizes
        for signature in _decoder_signatures(text, size, request)
    ]
    return {EMBEDDER: [Signature(f"embed_{n}", embedder_graph(text.config, n)) for n in counts], TEXT_DECODER: decoder}


def _decoder_signatures(
    text: PlannedText[Config], size: PlannedSize[Config], request: PlanRequest
) -> Iterator[Signature]:
    whole = CacheRows.fitting(text.config, request.context, request.prefill_sizes[-1])
    for step in request.steps():
        rows = whole if step.bucket is None else replace(whole, seen=step.bucket)
        if step.kind == "prefill":
            graph = text.prefill(size.decoder, text.config, rows, step.tokens)
        elif request.draft_tokens is None:
            graph = text.decode(size.decoder, text.config, rows)
        else:
            graph = text.verify(size.decoder, text.config, rows, step.tokens)
        yield Signature(step.name(size.prefix), graph)


def _stored(text: PlannedText[Config], recipe: Recipe, signature: Signature) -> Signature:
    """The signature as it is stored: with the checkpoint's scales for activations, if the recipe wants them."""
    if not recipe.static_activations or text.codes is None:
        return signature
    return with_static_activations(signature, text.codes.activation_scales, lambda tensor: text.tensors[tensor][0])


def _shards(text: PlannedText[Config], request: PlanRequest) -> ShardFiles:
    config = text.config
    scheme = _ple_scheme(request.recipes["ple"], text.tensors[PER_LAYER_EMBEDDING])
    stored = None if text.codes is None else text.codes.scheme(PER_LAYER_EMBEDDING)
    # Copied codes keep their scales, which are float32; codes that we choose get float16 scales.
    is_copied = stored is not None and (stored.dtype, stored.block_size) == (scheme.dtype, scheme.block_size)
    bits, scale_bits = scheme.element.bits, 32 if is_copied else 16
    layout = PleLayout(config.ple_vocab_size, config.num_layers, config.ple_size, bits, scale_bits)
    return ShardFiles(PER_LAYER_EMBEDDING, text.source, layout, scheme.search, request.shard_bytes, text.codes)


def _ple_scheme(recipe: Recipe, shape: tuple[int, ...]) -> Scheme:
    return recipe.plan([Weight.whole(PER_LAYER_EMBEDDING, shape)])[PER_LAYER_EMBEDDING]


def _text_record(request: PlanRequest, config: DecoderConfig) -> TextRecord:
    rows = CacheRows.fitting(config, request.context, request.prefill_sizes[-1])
    caches = [
        (rows.of(layer), config.heads(layer.attention).dim)
        for layer in map(config.layers.__getitem__, config.kv_layers)
    ]
    return TextRecord(
        vocab_size=config.vocab_size,
        ple_vocab_size=config.ple_vocab_size,
        hidden_size=config.hidden_size,
        ple_size=config.ple_size,
        num_layers=config.num_layers,
        context=request.context,
        prefill_sizes=request.prefill_sizes,
        context_buckets=request.context_buckets,
        prefill_buckets=request.prefill_buckets,
        final_logit_softcap=config.final_logit_softcap,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        stop_token_ids=tuple(sorted(set(config.eos_token_ids))),
        draft_tokens=request.draft_tokens,
        kv_caches=tuple(
            KvCache(
                f"kv_cache_k_{i}",
                f"kv_cache_v_{i}",
                (1, config.num_kv_heads, count, dim),
                None if count == request.context else config.sliding_window,
            )
            for i, (count, dim) in enumerate(caches)
        ),
    )
