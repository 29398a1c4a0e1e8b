"""Writes a .litertlm from its sections (docs/formats/litertlm.md), one chunk at a time, and reads it back."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import BundleError, EnvironmentFault
from toolkit.base.files import CHUNK_BYTES, Advance, Progress, atomic_file, hash_file, require_room
from toolkit.base.layout import SECTION_ALIGNMENT, align_up
from toolkit.litertlm import schema
from toolkit.litertlm.schema import ContainerMetadata, SectionRecord


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file without its first `skip` bytes, with the size and hash that the whole file must have."""

    path: Path
    file_size: int
    sha256: str
    skip: int = 0

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return self.file_size - self.skip

    def require_hash(self) -> None:
        """Hash the whole file; BundleError if it is not `sha256`."""
        _check_hash(self, hash_file(self.path).sha256)


@dataclass(frozen=True, slots=True)
class Section:
    """A section before its offset is known: its type, and where its bytes come from.

    `activations`: what the engine is to compute its graph with on a GPU, if it may not choose.
    """

    type: str
    content: tuple[bytes | FilePart, ...]
    model_type: str | None = None
    activations: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.content)


def write_container(
    path: Path, sections: Sequence[Section], system: Mapping[str, str], *, progress: Progress | None = None
) -> int:
    """Write a header and the sections to a temporary file, read it back, rename it; return the bytes written."""
    header, places = _layout(sections, system)
    total = places[-1].end
    require_room(path, total)
    digest = hashlib.sha256()
    advance = Advance(2 * total, progress)

    def verify(partial: Path) -> None:
        if hash_file(partial, advance=advance).sha256 != digest.hexdigest():
            raise EnvironmentFault(file=path, found="other bytes when read back than were written")

    with atomic_file(path, verify=verify) as partial, open(partial, "wb") as file:
        for chunk in _stream(header, sections, places):
            file.write(chunk)
            digest.update(chunk)
            advance(len(chunk))
        file.flush()
        assert file.tell() == total, "the layout and the sections disagree"
    return total


def _layout(sections: Sequence[Section], system: Mapping[str, str]) -> tuple[bytes, tuple[SectionRecord, ...]]:
    """The header, and the place of each section. The metadata has one length for all offsets, as long as none is 0."""

    def records(start: int) -> tuple[SectionRecord, ...]:
        placed: list[SectionRecord] = []
        for section in sections:
            start = align_up(start, SECTION_ALIGNMENT)
            pairs = {schema.MODEL_TYPE: section.model_type, schema.ACTIVATION_TYPE: section.activations}
            items = {key: text for key, text in pairs.items() if text is not None}
            placed.append(SectionRecord(section.type, start, start + section.size, items))
            start += section.size
        return tuple(placed)

    trial = schema.pack_container_metadata(ContainerMetadata(system, records(SECTION_ALIGNMENT)))
    header_end = schema.METADATA_OFFSET + len(trial)
    places = records(header_end)
    metadata = schema.pack_container_metadata(ContainerMetadata(system, places))
    assert len(metadata) == len(trial), "the metadata grew after it was laid out"
    version = schema.MAGIC + struct.pack("<3I", *schema.VERSION)
    fixed = version.ljust(schema.HEADER_END_OFFSET, b"\0") + struct.pack("<Q", header_end)
    return fixed.ljust(schema.METADATA_OFFSET, b"\0") + metadata, places


def _stream(header: bytes, sections: Sequence[Section], places: Sequence[SectionRecord]) -> Iterator[bytes]:
    yield header
    end = len(header)
    for section, place in zip(sections, places, strict=True):
        yield bytes(place.begin - end)
        for part in section.content:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _read_part(part)
        end = place.end


def _read_part(part: FilePart) -> Iterator[bytes]:
    """Yield the part's bytes; after the last one, BundleError if the file's hash is not `sha256`."""
    digest = hashlib.sha256()
    skip = part.skip
    with open(part.path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            yield chunk[skip:]
            skip = max(0, skip - len(chunk))
    _check_hash(part, digest.hexdigest())


def _check_hash(part: FilePart, found: str) -> None:
    if found != part.sha256:
        raise BundleError(file=part.path, found=f"sha256 {found}", wanted=part.sha256, remedy="convert it again")
