"""Makes the hashes and the signature in a .litertlm's header, and compares them with the bytes of a file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from toolkit.base import files
from toolkit.base.errors import BundleError
from toolkit.base.files import CHUNK_BYTES, range_sha256
from toolkit.base.layout import ceil_div
from toolkit.base.signatures import SIGNATURE_DIGITS, Signer, Truster
from toolkit.bundle.faults import Fault
from toolkit.litertlm import tables
from toolkit.litertlm.header import Header, read_header
from toolkit.litertlm.tables import ContainerMetadata, SectionRecord

NO_DIGEST = "0" * 64
"""Stands in the place of a hash that is not computed yet."""
NO_SIGNATURE = "0" * SIGNATURE_DIGITS
_SIGNATURE = re.compile(f"[0-9a-f]{{{SIGNATURE_DIGITS}}}")
_DIGEST_BYTES = 32
_HASHERS = 4
"""Threads that hash chunks at once."""
_SIGNED = "gemma-edge-litertlm/1 "
"""Precedes the header's hash in the signed message, so that the signature is useless for anything else."""


def seal(header: bytes | None, signer: Signer | None) -> dict[str, str]:
    """The entries of a file that hold the hash of its header and, with a `signer`, a signature of it.

    `header`: the header with these entries as they are for None: zeros, as many as there will be digits.
    """
    digest = NO_DIGEST if header is None else hashlib.sha256(header).hexdigest()
    entries = {tables.HEADER_SHA256: digest}
    if signer is not None:
        entries[tables.SIGNATURE] = NO_SIGNATURE if header is None else signer(_signed(digest)).hex()
    return entries


def has_hashes(metadata: ContainerMetadata) -> bool:
    """Whether a file has hashes, or should have them because this toolkit wrote it."""
    generator = metadata.system.get(tables.GENERATOR, "")
    hashed = (tables.SHA256 in section.items for section in metadata.sections)
    return generator.startswith("gemma-edge") or tables.HEADER_SHA256 in metadata.system or any(hashed)


def require_hashes(path: Path, advance: Callable[[int], None] = lambda _: None, *, whole_chunks: bool = True) -> None:
    """BundleError if a .litertlm differs from the hashes in it; files of other programs may have none.

    `advance` is called with the bytes of each part, all of the file's in the end. `whole_chunks`: False if the caller
    compares those of `ChunkHashes.whole` itself.
    """
    header = read_header(path)
    if not has_hashes(header.metadata):
        advance(path.stat().st_size)
        return
    chunks = chunk_hashes(path, header)
    left_out = chunks.whole if chunks is not None and not whole_chunks else {}
    if chunks is not None and not any(_chunk_faults(path, chunks, left_out, advance)):
        return
    faults = hash_faults(path, header, advance)
    if faults:
        raise faults[0].error(path, remedy="export it again, or copy it again")


def is_intact(path: Path, header: Header, advance: Callable[[int], None]) -> bool:
    """Whether a file just written has the hashes that it says it has."""
    chunks = chunk_hashes(path, header)
    if chunks is not None:
        return not any(_chunk_faults(path, chunks, (), advance))
    return not hash_faults(path, header, advance)


def hash_faults(path: Path, header: Header, advance: Callable[[int], None]) -> list[Fault]:
    """Faults of a file whose sections lie within it: bytes that have no hash, or another one."""
    sections = sorted(header.metadata.sections, key=lambda section: section.begin)
    faults = _header_faults(path.name, header)
    advance(len(header.data))
    end = len(header.data)
    with open(path, "rb", buffering=0) as file:
        for section in sections:
            if section.begin < end:  # otherwise a small file could demand endless hashing
                return [*faults, Fault(path.name, f"section {section.label}", "bytes of another section", "its own")]
            if _holds_more_than_zeros(file.fileno(), end, section.begin, advance):
                faults.append(Fault(path.name, f"bytes {end} to {section.begin}", "other bytes", "zeros"))
            faults += _section_faults(path.name, file.fileno(), section, advance)
            end = section.end
    try:
        chunks = None if faults else chunk_hashes(path, header)
    except BundleError as error:
        return [Fault.of(error, path.name, "hashes of chunks")]
    return faults if chunks is None else _chunk_faults(path, chunks)


@dataclass(frozen=True, slots=True)
class ChunkHashes:
    """The SHA-256 of each chunk of a file between the end of its header and the section that has these hashes."""

    begin: int
    end: int
    digests: tuple[str, ...]

    def span(self, number: int) -> tuple[int, int]:
        """The bytes [begin, end) that a hash is of."""
        first = number * files.CHUNK_BYTES
        return max(self.begin, first), min(self.end, first + files.CHUNK_BYTES)

    @property
    def whole(self) -> dict[int, str]:
        """The hashes of whole chunks, by number: not of the first one, nor of one that the section begins in."""
        return {n: self.digests[n] for n in range(1, self.end // files.CHUNK_BYTES)}


def chunk_hashes(path: Path, header: Header) -> ChunkHashes | None:
    """The hashes of a file's chunks, if it has them; BundleError if they, or the header, differ from their own hash."""
    section = header.metadata.binary_data(tables.CHUNK_SHA256)
    if section is None or section.items.get(tables.CHUNK_BYTES) != str(files.CHUNK_BYTES):
        return None
    size, end = chunk_hashes_bytes(section.begin), path.stat().st_size
    if not size:  # hashes of nothing, which would say that every file is whole
        return None
    if (section.end - section.begin, section.end) != (size, end):
        found, wanted = f"bytes {section.begin} to {section.end}", f"{size} bytes up to {end}, the end of the file"
        place = f"section {tables.CHUNK_SHA256}"
        raise BundleError(place, file=path, found=found, wanted=wanted, remedy="export it again")
    with open(path, "rb", buffering=0) as file:
        faults = _header_faults(path.name, header)
        faults += _section_faults(path.name, file.fileno(), section, lambda _: None)
        if faults:
            raise faults[0].error(path, remedy="export it again, or copy it again")
        data = os.pread(file.fileno(), size, section.begin)
    digests = tuple(data[at : at + _DIGEST_BYTES].hex() for at in range(0, size, _DIGEST_BYTES))
    return ChunkHashes(len(header.data), section.begin, digests)


def chunk_hashes_bytes(begin: int) -> int:
    """The size of the section of chunk hashes that begins there; 0 if no chunk is whole, so that none is of use."""
    return ceil_div(begin, files.CHUNK_BYTES) * _DIGEST_BYTES if begin >= 2 * files.CHUNK_BYTES else 0


class ChunkHasher:
    """Hashes each chunk of a file that is written from offset `at` on, in order."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._digest = hashlib.sha256()
        self._done: list[bytes] = []

    def update(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        rest = memoryview(data)
        while rest:
            piece = rest[: files.CHUNK_BYTES - self._at % files.CHUNK_BYTES]
            self._digest.update(piece)
            self._at += len(piece)
            rest = rest[len(piece) :]
            if self._at % files.CHUNK_BYTES == 0:
                self._end_chunk()

    def finish(self) -> bytes:
        """The hashes of all chunks, 32 bytes each."""
        if self._at % files.CHUNK_BYTES:
            self._end_chunk()
        return b"".join(self._done)

    def _end_chunk(self) -> None:
        self._done.append(self._digest.digest())
        self._digest = hashlib.sha256()


def _chunk_faults(
    path: Path,
    chunks: ChunkHashes,
    left_out: Iterable[int] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> list[Fault]:
    """Faults of chunks, hashed by several threads; without those `left_out`. `advance` gets all bytes of the file."""
    wanted = dict(enumerate(chunks.digests))
    for number in left_out:
        del wanted[number]
    spans = {number: chunks.span(number) for number in wanted}
    faults = []
    pool = ThreadPoolExecutor(_HASHERS)
    try:
        found = pool.map(lambda span: range_sha256(path, *span), spans.values())
        for number, digest in zip(wanted, found, strict=True):
            begin, end = spans[number]
            advance(end - begin)
            if digest != wanted[number]:
                faults.append(Fault(path.name, f"bytes {begin} to {end}", f"sha256 {digest}", wanted[number]))
    finally:
        pool.shutdown(cancel_futures=True)
    advance(path.stat().st_size - sum(end - begin for begin, end in spans.values()))
    return faults


def trust_faults(file: str, header: Header, trust: Sequence[Truster]) -> list[Fault]:
    """A fault unless one of the keys in `trust` has signed the header's hash, which stands for the whole file."""
    system = header.metadata.system
    text = system.get(tables.SIGNATURE)
    if text is None:
        return [Fault(file, "signature", "none", "one made with a trusted key")]
    signature = bytes.fromhex(text) if _SIGNATURE.fullmatch(text) else b""
    signed = _signed(system.get(tables.HEADER_SHA256, ""))
    if any(truster(signature, signed) for truster in trust):
        return []
    return [Fault(file, "signature", "made with another key, or for another file", "one made with a trusted key")]


def _signed(digest: str) -> bytes:
    return (_SIGNED + digest).encode()


def _header_faults(file: str, header: Header) -> list[Fault]:
    system = header.metadata.system
    recorded, signature = system.get(tables.HEADER_SHA256), system.get(tables.SIGNATURE)
    if recorded is None:
        return [Fault(file, "header", f"no {tables.HEADER_SHA256}", "a hash of the header")]
    if signature is not None and not _SIGNATURE.fullmatch(signature):
        return [Fault(file, "signature", "another form", f"{SIGNATURE_DIGITS} lower-case hexadecimal digits")]
    blanks = {recorded: NO_DIGEST, **_blank(system, tables.SIGNATURE, NO_SIGNATURE)}
    data = header.data
    for text, blank in blanks.items():
        if len(text) == len(blank) and data.count(text.encode()) == 1:
            data = data.replace(text.encode(), blank.encode())
    found = hashlib.sha256(data).hexdigest()
    return [] if found == recorded else [Fault(file, "header", f"sha256 {found}", recorded)]


def _blank(system: Mapping[str, str], key: str, blank: str) -> dict[str, str]:
    return {system[key]: blank} if key in system else {}


def _section_faults(file: str, fd: int, section: SectionRecord, advance: Callable[[int], None]) -> list[Fault]:
    digest = hashlib.sha256()
    for chunk in _chunks(fd, section.begin, section.end, advance):
        digest.update(chunk)
    place, recorded = f"section {section.label}", section.items.get(tables.SHA256)
    if recorded is None:
        return [Fault(file, place, f"no {tables.SHA256}", "a hash of the section")]
    found = digest.hexdigest()
    return [] if found == recorded else [Fault(file, place, f"sha256 {found}", recorded)]


def _holds_more_than_zeros(fd: int, begin: int, end: int, advance: Callable[[int], None]) -> bool:
    return any([chunk.count(0) < len(chunk) for chunk in _chunks(fd, begin, end, advance)])


def _chunks(fd: int, begin: int, end: int, advance: Callable[[int], None]) -> Iterator[bytes]:
    while begin < end:
        chunk = os.pread(fd, min(CHUNK_BYTES, end - begin), begin)
        if not chunk:
            raise BundleError(found="the file shrank while it was being read", remedy="try again")
        begin += len(chunk)
        advance(len(chunk))
        yield chunk
