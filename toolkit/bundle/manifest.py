"""The records of a manifest (docs/formats/manifest.md); manifest_json.py reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.base.errors import BundleError

FORMAT = "gemma-edge-bundle/2"
MANIFEST_NAME = "manifest.json"
TEXT_DECODER = "text_decoder.tflite"
EMBEDDER = "embedder.tflite"
VISION_ENCODER = "vision_encoder.tflite"
VISION_ADAPTER = "vision_adapter.tflite"
AUDIO_ENCODER = "audio_encoder.tflite"
AUDIO_ADAPTER = "audio_adapter.tflite"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"

MAX_SIZE_NAME_CHARACTERS = 64
TOWER_FILES = {"vision": (VISION_ENCODER, VISION_ADAPTER), "audio": (AUDIO_ENCODER, AUDIO_ADAPTER)}
"""The files of the groups that only some requests need."""

GroupKind = Literal["text", "token_embedding", "per_layer_embedding", "vision", "audio"]
GROUP_NAMES: tuple[GroupKind, ...] = get_args(GroupKind)
"""The groups that answer a prompt, in the order in which they are shown; each is of the kind of its name."""

RESERVED_PREFIX = "prefill"
"""No size's signature prefix may start with this: LiteRT-LM would take its signatures for prefills."""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """Which checkpoint a bundle was made of, and the hash of its content."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class KvCache:
    """Names of the two tensors of one KV cache, and the shape of the keys: [1, kv_heads, rows, head_dim].

    If `window` is None, row p holds position p. Otherwise the cache is a ring, where position p is in row p mod rows,
    and its layers attend to the last `window` positions.
    """

    key: str
    value: str
    shape: tuple[int, ...]
    window: int | None = None

    @property
    def rows(self) -> int:
        """Positions that the cache holds."""
        return self.shape[2]

    @property
    def value_shape(self) -> tuple[int, ...]:
        """[1, kv_heads, head_dim, rows]."""
        batch, heads, rows, dim = self.shape
        return batch, heads, dim, rows


@dataclass(frozen=True, slots=True)
class TextRecord:
    """What a runtime needs to know of the language model; the same for all sizes."""

    vocab_size: int
    ple_vocab_size: int
    hidden_size: int
    ple_size: int
    num_layers: int
    context: int
    prefill_sizes: tuple[int, ...]
    context_buckets: tuple[int, ...]
    prefill_buckets: tuple[int, ...]
    final_logit_softcap: float | None
    bos_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    kv_caches: tuple[KvCache, ...]

    def buckets(self, tokens: int) -> tuple[int, ...]:
        """The shorter contexts in which a step of `tokens` (1: decode) has a signature."""
        return self.context_buckets if tokens == 1 else self.prefill_buckets


@dataclass(frozen=True, slots=True)
class TowerTokens:
    """The token ids of a tower: the markers around an image or sound, its soft token, and its own embedding table."""

    begin_token_id: int
    soft_token_id: int
    end_token_id: int
    vocab_offset: int
    vocab_size: int

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
    """What a runtime needs to know of the vision tower."""

    image_size: int
    soft_tokens: int
    feature_size: int


@dataclass(frozen=True, slots=True)
class AudioRecord(TowerTokens):
    """What a runtime needs to know of the audio tower."""

    frame_lengths: tuple[int, ...]
    mel_bins: int
    frames_per_token: int
    soft_tokens: int
    feature_size: int
    padding_token_id: int

    def length_for(self, frames: int) -> int:
        """The encoder's shortest length that holds `frames` mel frames, which must not exceed its longest."""
        return next(length for length in self.frame_lengths if length >= frames)


def signature_name(prefix: str, tokens: int, bucket: int | None = None) -> str:
    """The name of the signature for a step of `tokens` (1: decode), for a size's prefix and a context bucket, if any.

    >>> signature_name("", 1), signature_name("E2B_", 128), signature_name("E2B_", 1, 512)
    ('decode', 'E2B_prefill_128', 'E2B_in_512_decode')
    """
    step = "decode" if tokens == 1 else f"prefill_{tokens}"
    return f"{prefix}{step}" if bucket is None else f"{prefix}in_{bucket}_{step}"


@dataclass(frozen=True, slots=True)
class SizeRecord:
    """One size of the bundle: the checkpoint layers it keeps, their FFN widths, and the prefix of its signatures."""

    layers: tuple[int, ...]
    ffn_sizes: tuple[int, ...]
    prefix: str

    @property
    def decode(self) -> str:
        """The name of this size's decode signature."""
        return self.signature(1)

    def signature(self, tokens: int, bucket: int | None = None) -> str:
        """The name of the signature for a step of `tokens` (1: decode) over the first `bucket` positions, or all."""
        return signature_name(self.prefix, tokens, bucket)


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """One rule of a quantisation recipe."""

    match: str
    dtype: str
    block_size: int | None
    search: str


@dataclass(frozen=True, slots=True)
class QuantRecord:
    """The quantisation recipe that was used."""

    recipe: str
    rules: tuple[RuleRecord, ...]


GroupRuntime = TextRecord | VisionRecord | AudioRecord
"""What a runtime needs to know of a group of the kind `text`, `vision` or `audio`."""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Files that are loaded together, the checkpoint's weights in them, their size, and what a runtime must know."""

    kind: GroupKind
    files: tuple[str, ...]
    parameters: int
    bytes: int
    runtime: GroupRuntime | None = None
    """None for both kinds of embeddings, whose files tell it."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hashes of one file; `chunks` has one hash for each CHUNK_BYTES of it, in order."""

    bytes: int
    sha256: str
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of a bundle's manifest.json."""

    generator: str
    architecture: str
    checkpoint: CheckpointRecord
    sizes: Mapping[str, SizeRecord]
    default_size: str
    quant: Mapping[str, QuantRecord]
    groups: Mapping[str, GroupRecord]
    files: Mapping[str, FileRecord]

    @property
    def text(self) -> TextRecord:
        """What the group `text` says, which every bundle has."""
        record = self.groups["text"].runtime
        assert isinstance(record, TextRecord)
        return record

    @property
    def vision(self) -> VisionRecord | None:
        """What the group `vision` says, where there is one."""
        record = self.groups["vision"].runtime if "vision" in self.groups else None
        assert record is None or isinstance(record, VisionRecord)
        return record

    @property
    def audio(self) -> AudioRecord | None:
        """What the group `audio` says, where there is one."""
        record = self.groups["audio"].runtime if "audio" in self.groups else None
        assert record is None or isinstance(record, AudioRecord)
        return record

    def size(self, name: str | None = None) -> SizeRecord:
        """A size by name, or the default one."""
        wanted = self.default_size if name is None else name
        if wanted not in self.sizes:
            raise BundleError("size", found=wanted, wanted=" or ".join(self.sizes), remedy="choose one of these")
        return self.sizes[wanted]


def is_size_name(name: str) -> bool:
    """Whether a size may have this name; official sizes have names such as "E2.98B (block-level)".

    >>> [is_size_name(name) for name in ("E2B", "E2.98B (block-level)", "", "a/b", "\\n")]
    [True, True, False, False, False]
    """
    return 0 < len(name) <= MAX_SIZE_NAME_CHARACTERS and name.isascii() and name.isprintable() and "/" not in name
