"""Reads manifest.json (docs/formats/manifest.md) strictly, and writes it with the same bytes every time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from toolkit.base.elements import element_names
from toolkit.base.errors import BundleError
from toolkit.base.files import is_safe_name
from toolkit.base.strict_json import JsonObject, open_regular, parse_json
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import (
    FORMAT,
    GROUP_NAMES,
    MANIFEST_NAME,
    AudioRecord,
    CheckpointRecord,
    FileRecord,
    GroupKind,
    GroupRecord,
    GroupRuntime,
    KvCache,
    Manifest,
    QuantRecord,
    RuleRecord,
    SizeRecord,
    TextRecord,
    VisionRecord,
    is_size_name,
)
from toolkit.bundle.manifest_faults import contradictions

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_VOCAB = 2**24
MAX_WIDTH = 2**16
MAX_LAYERS = 1024
MAX_DIMENSION = 2**20
MAX_IMAGE_SIZE = 2**14
MAX_SOFT_TOKENS = 2**20
MAX_FRAMES_PER_TOKEN = 2**12
MAX_BYTES = 2**50
MAX_TEXT_CHARACTERS = 256
MIN_SOFTCAP, MAX_SOFTCAP = 1e-3, 1e6
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

T = TypeVar("T")


def read_manifest(bundle: Path | str) -> Manifest:
    """Read and validate BUNDLE/manifest.json; BundleError for the first fault."""
    faults: list[Fault] = []
    manifest = parse_manifest(load_manifest_bytes(bundle), faults)
    if manifest is None:
        raise faults[0].error(Path(bundle) / MANIFEST_NAME, remedy="convert it again")
    return manifest


def load_manifest_bytes(bundle: Path | str) -> bytes:
    """The bytes of BUNDLE/manifest.json; BundleError if it does not exist or is larger than MAX_MANIFEST_BYTES."""
    path = Path(bundle) / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(file=bundle, found=f"no {MANIFEST_NAME}, so no bundle", remedy="run gemma-edge convert")
    with open(open_regular(path, BundleError), "rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(file=path, found=f"over {MAX_MANIFEST_BYTES:,} bytes", remedy="convert it again")
    return data


def parse_manifest(data: bytes, faults: list[Fault]) -> Manifest | None:
    """Read a manifest. If it has faults, append one for each part that is wrong and return None."""
    reader = _Reader(faults)
    before = len(faults)
    manifest = reader.part(lambda: reader.manifest(parse_json(data, MANIFEST_NAME, BundleError)))
    # Parts are compared with each other only if each one is valid.
    if manifest is not None and len(faults) == before:
        faults += contradictions(manifest)
    return manifest if len(faults) == before else None


def dump_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as canonical JSON; BundleError for one that `parse_manifest` would reject."""
    value = {"format": FORMAT, **dataclasses.asdict(manifest)}
    data = (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")
    faults: list[Fault] = []
    parse_manifest(data, faults)
    if faults:
        raise faults[0].error()
    return data


class _Reader:
    """Reads the parts of a manifest. A part with a fault is recorded and skipped, so that all others are read too."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults

    def part(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except BundleError as error:
            self._faults.append(Fault(MANIFEST_NAME, error.place or "JSON", error.found, error.wanted))
            return None

    def manifest(self, value: object) -> Manifest | None:
        top = JsonObject(value, MANIFEST_NAME, BundleError)
        if top.string("format") != FORMAT:
            top.refuse("format", top.string("format"), FORMAT)
        generator = self.part(lambda: _text(top, "generator"))
        architecture = self.part(lambda: _text(top, "architecture"))
        checkpoint = self.part(lambda: _read_checkpoint(top.child("checkpoint")))
        sizes = self.part(lambda: self._mapping(top.child("sizes"), _read_size, is_size_name))
        default_size = self.part(lambda: _text(top, "default_size"))
        quant = self.part(lambda: self._mapping(top.child("quant"), _read_quant, is_safe_name))
        groups = self.part(lambda: self._mapping(top.child("groups"), _read_group, is_safe_name))
        files = self.part(lambda: self._mapping(top.child("files"), _read_file, is_safe_name))
        self.part(top.finish)
        if generator is None or architecture is None or checkpoint is None or sizes is None:
            return None
        if default_size is None or quant is None or groups is None or files is None:
            return None
        return Manifest(generator, architecture, checkpoint, sizes, default_size, quant, groups, files)

    def _mapping(
        self, table: JsonObject, read: Callable[[JsonObject], T], is_key: Callable[[str], bool]
    ) -> dict[str, T]:
        def entry(key: str) -> T:
            if not is_key(key):
                table.refuse("key", key, "a name as the format allows")
            return read(table.child(key))

        entries: dict[str, T] = {}
        for key in sorted(table.names()):
            record = self.part(partial(entry, key))
            if record is not None:
                entries[key] = record
        return entries


def _read_checkpoint(fields: JsonObject) -> CheckpointRecord:
    return _finished(fields, CheckpointRecord(_text(fields, "name"), _sha256(fields, "sha256", fields.value("sha256"))))


def _read_text(fields: JsonObject) -> TextRecord:
    vocab_size = fields.integer("vocab_size", 1, MAX_VOCAB)
    context = fields.integer("context", 1, MAX_DIMENSION)
    softcap = "final_logit_softcap"
    record = TextRecord(
        vocab_size=vocab_size,
        ple_vocab_size=fields.integer("ple_vocab_size", 1, vocab_size),
        hidden_size=fields.integer("hidden_size", 1, MAX_WIDTH),
        ple_size=fields.integer("ple_size", 1, MAX_WIDTH),
        num_layers=fields.integer("num_layers", 1, MAX_LAYERS),
        context=context,
        prefill_sizes=_ascending(fields, "prefill_sizes", 2, context),
        context_buckets=_ascending(fields, "context_buckets", 2, context - 1, empty=True),
        prefill_buckets=_ascending(fields, "prefill_buckets", 2, context - 1, empty=True),
        final_logit_softcap=None if fields.value(softcap) is None else fields.number(softcap, MIN_SOFTCAP, MAX_SOFTCAP),
        bos_token_id=fields.integer("bos_token_id", 0, vocab_size - 1),
        pad_token_id=fields.integer("pad_token_id", 0, vocab_size - 1),
        stop_token_ids=_ascending(fields, "stop_token_ids", 0, vocab_size - 1),
        kv_caches=tuple(_read_kv_cache(item) for item in _objects(fields, "kv_caches")),
    )
    return _finished(fields, record)


def _read_kv_cache(fields: JsonObject) -> KvCache:
    key = _name(fields, "key", fields.value("key"))
    value = _name(fields, "value", fields.value("value"))
    window = None if fields.value("window") is None else fields.integer("window", 1, MAX_DIMENSION)
    return _finished(fields, KvCache(key, value, fields.integers("shape", 1, MAX_DIMENSION), window))


def _read_vision(fields: JsonObject) -> VisionRecord:
    record = VisionRecord(
        **_tower_tokens(fields),
        image_size=fields.integer("image_size", 1, MAX_IMAGE_SIZE),
        soft_tokens=fields.integer("soft_tokens", 1, MAX_SOFT_TOKENS),
        feature_size=fields.integer("feature_size", 1, MAX_WIDTH),
    )
    return _finished(fields, record)


def _read_audio(fields: JsonObject) -> AudioRecord:
    soft_tokens = fields.integer("soft_tokens", 1, MAX_SOFT_TOKENS)
    frames_per_token = fields.integer("frames_per_token", 1, MAX_FRAMES_PER_TOKEN)
    record = AudioRecord(
        **_tower_tokens(fields),
        frame_lengths=_ascending(fields, "frame_lengths", 1, soft_tokens * frames_per_token),
        mel_bins=fields.integer("mel_bins", 1, MAX_WIDTH),
        frames_per_token=frames_per_token,
        soft_tokens=soft_tokens,
        feature_size=fields.integer("feature_size", 1, MAX_WIDTH),
        padding_token_id=fields.integer("padding_token_id", 0, MAX_VOCAB),
    )
    return _finished(fields, record)


def _tower_tokens(fields: JsonObject) -> dict[str, int]:
    """The fields that both towers have; `contradictions` compares them with the language model's vocabulary."""
    ids = ("begin_token_id", "soft_token_id", "end_token_id", "vocab_offset")
    return {key: fields.integer(key, 0, MAX_VOCAB) for key in ids} | {
        "vocab_size": fields.integer("vocab_size", 1, MAX_VOCAB)
    }


def _read_size(fields: JsonObject) -> SizeRecord:
    prefix = fields.string("prefix")
    record = SizeRecord(
        layers=_ascending(fields, "layers", 0, MAX_LAYERS - 1),
        ffn_sizes=fields.integers("ffn_sizes", 1, MAX_DIMENSION),
        prefix=_name(fields, "prefix", prefix) if prefix else "",
    )
    return _finished(fields, record)


def _read_quant(fields: JsonObject) -> QuantRecord:
    rules = tuple(_read_rule(item) for item in _objects(fields, "rules"))
    return _finished(fields, QuantRecord(_text(fields, "recipe"), rules))


def _read_rule(fields: JsonObject) -> RuleRecord:
    block_size = None if fields.value("block_size") is None else fields.integer("block_size", 1, MAX_DIMENSION)
    dtype = _choice(fields, "dtype", element_names())
    search = _choice(fields, "search", ("absmax", "mse"))
    return _finished(fields, RuleRecord(_text(fields, "match"), dtype, block_size, search))


def _read_group(fields: JsonObject) -> GroupRecord:
    record = GroupRecord(
        kind=_read_kind(fields),
        files=tuple(_name(fields, "files", item) for item in fields.array("files")),
        parameters=fields.integer("parameters", 0, MAX_BYTES),
        bytes=fields.integer("bytes", 0, MAX_BYTES),
        runtime=_read_runtime(fields, fields.string("kind")),
    )
    return _finished(fields, record)


def _read_kind(fields: JsonObject) -> GroupKind:
    kind = fields.string("kind")
    known = next((name for name in GROUP_NAMES if name == kind), None)
    if known is None:
        fields.refuse("kind", kind, " or ".join(GROUP_NAMES))
    return known


def _read_runtime(fields: JsonObject, kind: str) -> GroupRuntime | None:
    if kind == "text":
        return _read_text(fields.child("runtime"))
    if kind == "vision":
        return _read_vision(fields.child("runtime"))
    if kind == "audio":
        return _read_audio(fields.child("runtime"))
    if fields.value("runtime") is not None:
        fields.refuse("runtime", fields.value("runtime"), "null")
    return None


def _read_file(fields: JsonObject) -> FileRecord:
    chunks = tuple(_sha256(fields, "chunks", item) for item in fields.array("chunks"))
    size, sha256 = fields.integer("bytes", 0, MAX_BYTES), _sha256(fields, "sha256", fields.value("sha256"))
    return _finished(fields, FileRecord(size, sha256, chunks))


def _finished(fields: JsonObject, record: T) -> T:
    fields.finish()
    return record


def _objects(fields: JsonObject, key: str) -> Iterator[JsonObject]:
    yield from fields.children(key)


def _text(fields: JsonObject, key: str) -> str:
    value = fields.string(key)
    if not (0 < len(value) <= MAX_TEXT_CHARACTERS and value.isprintable()):
        fields.refuse(key, value, f"1 to {MAX_TEXT_CHARACTERS} printable characters")
    return value


def _choice(fields: JsonObject, key: str, allowed: Sequence[str]) -> str:
    value = fields.string(key)
    if value not in allowed:
        fields.refuse(key, value, " or ".join(allowed))
    return value


def _name(fields: JsonObject, key: str, value: object) -> str:
    if not isinstance(value, str) or not is_safe_name(value):
        fields.refuse(key, value, "a name of letters, digits and . _ -")
    return value


def _sha256(fields: JsonObject, key: str, value: object) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        fields.refuse(key, value, "64 lower-case hexadecimal digits")
    return value


def _ascending(fields: JsonObject, key: str, low: int, high: int, *, empty: bool = False) -> tuple[int, ...]:
    values = fields.integers(key, low, high)
    if not (values or empty) or any(a >= b for a, b in itertools.pairwise(values)):
        fields.refuse(key, list(values), "ascending numbers" + ("" if empty else ", at least one"))
    return values
