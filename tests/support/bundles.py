"""A bundle made by hand: real files, small enough to copy and break."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.weights import Weight, WeightPart
from toolkit.bundle.lock import Lock, LockedSize, locked_groups
from toolkit.bundle.manifest import (
    CHAT_TEMPLATE,
    EMBEDDER,
    TEXT_DECODER,
    TOKENIZER,
    TOWER_FILES,
    AudioRecord,
    CheckpointRecord,
    KvCache,
    QuantRecord,
    RuleRecord,
    SizeRecord,
    TextRecord,
    VisionRecord,
)
from toolkit.bundle.ple_shards import PleLayout, shard_name
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.bundle.write import GENERATOR, BundleDraft, GroupDraft
from toolkit.quant.packing import pack_codes
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import PackedRows
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

CONTEXT = 32

TEXT = TextRecord(
    vocab_size=40,
    ple_vocab_size=36,
    hidden_size=8,
    ple_size=4,
    num_layers=3,
    context=CONTEXT,
    prefill_sizes=(4, 8),
    context_buckets=(),
    prefill_buckets=(),
    final_logit_softcap=30.0,
    bos_token_id=2,
    pad_token_id=0,
    stop_token_ids=(1, 5),
    kv_caches=(KvCache("kv_cache_k_0", "kv_cache_v_0", (1, 1, CONTEXT, 4)),),
)

DRAFT = BundleDraft(
    architecture="Gemma3nForCausalLM",
    checkpoint=CheckpointRecord("handmade", "0123456789abcdef" * 4),
    sizes={"large": SizeRecord((0, 1, 2), (16, 16, 16), ""), "small": SizeRecord((0, 2), (8, 8), "small_")},
    default_size="large",
    quant={"text": QuantRecord("int8", (RuleRecord("*", "int8", None, "mse"),))},
    groups={
        "per_layer_embedding": GroupDraft("per_layer_embedding", (shard_name(0),), 36 * 12),
        "text": GroupDraft("text", (TEXT_DECODER, EMBEDDER), 1000, TEXT),
    },
)

VISION = VisionRecord(3, 37, 36, 36, 2, image_size=6, soft_tokens=4, feature_size=5)
AUDIO = AudioRecord(
    *(4, 39, 38, 38, 2),
    frame_lengths=(4, 7),
    mel_bins=3,
    frames_per_token=4,
    soft_tokens=2,
    feature_size=6,
    padding_token_id=39,
)

TOWERS_DRAFT = replace(
    DRAFT,
    quant={**DRAFT.quant, "vision": QuantRecord("f32", ()), "audio": QuantRecord("f32", ())},
    groups={
        **DRAFT.groups,
        "vision": GroupDraft("vision", TOWER_FILES["vision"], 10, VISION),
        "audio": GroupDraft("audio", TOWER_FILES["audio"], 10, AUDIO),
    },
)

HEADS = {"": "lm_head.weight", "small_": "small_head.weight"}
SHAPES = {"embed": (40, 8), "ple": (36, 12), **dict.fromkeys(HEADS.values(), (40, 8))}


class NoWeights:
    """A source for graphs without weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        raise KeyError(name)


class OneTable:
    """A source of one table, under any name."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values.shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        return self.values if rows is None else self.values[slice(*rows)]


class ReadyCodes(OneTable):
    """A table that has its codes already, of `bits` bits, with a float32 scale for each `width` of them."""

    def __init__(self, shape: tuple[int, int], bits: int, width: int) -> None:
        rng = np.random.default_rng(3)
        self.codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(np.int8)
        self.scales = rng.uniform(0.01, 0.1, (shape[0], shape[1] // width)).astype(np.float32)
        self.bits, self.width = bits, width
        super().__init__(self.codes.astype(np.float32) * np.repeat(self.scales, width, axis=1))

    def packed(
        self, name: str, scheme: Scheme, rows: tuple[int, int], columns: tuple[int, int] | None = None
    ) -> PackedRows | None:
        whole = self.width == self.codes.shape[1]
        if (scheme.element.bits, scheme.block_size) != (self.bits, None if whole else self.width):
            return None
        codes = self.codes[slice(*rows)] if columns is None else self.codes[slice(*rows), slice(*columns)]
        scales = self.scales[slice(*rows)]
        return PackedRows(pack_codes(codes, self.bits).reshape(len(codes), -1), scales[:, 0] if whole else scales)


class Ramp:
    """A tensor source whose numbers count up, another ramp for each name."""

    def shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        values = np.arange(np.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name]) + len(name)
        first, last = rows or (0, SHAPES[name][0])
        left, right = columns or (0, SHAPES[name][1])
        return values[first:last, left:right]


def fill(directory: Path) -> BundleDraft:
    """Write the files of `DRAFT`: graphs of the right form that compute next to nothing."""
    write_graphs(directory / TEXT_DECODER, decoder_signatures())
    write_graphs(directory / EMBEDDER, [embedder(n, "embed", "embeddings", (1, n, 8)) for n in (1, 4, 8)])
    write_ple_shards(directory, Ramp(), "ple", PleLayout(36, 3, 4, 8))
    (directory / TOKENIZER).write_text(tokenizer_of(36))
    (directory / CHAT_TEMPLATE).write_text("{{ bos_token }}")
    return DRAFT


def with_lock(draft: BundleDraft, *, rules: int = 1) -> BundleDraft:
    """A draft with a lock, whose recipe has a rule for each of so many weights."""
    own = tuple(RuleRecord(f"model.layers.{n}.mlp.down_proj.weight", "int8", None, "mse") for n in range(rules))
    recipes = {**draft.quant, "text": QuantRecord("own", own)}
    sizes = tuple(LockedSize(name, size.layers, size.ffn_sizes) for name, size in draft.sizes.items())
    lock = Lock(
        generator=GENERATOR,
        checkpoint=draft.checkpoint,
        calibration=None,
        groups=locked_groups(draft.groups),
        sizes=sizes,
        recipes=recipes,
        context=TEXT.context,
        prefill_sizes=TEXT.prefill_sizes,
        shard_bytes=1 << 20,
        audio_seconds=(),
        files={},
        manifest=None,
        export=None,
    )
    return replace(draft, lock=lock, quant=recipes)


def tokenizer_of(tokens: int) -> str:
    """A tokenizer.json of control tokens alone: <0>, <1> and so on."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": f"<{i}>", **flags, "special": True} for i in range(tokens)]
    vocab = {token["content"]: token["id"] for token in added}
    return json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []}})


def fill_with_towers(directory: Path) -> BundleDraft:
    """The same with both towers."""
    fill(directory)
    for name, signatures in tower_signatures().items():
        write_graphs(directory / name, signatures)
    (directory / TOKENIZER).write_text(tokenizer_of(40))
    return TOWERS_DRAFT


def tower_signatures() -> dict[str, list[Signature]]:
    """Each file's signatures by the format's document."""
    (vision_encoder, vision_adapter), (audio_encoder, audio_adapter) = TOWER_FILES["vision"], TOWER_FILES["audio"]
    files = {
        vision_encoder: [stand_in("encode", {"images": (1, 6, 6, 3)}, {"features": (1, 4, 5)})],
        vision_adapter: [
            stand_in("adapt", {"features": (1, 4, 5)}, {"embeddings": (1, 5, 8)}),
            stand_in("embed_1", {"ids": (1, 1)}, {"embeddings": (1, 1, 8)}),
        ],
        audio_encoder: [],
        audio_adapter: [
            stand_in("embed_1", {"ids": (1, 1)}, {"embeddings": (1, 1, 8)}),
            stand_in("end_of_audio", {}, {"embeddings": (1, 1, 8)}),
        ],
    }
    for frames, tokens in ((4, 1), (7, 2)):
        mel = {"src_inputs": (1, frames, 3), "mask": (1, frames)}
        features: dict[str, tuple[int, ...]] = {"features": (1, tokens, 6), "mask": (1, tokens)}
        files[audio_encoder].append(stand_in(f"encode_{frames}", mel, features))
        files[audio_adapter].append(stand_in(f"adapt_{frames}", features, {"embeddings": (1, 2, 8)}))
    return files


def stand_in(name: str, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]) -> Signature:
    """A signature of a form that computes nothing from its inputs."""
    dtypes = {"ids": DType.INT32, "mask": DType.BOOL}
    graph = Graph()
    for key, shape in inputs.items():
        graph.input(key, shape, dtypes.get(key, DType.FLOAT32))
    for key, shape in outputs.items():
        ones = graph.constant(np.ones(math.prod(shape), np.float32))
        made = ops.cast(ones, DType.BOOL) if key == "mask" else ones
        graph.output(key, ops.reshape(made, shape))
    return Signature(name, graph)


def write_graphs(path: Path, signatures: Iterable[Signature]) -> None:
    """Write signatures with float32 weights of `Ramp`."""
    graphs = list(signatures)
    write_tflite(path, layout_tflite(graphs, {w.name: Scheme("f32") for w in distinct_weights(graphs)}), Ramp())


def decoder_signatures() -> list[Signature]:
    """Both sizes, each with a head of its own."""
    return [
        decoder(f"{prefix}{name}", tokens, head if name == "decode" else None)
        for prefix, head in HEADS.items()
        for name, tokens in (("prefill_4", 4), ("prefill_8", 8), ("decode", 1))
    ]


def decoder(name: str, tokens: int, head: str | None, *, vocab_size: int = 40) -> Signature:
    """A signature of the text decoder's form; caches come out as they went in, plus 1."""
    graph = Graph()
    embeddings = graph.input("embeddings", (1, tokens, 8))
    graph.input("per_layer_embeddings", (1, tokens, 3, 4))
    graph.input("input_pos", (tokens,), DType.INT32)
    graph.input("mask", (1, 1, tokens, CONTEXT))
    for cache, shape in (("kv_cache_k_0", (1, 1, CONTEXT, 4)), ("kv_cache_v_0", (1, 1, 4, CONTEXT))):
        graph.output(cache, ops.add(graph.input(cache, shape), graph.scalar(1.0)))
    if head is not None:
        weight = Weight(head, (vocab_size, 8), (WeightPart(head),))
        graph.output("logits", ops.fully_connected(embeddings, graph.weight(weight)))
    return Signature(name, graph)


def embedder(tokens: int, table: str, output: str, shape: tuple[int, ...]) -> Signature:
    """A signature of an embedder's form."""
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, tokens), DType.INT32), (tokens,))
    weight = Weight(table, SHAPES[table], (WeightPart(table),))
    graph.output(output, ops.reshape(ops.embedding_lookup(ids, graph.weight(weight)), shape))
    return Signature(f"embed_{tokens}", graph)
