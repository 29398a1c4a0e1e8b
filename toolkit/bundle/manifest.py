"""The records of a manifest (docs/formats/manifest.md).

manifest_json.py reads and writes them. The types, those of manifest_values.py among them, say what each value may be;
manifest_faults.py finds values that contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from toolkit.base.errors import BundleError
from toolkit.base.json_types import Ascending, Matches, MayBeAbsent, Range, TypeBy
from toolkit.bundle.manifest_values import (
    LEAST_PENALTY,
    LEAST_TEMPERATURE,
    MAX_DIMENSION,
    MAX_FRAMES_PER_TOKEN,
    MAX_LAYERS,
    MAX_VOCAB,
    MOST_PENALTY,
    MOST_TEMPERATURE,
    Bytes,
    Dimension,
    DraftTokens,
    Element,
    Name,
    Positions,
    Prefix,
    Sha256,
    SizeName,
    Text,
    TokenId,
    VocabSize,
    Width,
)
from toolkit.quant.recipe import MATCH, MATCH_WANTED
from toolkit.quant.scheme import Search

FORMAT = "gemma-edge-bundle/3"
MANIFEST_NAME = "manifest.json"
TEXT_DECODER = "text_decoder.tflite"
EMBEDDER = "embedder.tflite"
VISION_ENCODER = "vision_encoder.tflite"
VISION_ADAPTER = "vision_adapter.tflite"
AUDIO_ENCODER = "audio_encoder.tflite"
AUDIO_ADAPTER = "audio_adapter.tflite"
DRAFTER = "drafter.tflite"
DRAFTER_TEXT = "drafter_text.jsonl"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
LOCK = "lock.json"

TOWER_FILES = {"vision": (VISION_ENCODER, VISION_ADAPTER), "audio": (AUDIO_ENCODER, AUDIO_ADAPTER)}
"""The files of the groups that only some requests need."""
FLOAT32_FILES = frozenset({VISION_ENCODER, AUDIO_ENCODER})
"""Graphs that a GPU must compute in float32: their norms square values that are not scaled down first (docs/gpu.md)."""

GroupKind = Literal["text", "token_embedding", "per_layer_embedding", "vision", "audio", "drafter"]
GROUP_NAMES: tuple[GroupKind, ...] = get_args(GroupKind)
"""The groups that answer a prompt, in the order in which they are shown; each is of the kind of its name."""
CHECKPOINT_GROUPS = tuple(name for name in GROUP_NAMES if name != "drafter")
"""Those that hold weights of the model's own checkpoint."""

RESERVED_PREFIX = "prefill"
"""No size's signature prefix may start with this: LiteRT-LM would take its signatures for prefills."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """A LoRA adapter that was merged into the checkpoint, the factor it was scaled by, and the hash of its files."""

    name: Text
    scale: Annotated[float, Range(-1000.0, 1000.0)]
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The checkpoint that a bundle was made from, the hash of its content, and the adapters merged into it in order."""

    name: Text
    sha256: Sha256
    adapters: Annotated[tuple[AdapterRecord, ...], MayBeAbsent()] = ()


@dataclass(frozen=True, slots=True)
class KvCache:
    """The names of the two tensors of one KV cache, and the shape of the keys: [1, kv_heads, rows, head_dim].

    If `window` is None, row p holds position p. Otherwise the cache is a ring, where position p is in row p mod rows,
    and its layers attend to the last `window` positions.
    """

    key: Name
    value: Name
    shape: tuple[Dimension, ...]
    window: Dimension | None = None

    @property
    def rows(self) -> int:
        """The number of positions that the cache holds."""
        return self.shape[2]

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of the values, [1, kv_heads, head_dim, rows]."""
        batch, heads, rows, dim = self.shape
        return batch, heads, dim, rows


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """How the model's makers want tokens to be drawn: `repeat_penalty` first, then the limits in this order.

    Greedy answers with a penalty are those of `top_k` 1.
    """

    temperature: Annotated[float, Range(LEAST_TEMPERATURE, MOST_TEMPERATURE)]
    top_k: Annotated[int, Range(0, MAX_VOCAB)]
    """0 for no limit."""
    top_p: Annotated[float, Range(1e-6, 1.0)]
    min_p: Annotated[float, Range(0.0, 1.0), MayBeAbsent()] = 0.0
    repeat_penalty: Annotated[float, Range(LEAST_PENALTY, MOST_PENALTY), MayBeAbsent()] = 1.0


@dataclass(frozen=True, slots=True)
class TextRecord:
    """What a runtime needs to know about the language model; the same for all sizes."""

    vocab_size: VocabSize
    ple_vocab_size: VocabSize
    hidden_size: Width
    ple_size: Width
    num_layers: Annotated[int, Range(1, MAX_LAYERS)]
    context: Dimension
    prefill_sizes: Annotated[tuple[Positions, ...], Ascending()]
    context_buckets: Annotated[tuple[Positions, ...], Ascending(empty=True)]
    prefill_buckets: Annotated[tuple[Positions, ...], Ascending(empty=True)]
    final_logit_softcap: Annotated[float, Range(1e-3, 1e6)] | None
    bos_token_id: TokenId
    pad_token_id: TokenId
    stop_token_ids: Annotated[tuple[TokenId, ...], Ascending()]
    kv_caches: tuple[KvCache, ...]
    text_vocab_size: Annotated[VocabSize | None, MayBeAbsent()] = None
    """Ids below this stand for text; None if they are the ids below `ple_vocab_size`."""
    sampling: Annotated[SamplingRecord | None, MayBeAbsent()] = None
    """None for greedy decoding: always the most likely token."""
    draft_tokens: Annotated[DraftTokens | None, MayBeAbsent()] = None
    """How many drafted tokens a `verify` step checks; None without speculative decoding."""

    @property
    def text_ids(self) -> int:
        """Ids below this may stand for text; the others stand for images and sounds, or for nothing."""
        return self.ple_vocab_size if self.text_vocab_size is None else self.text_vocab_size

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """The numbers of tokens that steps of all kinds take, ascending."""
        verify = () if self.draft_tokens is None else (self.draft_tokens + 1,)
        return tuple(sorted({1, *self.prefill_sizes, *verify}))

    def buckets(self, tokens: int) -> tuple[int, ...]:
        """The shorter contexts in which a step of `tokens` (1: decode) has a signature."""
        return self.context_buckets if tokens == 1 else self.prefill_buckets


@dataclass(frozen=True, slots=True)
class TowerTokens:
    """The token ids of a tower: the markers around an image or sound, its soft token, and its own embedding table."""

    begin_token_id: TokenId
    soft_token_id: TokenId
    end_token_id: TokenId
    vocab_offset: TokenId
    vocab_size: VocabSize

    @property
    def table(self) -> range:
        """The ids whose embeddings are in the tower's own table."""
        return range(self.vocab_offset, self.vocab_offset + self.vocab_size)

    def markers(self) -> dict[str, int]:
        """The ids that a prompt's text must be able to spell, by field name."""
        return {
            "begin_token_id": self.begin_token_id,
            "soft_token_id": self.soft_token_id,
            "end_token_id": self.end_token_id,
        }


@dataclass(frozen=True, slots=True)
class VisionRecord(TowerTokens):
    """What a runtime needs to know about the vision tower."""

    image_size: Annotated[int, Range(1, 2**14)]
    soft_tokens: Dimension
    feature_size: Width


@dataclass(frozen=True, slots=True)
class AudioRecord(TowerTokens):
    """What a runtime needs to know about the audio tower."""

    frame_lengths: Annotated[tuple[Annotated[int, Range(1, MAX_DIMENSION * MAX_FRAMES_PER_TOKEN)], ...], Ascending()]
    mel_bins: Width
    frames_per_token: Annotated[int, Range(1, MAX_FRAMES_PER_TOKEN)]
    soft_tokens: Dimension
    feature_size: Width
    padding_token_id: TokenId

    def length_for(self, frames: int) -> int:
        """The encoder's shortest length that holds `frames` mel frames, which must not exceed its longest."""
        return next(length for length in self.frame_lengths if length >= frames)


def signature_name(prefix: str, tokens: int, bucket: int | None = None, *, verify: bool = False) -> str:
    """The name of the signature for a step of `tokens` (1: decode), for a size's prefix and a context bucket, if any.

    `verify`: whether the step gives the logits of all its tokens.

    >>> signature_name("", 1), signature_name("E2B_", 128), signature_name("E2B_", 1, 512)
    ('decode', 'E2B_prefill_128', 'E2B_in_512_decode')
    >>> signature_name("", 4, 512, verify=True)
    'in_512_verify'
    """
    step = "verify" if verify else "decode" if tokens == 1 else f"prefill_{tokens}"
    return f"{prefix}{step}" if bucket is None else f"{prefix}in_{bucket}_{step}"


@dataclass(frozen=True, slots=True)
class SizeRecord:
    """One size of the bundle: the checkpoint's layers that it keeps, their feed-forward widths, and the prefix of its
    signatures' names."""

    layers: Annotated[tuple[Annotated[int, Range(0, MAX_LAYERS - 1)], ...], Ascending()]
    ffn_sizes: tuple[Dimension, ...]
    prefix: Prefix

    @property
    def decode(self) -> str:
        """The name of this size's decode signature."""
        return self.signature(1)

    def signature(self, tokens: int, bucket: int | None = None, *, verify: bool = False) -> str:
        """The name of the signature for a step of `tokens` (1: decode) over the first `bucket` positions, or all.

        `verify`: whether the step gives the logits of all its tokens.
        """
        return signature_name(self.prefix, tokens, bucket, verify=verify)


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """One rule of a quantisation recipe."""

    match: Annotated[str, Matches(MATCH, MATCH_WANTED)]
    dtype: Element
    block_size: Dimension | None
    search: Search


@dataclass(frozen=True, slots=True)
class QuantRecord:
    """The quantisation recipe with which weights were stored."""

    recipe: Text
    rules: tuple[RuleRecord, ...]
    static_activations: Annotated[bool, MayBeAbsent()] = False
    """Whether products round their inputs and outputs to int8 with scales that the checkpoint states."""


@dataclass(frozen=True, slots=True)
class DrafterRecord:
    """What a drafter guesses for: one that was fitted to a size, or one that was published for the model."""

    size: SizeName
    """The size that it was fitted to, or that a published one drafts for."""
    acceptance: Annotated[tuple[Annotated[float, Range(0.0, 1.0)], ...], MayBeAbsent()] = ()
    """Of a fitted one, on text that it was not fitted to: the fraction of steps in which the first draft is right, the
    first two, and so on, up to `draft_tokens`."""
    steps: Annotated[Annotated[int, Range(1, 2**40)] | None, MayBeAbsent()] = None
    """The number of steps on which this was measured."""
    checkpoint: Annotated[CheckpointRecord | None, MayBeAbsent()] = None
    """The checkpoint of a published one; None for one that was fitted."""
    caches: Annotated[tuple[Name, ...], MayBeAbsent()] = ()
    """The tensors of the model's KV caches that a published one reads."""

    @property
    def accepted(self) -> float:
        """The mean number of drafts that a step accepts, of a fitted one."""
        return sum(self.acceptance)


GroupRuntime = TextRecord | VisionRecord | AudioRecord | DrafterRecord
"""What a runtime needs to know about a group of the kind `text`, `vision`, `audio` or `drafter`."""
RUNTIMES: tuple[tuple[GroupKind, type[GroupRuntime] | None], ...] = (
    ("text", TextRecord),
    ("token_embedding", None),
    ("per_layer_embedding", None),
    ("vision", VisionRecord),
    ("audio", AudioRecord),
    ("drafter", DrafterRecord),
)


TEXT_GROUPS: tuple[GroupKind, ...] = ("text", "token_embedding", "per_layer_embedding")
"""The groups that text needs: no prompt can be answered if one is missing. The others may be left out of a copy."""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Files that are loaded together, how many of the checkpoint's weights they hold, their size in bytes, and what a
    runtime must know about them."""

    kind: GroupKind
    files: tuple[Name, ...]
    parameters: Annotated[int, Range(0, 2**50)]
    bytes: Bytes
    runtime: Annotated[GroupRuntime | None, TypeBy("kind", RUNTIMES)] = None
    """None for both kinds of embeddings, whose files say everything."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hashes of one file; `chunks` has one hash for each CHUNK_BYTES of it, in order."""

    bytes: Bytes
    sha256: Sha256
    chunks: tuple[Sha256, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a bundle's manifest.json."""

    generator: Text
    architecture: Text
    checkpoint: CheckpointRecord
    sizes: Mapping[SizeName, SizeRecord]
    default_size: Text
    quant: Mapping[Name, QuantRecord]
    groups: Mapping[Name, GroupRecord]
    files: Mapping[Name, FileRecord]

    @property
    def text(self) -> TextRecord:
        """The record of the group `text`, which every bundle has."""
        record = self.groups["text"].runtime
        assert isinstance(record, TextRecord)
        return record

    @property
    def vision(self) -> VisionRecord | None:
        """The record of the group `vision`, if there is one."""
        record = self.groups["vision"].runtime if "vision" in self.groups else None
        assert record is None or isinstance(record, VisionRecord)
        return record

    @property
    def audio(self) -> AudioRecord | None:
        """The record of the group `audio`, if there is one."""
        record = self.groups["audio"].runtime if "audio" in self.groups else None
        assert record is None or isinstance(record, AudioRecord)
        return record

    @property
    def drafter(self) -> DrafterRecord | None:
        """The record of the group `drafter`, if there is one."""
        record = self.groups["drafter"].runtime if "drafter" in self.groups else None
        assert record is None or isinstance(record, DrafterRecord)
        return record

    def size(self, name: str | None = None) -> SizeRecord:
        """A size by its name, by default the default size; BundleError if there is none of this name."""
        wanted = self.default_size if name is None else name
        if wanted not in self.sizes:
            raise BundleError("size", found=wanted, wanted=" or ".join(self.sizes), remedy="choose one of these")
        return self.sizes[wanted]
