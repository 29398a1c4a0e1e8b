"""From a checkpoint to a bundle: sizes, graphs, recipes, then each group's weights streamed into its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.text.decoder import decode_graph, prefill_graph
from converters.gemma3n.graphs.text.decoder_step import Size
from converters.gemma3n.graphs.text.embedder import embedder_graph
from converters.gemma3n.graphs.text.kv_cache import CacheRows
from converters.gemma3n.groups import PER_LAYER_EMBEDDING, TOKEN_EMBEDDING, text_tensors
from converters.gemma3n.plan.audio import open_audio
from converters.gemma3n.plan.tower import Tower
from converters.gemma3n.plan.vision import open_vision
from converters.gemma3n.sizes.elastic import Elastic, combine
from converters.gemma3n.sizes.matformer import Slice, SlicedCheckpoint
from converters.huggingface.prompt_files import read_prompt_files
from toolkit.base.errors import UsageError
from toolkit.base.files import Advance, BackgroundHasher, Progress, require_room
from toolkit.bundle.manifest import (
    EMBEDDER,
    TEXT_DECODER,
    AudioRecord,
    CheckpointRecord,
    KvCache,
    Manifest,
    QuantRecord,
    RuleRecord,
    SizeRecord,
    TextRecord,
    VisionRecord,
    signature_name,
)
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES, PleLayout, write_ple_shards
from toolkit.bundle.write import BundleDraft, GroupDraft, require_bundle_or_nothing, write_bundle
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Scheme
from toolkit.tflite.graph import Signature, Weight
from toolkit.tflite.writer import TfliteLayout, layout_files, write_tflites

DEFAULT_CONTEXT = 4096
DEFAULT_PREFILL_SIZES = (16, 64)  # beyond 64 a CPU gains some percent at most, and arenas and rings grow
SMALLEST_BUCKET = 512
BUCKET_FACTOR = 4  # LiteRT keeps some 10 MB of each signature of a real size, more than closer buckets would save
SMALLEST_PREFILL_BUCKET = 4096  # attention over fewer rows is some percent of a prefill of a real size
_MANIFEST_BYTES = 1 << 20  # E4B's in float32 takes 0.2 MB; the rest is what a file system adds to some files
SMALLEST_PREFILL_LIMIT = 16  # LiteRT-LM fails where the room left is smaller than the smallest prefill


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to make of a checkpoint.

    `sizes`: empty is the whole checkpoint; the first is the default one. `prefill_sizes`: tokens of each prefill; empty
    is those of DEFAULT_PREFILL_SIZES that fit the context.
    `shard_bytes`: at most so much in a PLE shard. `vision_recipe`, `audio_recipe`: None leaves the group out.
    `audio_seconds`: the longest sound of each audio encoder; empty is 1, 5, 10 and 30 s as far as the tower hears them.
    """

    checkpoint: Checkpoint
    output: Path
    recipe: Recipe
    ple_recipe: Recipe
    sizes: tuple[Slice, ...] = ()
    context: int = DEFAULT_CONTEXT
    prefill_sizes: tuple[int, ...] = ()
    shard_bytes: int = DEFAULT_SHARD_BYTES
    vision_recipe: Recipe | None = None
    audio_recipe: Recipe | None = None
    audio_seconds: tuple[float, ...] = ()
    workers: int = 2


@dataclass(frozen=True, slots=True)
class _Towers:
    """Those of a request; None is one that the bundle does without."""

    vision: Tower[VisionRecord] | None
    audio: Tower[AudioRecord] | None

    @property
    def layouts(self) -> Mapping[str, TfliteLayout]:
        """Their files by name."""
        return {name: layout for tower in self.by_group.values() for name, layout in tower.layouts.items()}

    @property
    def by_group(self) -> Mapping[str, Tower[VisionRecord] | Tower[AudioRecord]]:
        """Those that are there."""
        named = {"vision": self.vision, "audio": self.audio}
        return {group: tower for group, tower in named.items() if tower is not None}


def convert(
    request: ConvertRequest, *, accept: Callable[[Path], None] | None = None, progress: Progress | None = None
) -> Manifest:
    """Write the bundle `request.output`, whole or not at all.

    `accept` sees the finished files before they get their final name and raises to refuse them: the quality gate.
    `progress` gets the weight bytes written, without scales, and all that will be.
    """
    checkpoint = request.checkpoint
    if not request.prefill_sizes:
        fitting = tuple(n for n in DEFAULT_PREFILL_SIZES if n <= request.context)
        request = replace(request, prefill_sizes=fitting)
    _check_lengths(request)
    require_bundle_or_nothing(request.output)
    elastic = combine(checkpoint.config, request.sizes or (checkpoint.default_slice,))
    towers = _open_towers(request)
    text = _layouts(request, elastic)
    layouts = [*text.values(), *towers.layouts.values()]
    ple = _ple_layout(request, elastic.config)
    prompt_files = read_prompt_files(checkpoint.path, checkpoint.config.vocab_size)
    weights_bytes = ple.total_bytes(request.shard_bytes) + sum(file.size_bytes for file in layouts)
    require_room(request.output, weights_bytes + prompt_files.bytes + _MANIFEST_BYTES)
    source = SlicedCheckpoint(checkpoint, elastic.widest)
    total = ple.vocab_size * ple.code_bytes + sum(file.weight_bytes for file in layouts)
    advance = Advance(total, progress)

    def fill(directory: Path, finished: Callable[[Path], None]) -> BundleDraft:
        prompt_files.copy_to(directory)
        files = {directory / name: layout for name, layout in text.items()}
        write_tflites(files, source, workers=request.workers, progress=advance)
        for path in files:
            finished(path)
        shards = write_ple_shards(
            directory,
            source,
            PER_LAYER_EMBEDDING,
            ple,
            shard_bytes=request.shard_bytes,
            search=_ple_scheme(request, elastic.config).search,
            workers=request.workers,
            progress=advance,
            finished=finished,
        )
        for tower in towers.by_group.values():
            tower.write(directory, workers=request.workers, progress=advance)
            for name in tower.layouts:
                finished(directory / name)
        fingerprint = checkpoint.fingerprint()
        checkpoint.require_unchanged()
        return _draft(request, elastic, shards, towers, fingerprint)

    with BackgroundHasher() as hasher:
        return write_bundle(request.output, partial(fill, finished=hasher.add), accept=accept, hasher=hasher)


def _check_lengths(request: ConvertRequest) -> None:
    """The context fits the model, the prefills fit the context, and one of them fits the last few positions."""
    limit = request.checkpoint.config.max_positions
    if not 1 < request.context <= limit:
        raise UsageError("context", found=request.context, wanted=f"2 to {limit} positions")
    sizes = request.prefill_sizes
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 2:
        raise UsageError("prefill sizes", found=list(sizes), wanted="rising numbers of tokens from 2 on")
    if sizes[0] > SMALLEST_PREFILL_LIMIT:
        raise UsageError("smallest prefill size", found=sizes[0], wanted=f"at most {SMALLEST_PREFILL_LIMIT} tokens")
    if sizes[-1] > request.context:
        raise UsageError("largest prefill size", found=sizes[-1], wanted=f"at most the context, {request.context}")


def _open_towers(request: ConvertRequest) -> _Towers:
    """Configs read, tensors checked and files laid out; CheckpointError for a tower that the checkpoint lacks."""
    checkpoint = request.checkpoint
    return _Towers(
        None if request.vision_recipe is None else open_vision(checkpoint, request.vision_recipe),
        None if request.audio_recipe is None else open_audio(checkpoint, request.audio_recipe, request.audio_seconds),
    )


def _layouts(request: ConvertRequest, elastic: Elastic) -> Mapping[str, TfliteLayout]:
    """Every file of the text groups, laid out: small files first, so that a fault shows early."""
    widest, counts = elastic.config, (1, *request.prefill_sizes)
    decoder = [
        signature
        for prefix, size in zip(elastic.prefixes, elastic.sizes, strict=True)
        for signature in _decoder_signatures(request, prefix, size, widest)
    ]
    embedder = [Signature(f"embed_{n}", embedder_graph(widest, n)) for n in counts]
    return layout_files({EMBEDDER: embedder, TEXT_DECODER: decoder}, request.recipe)


def _ple_scheme(request: ConvertRequest, config: TextConfig) -> Scheme:
    table = Weight.whole(PER_LAYER_EMBEDDING, text_tensors(config)[PER_LAYER_EMBEDDING])
    return request.ple_recipe.plan([table])[PER_LAYER_EMBEDDING]


def _ple_layout(request: ConvertRequest, config: TextConfig) -> PleLayout:
    bits = {"int4": 4, "int8": 8, "f32": 32}[_ple_scheme(request, config).dtype]
    return PleLayout(config.ple_vocab_size, config.num_layers, config.ple_size, bits)


def _decoder_signatures(request: ConvertRequest, prefix: str, size: Size, widest: TextConfig) -> Iterator[Signature]:
    whole = CacheRows.fitting(widest, request.context, request.prefill_sizes[-1])
    buckets = context_buckets(request.context)
    for bucket in (None, *prefill_buckets(buckets, request.prefill_sizes[-1])):
        rows = whole if bucket is None else replace(whole, seen=bucket)
        for n in request.prefill_sizes:
            yield Signature(signature_name(prefix, n, bucket), prefill_graph(size, widest, rows, n))
    for bucket in (None, *buckets):
        rows = whole if bucket is None else replace(whole, seen=bucket)
        yield Signature(signature_name(prefix, 1, bucket), decode_graph(size, widest, rows))


def context_buckets(context: int) -> tuple[int, ...]:
    """Shorter contexts that get signatures of their own, so that a long one costs only what is used of it.

    >>> context_buckets(8192), context_buckets(4096), context_buckets(1024)
    ((512, 2048), (512,), ())
    """
    buckets = []
    bucket = SMALLEST_BUCKET
    while bucket * BUCKET_FACTOR <= context:
        buckets.append(bucket)
        bucket *= BUCKET_FACTOR
    return tuple(buckets)


def prefill_buckets(buckets: tuple[int, ...], largest_prefill: int) -> tuple[int, ...]:
    """Those of them in which prefills have signatures too: a prefill hardly feels the rows of a shorter context.

    >>> prefill_buckets((512, 2048, 8192), 128)
    (8192,)
    """
    return tuple(bucket for bucket in buckets if bucket >= max(SMALLEST_PREFILL_BUCKET, largest_prefill))


def _draft(
    request: ConvertRequest, elastic: Elastic, shards: tuple[str, ...], towers: _Towers, fingerprint: str
) -> BundleDraft:
    checkpoint = request.checkpoint
    slices = zip(elastic.slices, elastic.prefixes, strict=True)
    tensors = {name: math.prod(shape) for name, shape in text_tensors(elastic.config).items()}
    embedding, per_layer = tensors.pop(TOKEN_EMBEDDING), tensors.pop(PER_LAYER_EMBEDDING)
    recipes = {"text": request.recipe, "ple": request.ple_recipe}
    recipes |= {group: tower.recipe for group, tower in towers.by_group.items()}
    return BundleDraft(
        architecture=checkpoint.architecture,
        checkpoint=CheckpointRecord(checkpoint.path.resolve().name, fingerprint),
        text=_text_record(request, elastic.config),
        vision=None if towers.vision is None else towers.vision.record,
        audio=None if towers.audio is None else towers.audio.record,
        sizes={part.name: SizeRecord(part.layers, part.ffn_sizes, prefix) for part, prefix in slices},
        default_size=elastic.slices[0].name,
        quant={role: _quant_record(recipe) for role, recipe in recipes.items()},
        groups={
            "text": GroupDraft((TEXT_DECODER,), sum(tensors.values())),
            "token_embedding": GroupDraft((EMBEDDER,), embedding),
            "per_layer_embedding": GroupDraft(shards, per_layer),
            **{name: GroupDraft(tuple(t.layouts), t.parameters) for name, t in towers.by_group.items()},
        },
    )


def _text_record(request: ConvertRequest, config: TextConfig) -> TextRecord:
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
        context_buckets=context_buckets(request.context),
        prefill_buckets=prefill_buckets(context_buckets(request.context), request.prefill_sizes[-1]),
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


def _quant_record(recipe: Recipe) -> QuantRecord:
    rules = (RuleRecord(r.match, r.scheme.dtype, r.scheme.block_size, r.scheme.search) for r in recipe.rules)
    return QuantRecord(recipe.name, tuple(rules))
