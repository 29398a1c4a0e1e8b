"""The header of a .litertlm as records: its entries and sections (docs/formats/litertlm.md).

Read here without litert-lm-builder, whose import takes longer than a small push; `schema` writes it with that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.base.errors import BundleError

# litert_lm_builder/litertlm_core.py
MAGIC = b"LITERTLM"
VERSION = (1, 7, 0)
HEADER_END_OFFSET, METADATA_OFFSET = 24, 32

MODEL_TYPE = "model_type"
SHA256 = "sha256"
"""The entry of a section that holds the hash of its bytes."""
NAME, CHUNK_SHA256, CHUNK_BYTES = "name", "chunk_sha256", "chunk_bytes"
"""The section named CHUNK_SHA256 holds the hash of each chunk of CHUNK_BYTES bytes."""
HEADER_SHA256, SIGNATURE, GENERATOR, LOCK = "header_sha256", "signature", "generator", "lock"
"""Entries of the file: the header's own hash, a signature of that, the program that wrote the file, and its lock."""
TFLITE_MODEL = "TFLiteModel"
BINARY_DATA = "GenericBinaryData"
"""Of any content; LiteRT-LM leaves it alone."""

MAX_HEADER_BYTES = 16 * 1024 * 1024
ENGINE_HEADER_BYTES = 16 * 1024
"""What LiteRT-LM reads of a header (kLitertLmHeaderMaxSize); 0.18.1 refuses a file with a longer one."""
MAX_ITEMS = 4096
"""Far above the number of sections, or of one section's entries, in any real file: guards against a wrong length."""

# litert_lm_builder/litertlm_header_schema_py_generated.py, AnySectionDataType and VData
SECTION_TYPES = (
    "NONE",
    BINARY_DATA,
    "Deprecated",
    TFLITE_MODEL,
    "SP_Tokenizer",
    "LlmMetadataProto",
    "HF_Tokenizer_Zlib",
    "TFLiteWeights",
    "EmbeddingMetadataProto",
    "ExecutorMetadataProto",
    "TtsMetadataProto",
    "AsrMetadataProto",
)
_STRING_VALUE = 9
_OFFSET_BYTES = 4


@dataclass(frozen=True, slots=True)
class SectionRecord:
    """A section: bytes [begin, end) of the file, their type (one of SECTION_TYPES), and further entries."""

    type: str
    begin: int
    end: int
    items: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The section's name in errors: its model type if it has one, else its type."""
        return self.items.get(MODEL_TYPE, self.type)


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """The flatbuffer at the start of the file: entries for the whole file, and its sections."""

    system: Mapping[str, str]
    sections: tuple[SectionRecord, ...]


def unpack_container_metadata(data: bytes, file: Path | str | None = None) -> ContainerMetadata:
    """Read a flatbuffer from an untrusted file; BundleError if it is not one."""
    try:
        root = _Table(data, _read(data, "<I", 0))
        system, sections = root.table(0), root.table(1)
        return ContainerMetadata(
            system={} if system is None else _entries(system),
            sections=() if sections is None else tuple(map(_section, sections.tables(0))),
        )
    except (struct.error, ValueError) as error:
        raise BundleError("header", file=file, found=f"not a flatbuffer ({type(error).__name__}: {error})") from error


class _Table:
    """A table of a flatbuffer; its fields are numbered from 0. struct.error or ValueError for what is not one."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - _read(data, "<i", at)
        self._fields_bytes = _read(data, "<H", self._fields)

    def number(self, number: int, kind: str) -> int:
        """A number; 0 if it is left out."""
        at = self._place(number)
        return 0 if at is None else _read(self._data, kind, at)

    def table(self, number: int) -> _Table | None:
        at = self._target(number)
        return None if at is None else _Table(self._data, at)

    def tables(self, number: int) -> Iterator[_Table]:
        at = self._target(number)
        count = 0 if at is None else _read(self._data, "<I", at)
        if count > MAX_ITEMS:
            raise ValueError(f"{count} items")
        for item in range(count):
            assert at is not None
            place = at + _OFFSET_BYTES * (item + 1)
            yield _Table(self._data, place + _read(self._data, "<I", place))

    def text(self, number: int) -> str | None:
        at = self._target(number)
        if at is None:
            return None
        begin = at + _OFFSET_BYTES
        end = begin + _read(self._data, "<I", at)
        if end > len(self._data):
            raise ValueError(f"a text that ends at byte {end} of {len(self._data)}")
        return self._data[begin:end].decode()

    def _place(self, number: int) -> int | None:
        """Where a field is, if the table has it."""
        entry = 4 + 2 * number
        offset = _read(self._data, "<H", self._fields + entry) if entry < self._fields_bytes else 0
        return self._at + offset if offset else None

    def _target(self, number: int) -> int | None:
        """Where the offset in a field leads."""
        at = self._place(number)
        return None if at is None else at + _read(self._data, "<I", at)


def _read(data: bytes, kind: str, at: int) -> int:
    if at < 0:
        raise ValueError(f"an offset of {at}")
    return int(struct.unpack_from(kind, data, at)[0])


def _section(table: _Table) -> SectionRecord:
    kind = table.number(3, "<B")
    name = SECTION_TYPES[kind] if kind < len(SECTION_TYPES) else f"unknown type {kind}"
    return SectionRecord(name, table.number(1, "<Q"), table.number(2, "<Q"), _entries(table))


def _entries(table: _Table) -> dict[str, str]:
    """The string entries, by key; entries of other types are not used here and skipped."""
    entries: dict[str, str] = {}
    for pair in table.tables(0):
        key, value = pair.text(0), pair.table(2)
        if pair.number(1, "<B") == _STRING_VALUE and key is not None:
            if value is None:
                raise ValueError(f"entry {key!r} without a value")
            if key in entries:
                raise ValueError(f"entry {key!r} twice")
            entries[key] = value.text(0) or ""
    return entries
