"""The hashes and the signature in a .litertlm's header: made for a new file, and compared with a file's bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.base.files import CHUNK_BYTES
from toolkit.base.signatures import SIGNATURE_DIGITS, Signer, Truster
from toolkit.bundle.faults import Fault
from toolkit.litertlm import schema
from toolkit.litertlm.reader import Header, read_header
from toolkit.litertlm.schema import ContainerMetadata, SectionRecord

NO_DIGEST = "0" * 64
"""What stands in the place of a hash that is yet to be computed."""
NO_SIGNATURE = "0" * SIGNATURE_DIGITS
_SIGNATURE = re.compile(f"[0-9a-f]{{{SIGNATURE_DIGITS}}}")
_SIGNED = "gemma-edge-litertlm/1 "
"""Precedes the header's hash in what is signed, so that a signature is of no use for anything else."""


def sealed_header(header: bytes, signer: Signer | None) -> bytes:
    """A header with its own hash in place of NO_DIGEST, and a signature in place of NO_SIGNATURE, if there is a key."""
    digest = hashlib.sha256(header).hexdigest()
    if signer is not None:
        header = header.replace(NO_SIGNATURE.encode(), signer(_signed(digest)).hex().encode())
    return header.replace(NO_DIGEST.encode(), digest.encode())


def has_hashes(metadata: ContainerMetadata) -> bool:
    """Whether a file has hashes, or should have: this toolkit wrote it."""
    generator = metadata.system.get(schema.GENERATOR, "")
    hashed = (schema.SHA256 in section.items for section in metadata.sections)
    return generator.startswith("gemma-edge") or schema.HEADER_SHA256 in metadata.system or any(hashed)


def require_hashes(path: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """BundleError if a .litertlm differs from the hashes in its header; files of other programs may have none.

    `advance` is called with the bytes of each part, all of the file's in the end.
    """
    header = read_header(path)
    if not has_hashes(header.metadata):
        advance(path.stat().st_size)
        return
    faults = hash_faults(path, header, advance)
    if faults:
        raise faults[0].error(path, remedy="export it again, or copy it again")


def hash_faults(path: Path, header: Header, advance: Callable[[int], None]) -> list[Fault]:
    """Faults of a file whose sections lie within it: bytes that differ from their hashes, or have none."""
    sections = sorted(header.metadata.sections, key=lambda section: section.begin)
    faults = _header_faults(path.name, header)
    advance(len(header.data))
    end = len(header.data)
    with open(path, "rb", buffering=0) as file:
        for section in sections:
            if section.begin < end:  # or a small file could ask for endless hashing
                return [*faults, Fault(path.name, f"section {section.label}", "bytes of another section", "its own")]
            if _holds_more_than_zeros(file.fileno(), end, section.begin, advance):
                faults.append(Fault(path.name, f"bytes {end} to {section.begin}", "other bytes", "zeros"))
            faults += _section_faults(path.name, file.fileno(), section, advance)
            end = section.end
    return faults


def trust_faults(file: str, header: Header, trust: Sequence[Truster]) -> list[Fault]:
    """A fault unless one of the keys `trust` has signed the header's hash, which stands for the whole file."""
    system = header.metadata.system
    text = system.get(schema.SIGNATURE)
    if text is None:
        return [Fault(file, "signature", "none", "one made with a trusted key")]
    signature = bytes.fromhex(text) if _SIGNATURE.fullmatch(text) else b""
    signed = _signed(system.get(schema.HEADER_SHA256, ""))
    if any(truster(signature, signed) for truster in trust):
        return []
    return [Fault(file, "signature", "made with no trusted key, or of another file", "one made with a trusted key")]


def _signed(digest: str) -> bytes:
    return (_SIGNED + digest).encode()


def _header_faults(file: str, header: Header) -> list[Fault]:
    system = header.metadata.system
    recorded, signature = system.get(schema.HEADER_SHA256), system.get(schema.SIGNATURE)
    if recorded is None:
        return [Fault(file, "header", f"no {schema.HEADER_SHA256}", "a hash of the header")]
    if signature is not None and not _SIGNATURE.fullmatch(signature):
        return [Fault(file, "signature", "another form", f"{SIGNATURE_DIGITS} lower-case hexadecimal digits")]
    blanks = {recorded: NO_DIGEST, **_blank(system, schema.SIGNATURE, NO_SIGNATURE)}
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
    place, recorded = f"section {section.label}", section.items.get(schema.SHA256)
    if recorded is None:
        return [Fault(file, place, f"no {schema.SHA256}", "a hash of the section")]
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
