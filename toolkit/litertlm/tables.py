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
NAME = "name"
"""The entry of a section of BINARY_DATA that says what it holds."""
CHUNK_SHA256, CHUNK_BYTES = "chunk_sha256", "chunk_bytes"
"""The section named CHUNK_SHA256 holds the hash of each chunk of CHUNK_BYTES bytes."""
LOCK = "lock"
"""The section with this name holds the lock; in files by versions before 0.2.0, the entry of the file does."""
HEADER_SHA256, SIGNATURE, GENERATOR = "header_sha256", "signature", "generator"
"""Entries of the file: the header's own hash, a signature of that, and the program that wrote the file."""
TFLITE_MODEL = "TFLiteModel"
BINARY_DATA = "GenericBinaryData"
"""Of any content; LiteRT-LM leaves it alone."""

MAX_HEADER_BYTES = 16 * 1024
"""What LiteRT-LM reads of a header (kLitertLmHeaderMaxSize); 0.18.1 refuses a file with a longer one."""

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
_LEAST_TABLE_BYTES = 8  # its offset in a vector or another table, and that of its vtable
_MOST_SHARED = 4  # packers may share texts and tables


@dataclass(frozen=True, slots=True)
class SectionRecord:
    """A section: bytes [begin, end) of the file, their type (one of SECTION_TYPES), and further entries."""

    type: str
    begin: int
    end: int
    items: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The section's name in errors: its model type, or the name of binary data, if it has one; else its type."""
        return self.items.get(NAME if self.type == BINARY_DATA else MODEL_TYPE, self.type)


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """The flatbuffer at the start of the file: entries for the whole file, and its sections."""

    system: Mapping[str, str]
    sections: tuple[SectionRecord, ...]

    def binary_data(self, name: str) -> SectionRecord | None:
        """The first section of binary data that has this name."""
        named = (section for section in self.sections if section.type == BINARY_DATA and section.label == name)
        return next(named, None)


def unpack_container_metadata(data: bytes, file: Path | str | None = None) -> ContainerMetadata:
    """Read a flatbuffer from an untrusted file; BundleError if it is not one."""
    try:
        flat = _Flatbuffer(data)
        root = _Table(flat, flat.read("<I", 0))
        system, sections = root.table(0), root.table(1)
        return ContainerMetadata(
            system={} if system is None else _entries(system),
            sections=() if sections is None else tuple(map(_section, sections.tables(0))),
        )
    except (struct.error, ValueError) as error:
        raise BundleError("header", file=file, found=f"not a flatbuffer ({type(error).__name__}: {error})") from error


class _Flatbuffer:
    """The bytes of a flatbuffer. They may be read a few times over, as small ones could unpack to many otherwise."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._room = _MOST_SHARED * len(data)

    def read(self, kind: str, at: int) -> int:
        if at < 0:
            raise ValueError(f"an offset of {at}")
        return int(struct.unpack_from(kind, self.data, at)[0])

    def take(self, count: int) -> None:
        """Count `count` more bytes as read; ValueError once the same bytes must have been read over and over."""
        self._room -= count
        if self._room < 0:
            raise ValueError("tables that are referenced too often")


class _Table:
    """A table of a flatbuffer; its fields are numbered from 0. struct.error or ValueError for what is not one."""

    def __init__(self, flat: _Flatbuffer, at: int) -> None:
        flat.take(_LEAST_TABLE_BYTES)
        self._flat, self._at = flat, at
        self._fields = at - flat.read("<i", at)
        self._fields_bytes = flat.read("<H", self._fields)

    def number(self, number: int, kind: str) -> int:
        """A number; 0 if it is left out."""
        at = self._place(number)
        return 0 if at is None else self._flat.read(kind, at)

    def table(self, number: int) -> _Table | None:
        at = self._target(number)
        return None if at is None else _Table(self._flat, at)

    def tables(self, number: int) -> Iterator[_Table]:
        at = self._target(number)
        count = 0 if at is None else self._flat.read("<I", at)
        for item in range(count):
            assert at is not None
            place = at + _OFFSET_BYTES * (item + 1)
            yield _Table(self._flat, place + self._flat.read("<I", place))

    def text(self, number: int) -> str | None:
        at = self._target(number)
        if at is None:
            return None
        data, begin = self._flat.data, at + _OFFSET_BYTES
        end = begin + self._flat.read("<I", at)
        if end > len(data):
            raise ValueError(f"a text that ends at byte {end} of {len(data)}")
        self._flat.take(end - begin)
        return data[begin:end].decode()

    def _place(self, number: int) -> int | None:
        """Where a field is, if the table has it."""
        entry = 4 + 2 * number
        offset = self._flat.read("<H", self._fields + entry) if entry < self._fields_bytes else 0
        return self._at + offset if offset else None

    def _target(self, number: int) -> int | None:
        """Where the offset in a field leads."""
        at = self._place(number)
        return None if at is None else at + self._flat.read("<I", at)


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
