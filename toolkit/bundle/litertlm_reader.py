"""What a .litertlm says of itself, whoever wrote it: its sections, their parameter groups, its context."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle import litertlm_schema as schema
from toolkit.bundle.litertlm_schema import SectionRecord
from toolkit.errors import BundleError

_GROUPS: Mapping[str, str] = {
    schema.EMBEDDER: "token_embedding",
    schema.PREFILL_DECODE: "text",
    schema.PER_LAYER_EMBEDDER: "per_layer_embedding",
}
_TOWERS = ("vision", "audio")


@dataclass(frozen=True, slots=True)
class LitertlmContent:
    """Its sections, and how many positions its caches hold; None: the file does not say."""

    sections: tuple[SectionRecord, ...]
    context: int | None

    def groups(self) -> dict[str, tuple[SectionRecord, ...]]:
        """The sections of each parameter group; those of the metadata and the tokenizer are in none."""
        found: dict[str, tuple[SectionRecord, ...]] = {}
        for section in self.sections:
            name = group_of(section.label)
            if name is not None:
                found[name] = (*found.get(name, ()), section)
        return found


def group_of(label: str) -> str | None:
    """
    >>> group_of("tf_lite_per_layer_embedder"), group_of("tf_lite_end_of_audio"), group_of("HF_Tokenizer_Zlib")
    ('per_layer_embedding', 'audio', None)
    """
    return _GROUPS.get(label) or next((tower for tower in _TOWERS if tower in label.split("_")), None)


def read_litertlm(path: Path) -> LitertlmContent:
    """Header and metadata alone; BundleError if that is no .litertlm, or one that was cut off."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            end = _header_end(file.read(schema.METADATA_OFFSET), min(size, schema.MAX_HEADER_BYTES), path.name)
            table = file.read(end - schema.METADATA_OFFSET)
            sections = schema.unpack_container_metadata(table, path.name).sections
            for section in sections:
                if not end <= section.begin <= section.end <= size:
                    found = f"bytes {section.begin} to {section.end}"
                    raise _broken(f"{path.name} {section.label}", found, f"within the file's {size}")
            metadata = next((section for section in sections if section.type == schema.LLM_METADATA), None)
            if metadata is None or metadata.end - metadata.begin > schema.MAX_LLM_METADATA_BYTES:
                return LitertlmContent(sections, None)
            file.seek(metadata.begin)
            data = file.read(metadata.end - metadata.begin)
            return LitertlmContent(sections, schema.unpack_llm_metadata(data, path.name).max_num_tokens or None)
    except OSError as error:
        raise BundleError(str(path), found=error.strerror, wanted="a .litertlm that can be read") from error


def _header_end(fixed: bytes, most: int, what: str) -> int:
    if len(fixed) < schema.METADATA_OFFSET or not fixed.startswith(schema.MAGIC):
        raise _broken(what, repr(fixed[: len(schema.MAGIC)]), repr(schema.MAGIC))
    (end,) = struct.unpack_from("<Q", fixed, schema.HEADER_END_OFFSET)
    if not schema.METADATA_OFFSET < end <= most:
        raise _broken(f"{what} header_end", str(end), f"{schema.METADATA_OFFSET + 1} to {most}")
    return int(end)


def _broken(what: str, found: str, wanted: str) -> BundleError:
    return BundleError(what, found=found, wanted=wanted, remedy="run gemma-edge check")
