"""Reads the header and metadata of any .litertlm: its sections, their parameter groups, its context length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.litertlm import schema
from toolkit.litertlm.header import Header, opened, read_header
from toolkit.litertlm.schema import LlmMetadata
from toolkit.litertlm.tables import SectionRecord

_GROUPS: Mapping[str, str] = {
    schema.EMBEDDER: "token_embedding",
    schema.PREFILL_DECODE: "text",
    schema.PER_LAYER_EMBEDDER: "per_layer_embedding",
    schema.DRAFTER: "drafter",
}
_TOWERS = ("vision", "audio")


@dataclass(frozen=True, slots=True)
class LitertlmContent:
    """The sections of a .litertlm, and its context length in tokens (None if the file does not state it)."""

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
    """Read only the header and the metadata; BundleError if the file is not a .litertlm, or is truncated."""
    header = read_header(path)
    metadata = read_llm_metadata(path, header)
    return LitertlmContent(header.metadata.sections, None if metadata is None else metadata.max_num_tokens or None)


def read_llm_metadata(path: Path, header: Header) -> LlmMetadata | None:
    """The file's metadata of the language model; None if it has no such section, or one of an impossible size."""
    section = next((section for section in header.metadata.sections if section.type == schema.LLM_METADATA), None)
    if section is None or section.end - section.begin > schema.MAX_LLM_METADATA_BYTES:
        return None
    with opened(path) as file:
        data = os.pread(file.fileno(), section.end - section.begin, section.begin)
    return schema.unpack_llm_metadata(data, path)
