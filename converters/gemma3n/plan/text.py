"""Plans the text groups: the decoder in every size, the token embedder, and the per-layer embedding table.

text_decoder.tflite: for each size `prefill_N` and `decode`, for shorter contexts `in_B_prefill_N` and `in_B_decode`.
embedder.tflite: `embed_1` and `embed_N`. docs/formats/manifest.md has their inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from converters.gemma.graphs.text.decoder_step import DecoderSize
from converters.gemma.graphs.text.embedder import embedder_graph
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.tensors import PER_LAYER_EMBEDDING, TOKEN_EMBEDDING
from converters.gemma3n.checkpoint import Gemma3nTensors
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.text.decoder import decode_graph, prefill_graph
from converters.gemma3n.plan.text_source import TextSource
from converters.gemma3n.sizes.elastic import Elastic, combine
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from converters.gemma3n.tensors import text_tensors
from converters.plan import GraphFiles, Plan, PlanRequest, ShardFiles
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER, KvCache, SizeRecord, TextRecord, signature_name
from toolkit.bundle.ple_shards import PleLayout
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import TensorSource
from toolkit.tflite.graph import Signature, Weight
from toolkit.tflite.writer import layout_files


def plan_text(checkpoint: Gemma3nTensors, request: PlanRequest) -> Plan:
    """The plan of a bundle without towers; SliceError if the sizes cannot share their weights and caches."""
    elastic = combine(checkpoint.config, request.slices)
    source = SlicedCheckpoint(checkpoint, elastic.widest)
    layouts = layout_files(_signatures(request, elastic), request.recipes["text"])
    graphs = GraphFiles(layouts, TextSource(source, elastic.config))
    shards = _shards(request, elastic.config, source)
    tensors = {name: math.prod(shape) for name, shape in text_tensors(elastic.config).items()}
    embedding, per_layer = tensors.pop(TOKEN_EMBEDDING), tensors.pop(PER_LAYER_EMBEDDING)
    slices = zip(elastic.slices, elastic.prefixes, strict=True)
    return Plan(
        files=(graphs, shards),
        groups={
            "text": GroupDraft("text", (TEXT_DECODER,), sum(tensors.values()), _text_record(request, elastic.config)),
            "token_embedding": GroupDraft("token_embedding", (EMBEDDER,), embedding),
            "per_layer_embedding": GroupDraft("per_layer_embedding", shards.names, per_layer),
        },
        sizes={slice_.name: SizeRecord(slice_.layers, slice_.ffn_sizes, prefix) for slice_, prefix in slices},
        recipes={role: request.recipes[role] for role in ("text", "ple")},
    )


def _signatures(request: PlanRequest, elastic: Elastic) -> Mapping[str, list[Signature]]:
    """The signatures of each file; small files first, so that a fault is found early."""
    widest, counts = elastic.config, (1, *request.prefill_sizes)
    decoder = [
        signature
        for prefix, size in zip(elastic.prefixes, elastic.sizes, strict=True)
        for signature in _decoder_signatures(request, prefix, size, widest)
    ]
    return {EMBEDDER: [Signature(f"embed_{n}", embedder_graph(widest, n)) for n in counts], TEXT_DECODER: decoder}


def _decoder_signatures(
    request: PlanRequest, prefix: str, size: DecoderSize[TextConfig], widest: TextConfig
) -> Iterator[Signature]:
    whole = CacheRows.fitting(widest, request.context, request.prefill_sizes[-1])
    for tokens, bucket in request.steps():
        rows = whole if bucket is None else replace(whole, seen=bucket)
        name = signature_name(prefix, tokens, bucket)
        if tokens == 1:
            yield Signature(name, decode_graph(size, widest, rows))
        else:
            yield Signature(name, prefill_graph(size, widest, rows, tokens))


def _shards(request: PlanRequest, config: TextConfig, source: TensorSource) -> ShardFiles:
    scheme = _ple_scheme(request.recipes["ple"], config)
    layout = PleLayout(config.ple_vocab_size, config.num_layers, config.ple_size, scheme.element.bits)
    return ShardFiles(PER_LAYER_EMBEDDING, source, layout, scheme.search, request.shard_bytes)


def _ple_scheme(recipe: Recipe, config: TextConfig) -> Scheme:
    table = Weight.whole(PER_LAYER_EMBEDDING, text_tensors(config)[PER_LAYER_EMBEDDING])
    return recipe.plan([table])[PER_LAYER_EMBEDDING]


def _text_record(request: PlanRequest, config: TextConfig) -> TextRecord:
    rows = CacheRows.fitting(config, request.context, request.prefill_sizes[-1])
    caches = [rows.of(config.layers[owner]) for owner in config.kv_layers]
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
        kv_caches=tuple(
            KvCache(
                f"kv_cache_k_{i}",
                f"kv_cache_v_{i}",
                (1, config.num_kv_heads, count, config.head_dim),
                None if count == request.context else config.sliding_window,
            )
            for i, count in enumerate(caches)
        ),
    )
