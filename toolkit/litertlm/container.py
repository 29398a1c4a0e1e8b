"""Writes a .litertlm from its sections (docs/formats/litertlm.md), one chunk at a time, and reads it back."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.base import files
from toolkit.base.errors import BundleError, EnvironmentFault
from toolkit.base.files import CHUNK_BYTES, Advance, Progress, atomic_file, hash_file, require_room
from toolkit.base.layout import SECTION_ALIGNMENT, align_up
from toolkit.base.signatures import Signer
from toolkit.litertlm import schema, tables
from toolkit.litertlm.hashes import (
    NO_DIGEST,
    ChunkHasher,
    chunk_hashes_bytes,
    is_intact,
    seal,
)
from toolkit.litertlm.header import read_header
from toolkit.litertlm.tables import ContainerMetadata, SectionRecord


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
        """Hash the whole file; BundleError if the hash is not `sha256`."""
        _check_hash(self, hash_file(self.path).sha256)


@dataclass(frozen=True, slots=True)
class Section:
    """A section before its offset is known: its type, and where its bytes come from.

    `activations`: the precision in which a GPU must compute its graph; None if the engine may choose.
    """

    type: str
    content: tuple[bytes | FilePart, ...]
    model_type: str | None = None
    activations: str | None = None
    items: Mapping[str, str] = field(default_factory=dict)
    """Further entries of its record."""

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.content)


def write_container(
    path: Path,
    sections: Sequence[Section],
    system: Mapping[str, str],
    *,
    signer: Signer | None = None,
    accept: Callable[[Path], None] = lambda _: None,
    progress: Progress | None = None,
) -> int:
    """Write the sections, then a header with their hashes, to a temporary file; read it back, and rename it.

    A file of 32 MiB or more gets one more section, with the hashes of its chunks. Returns the bytes written. `signer`
    signs the header's hash. `accept` gets the complete file, and raises to reject it.
    """
    layout = _Layout(sections, system, signer)
    if layout.header_end > tables.MAX_HEADER_BYTES:
        found, wanted = f"{layout.header_end:,} bytes", f"at most {tables.MAX_HEADER_BYTES:,}, which LiteRT-LM reads"
        raise BundleError("header", file=path, found=found, wanted=wanted)
    total = layout.places[-1].end
    require_room(path, total)
    advance = Advance(2 * total, progress)

    def verify(partial: Path) -> None:
        if not is_intact(partial, read_header(partial), advance):
            raise EnvironmentFault(file=path, found="the bytes read back differ from those written")
        accept(partial)

    with (
        atomic_file(path, verify=verify) as partial,
        open(partial, "r+b") as file,
        ThreadPoolExecutor(1) as pool,
    ):
        chunks = ChunkHasher(layout.header_end)

        def write(data: bytes, digest: hashlib._Hash) -> None:
            update = pool.submit(chunks.update, data)
            digest.update(data)
            file.write(data)
            update.result()
            advance(len(data))

        file.seek(layout.header_end)
        advance(layout.header_end)
        digests = []
        for section, place in zip(layout.sections, layout.places, strict=True):
            write(bytes(place.begin - file.tell()), hashlib.sha256())
            if section is layout.chunk_section:
                section = replace(section, content=(chunks.finish(),))
            digest = hashlib.sha256()
            for data in _stream(section):
                write(data, digest)
            assert file.tell() == place.end, "the layout and the sections disagree"
            digests.append(digest.hexdigest())
        file.seek(0)
        file.write(layout.header(digests))
        file.flush()
    return total


class _Layout:
    """The place of each section. The header's length does not depend on offsets and hashes while no offset is 0."""

    def __init__(self, sections: Sequence[Section], system: Mapping[str, str], signer: Signer | None) -> None:
        self._system, self._signer = system, signer
        self._place(sections)
        self.chunk_section: Section | None = None
        """Its content is known once all before it is written."""
        if chunk_hashes_bytes(align_up(self.places[-1].end, SECTION_ALIGNMENT)):
            self._place([*sections, _chunk_section(1)])
            self.chunk_section = _chunk_section(chunk_hashes_bytes(self.places[-1].begin))
            self._place([*sections, self.chunk_section])

    def _place(self, sections: Sequence[Section]) -> None:
        self.sections = tuple(sections)
        unhashed = [NO_DIGEST] * len(sections)
        self.header_end = len(self._packed(self._records(SECTION_ALIGNMENT, unhashed)))
        self.places = self._records(self.header_end, unhashed)

    def header(self, digests: Sequence[str]) -> bytes:
        """The header for sections with these hashes."""
        places = self._records(self.header_end, digests)
        sealed = self._packed(places, self._packed(places))
        assert len(sealed) == self.header_end, "the header grew after it was laid out"
        return sealed

    def _records(self, start: int, digests: Sequence[str]) -> tuple[SectionRecord, ...]:
        placed: list[SectionRecord] = []
        for section, digest in zip(self.sections, digests, strict=True):
            start = align_up(start, SECTION_ALIGNMENT)
            pairs = {tables.MODEL_TYPE: section.model_type, schema.ACTIVATION_TYPE: section.activations}
            items = {key: text for key, text in pairs.items() if text is not None}
            items |= {**section.items, tables.SHA256: digest}
            placed.append(SectionRecord(section.type, start, start + section.size, items))
            start += section.size
        return tuple(placed)

    def _packed(self, places: tuple[SectionRecord, ...], unsealed: bytes | None = None) -> bytes:
        """A header, with zeros for its own hash and signature, or with those of an `unsealed` one."""
        system = {**self._system, **seal(unsealed, self._signer)}
        metadata = schema.pack_container_metadata(ContainerMetadata(system, places))
        version = tables.MAGIC + struct.pack("<3I", *tables.VERSION)
        end = struct.pack("<Q", tables.METADATA_OFFSET + len(metadata))
        return (version.ljust(tables.HEADER_END_OFFSET, b"\0") + end).ljust(tables.METADATA_OFFSET, b"\0") + metadata


def _chunk_section(size: int) -> Section:
    """The section of chunk hashes, before they are known."""
    items = {tables.NAME: tables.CHUNK_SHA256, tables.CHUNK_BYTES: str(files.CHUNK_BYTES)}
    return Section(tables.BINARY_DATA, (bytes(size),), items=items)


def _stream(section: Section) -> Iterator[bytes]:
    for part in section.content:
        if isinstance(part, bytes):
            yield part
        else:
            yield from _read_part(part)


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
