"""Reads the header and metadata of any .litertlm: its sections, their parameter groups, its context length."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from toolkit.base.errors import BundleError, system_reason
from toolkit.bundle.faults import Fault
from toolkit.litertlm import schema
from toolkit.litertlm.schema import ContainerMetadata, LlmMetadata, SectionRecord

_GROUPS: Mapping[str, str] = {
    schema.EMBEDDER: "token_embedding",
    schema.PREFILL_DECODE: "text",
    schema.PER_LAYER_EMBEDDER: "per_layer_embedding",
    schema.DRAFTER: "drafter",
}
_TOWERS = ("vision", "audio")
_REMEDY = "run gemma-edge check"


@dataclass(frozen=True, slots=True)
class LitertlmContent:
    """The sections of a .litertlm, and how many positions its caches hold (None if the file does not say)."""

    sections: tuple[SectionRecord, ...]
    context: int | None

    def groups(self) -> dict[str, tuple[SectionRecord, ...]]:
        """The sections of each parameter group; metadata and tokenizer belong to none."""
        found: dict[str, tuple[SectionRecord, ...]] = {}
        for section in self.sections:
            name = group_of(section.label)
            if name is not None:
                found[name] = (*found.get(name, ()), section)
        return found


def group_of(label: str) -> str | None:
    """The parameter group of a section, or None.

    >>> group_of("tf_lite_per_layer_embedder"), group_of("tf_lite_end_of_audio"), group_of("HF_Tokenizer_Zlib")
    ('per_layer_embedding', 'audio', None)
    """
    return _GROUPS.get(label) or next((tower for tower in _TOWERS if tower in label.split("_")), None)


def read_litertlm(path: Path) -> LitertlmContent:
    """Read header and metadata only; BundleError if the file is not a .litertlm, or is cut off."""
    header = read_header(path)
    metadata = read_llm_metadata(path, header)
    return LitertlmContent(header.metadata.sections, None if metadata is None else metadata.max_num_tokens or None)


def read_llm_metadata(path: Path, header: Header) -> LlmMetadata | None:
    """What the file tells of the language model; None if it has no such section, or one of an impossible size."""
    section = next((section for section in header.metadata.sections if section.type == schema.LLM_METADATA), None)
    if section is None or section.end - section.begin > schema.MAX_LLM_METADATA_BYTES:
        return None
    with _opened(path) as file:
        data = os.pread(file.fileno(), section.end - section.begin, section.begin)
    return schema.unpack_llm_metadata(data, path)


@dataclass(frozen=True, slots=True)
class Header:
    """The bytes before the first section, and what they say."""

    data: bytes
    metadata: ContainerMetadata


def read_header(path: Path) -> Header:
    """Read the header only; BundleError if the file is not a .litertlm, or is cut off."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        fixed = file.read(schema.METADATA_OFFSET)
        end = header_end(path.name, fixed, size)
        if isinstance(end, Fault):
            raise end.error(path, remedy=_REMEDY)
        table = file.read(end - schema.METADATA_OFFSET)
    metadata = schema.unpack_container_metadata(table, path)
    for section in metadata.sections:
        if not end <= section.begin <= section.end <= size:
            found, wanted = f"bytes {section.begin} to {section.end}", f"within the file's {size}"
            raise BundleError(f"section {section.label}", file=path, found=found, wanted=wanted, remedy=_REMEDY)
    return Header(fixed + table, metadata)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BundleError(file=path, found=system_reason(error)) from error


def header_end(file: str, fixed: bytes, size: int) -> int | Fault:
    """The offset at which the header ends, or a fault; fixed: the first METADATA_OFFSET bytes; size: the file's."""
    if len(fixed) < schema.METADATA_OFFSET:
        return Fault(file, "size", f"{size} bytes", f"at least {schema.METADATA_OFFSET}")
    if not fixed.startswith(schema.MAGIC):
        return Fault(file, "magic", repr(fixed[: len(schema.MAGIC)]), repr(schema.MAGIC))
    version = struct.unpack_from("<3I", fixed, len(schema.MAGIC))
    if version[0] != schema.VERSION[0]:
        return Fault(file, "version", ".".join(map(str, version)), f"{schema.VERSION[0]}.x")
    (end,) = struct.unpack_from("<Q", fixed, schema.HEADER_END_OFFSET)
    limit = min(size, schema.MAX_HEADER_BYTES)
    if not schema.METADATA_OFFSET < end <= limit:
        return Fault(file, "header_end", str(end), f"{schema.METADATA_OFFSET + 1} to {limit}")
    return int(end)
