"""What a push sends: the files of a bundle that are wanted, or a .litertlm, held against their hashes beforehand."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from device_harness.adb.payload import file_shrunk
from toolkit.base import files
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import safe_name
from toolkit.base.layout import ceil_div
from toolkit.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest
from toolkit.bundle.manifest_json import read_manifest

PART = ".part"
"""Behind the name of a file that is not whole yet."""
OLD_MANIFEST = f"{MANIFEST_NAME}.old"
"""The manifest of the bundle that a push is taking apart."""

_READ_BYTES = 256 * 1024
"""Stays in the processor's cache until it is hashed."""

Step = Literal["check", "compare", "copy", "send", "verify"]
PushProgress = Callable[[Step, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class PushFile:
    """A local file, the name it gets on the device, and the sha256 of each `chunk_bytes` of it."""

    name: str
    path: Path
    size: int
    chunks: Sequence[str]
    chunk_bytes: int

    def __post_init__(self) -> None:
        safe_name(self.name, "file to push")

    def offset(self, chunk: int) -> int:
        """Where a chunk starts; the file's end for the one after the last."""
        return min(chunk * self.chunk_bytes, self.size)

    def extent(self, first: int, stop: int) -> int:
        """Bytes of chunks `first` to before `stop`."""
        return self.offset(stop) - self.offset(first)

    def length(self, chunk: int) -> int:
        """Bytes of a chunk: the last one is shorter."""
        return self.extent(chunk, chunk + 1)


class LocalDigests(Sequence[str]):
    """The sha256 of each chunk of a file that no manifest lists: computed when it is first asked for.

    BundleError if the file changes meanwhile. Threads may share it.
    """

    def __init__(self, path: Path, size: int, chunk_bytes: int) -> None:
        self._file = PushFile("file", path, size, ("",) * ceil_div(size, chunk_bytes), chunk_bytes)
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._file.chunks)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._known:
            self.note(index, chunk_digest(self._file, index))
        return self._known[index]

    def note(self, index: int, digest: str) -> None:
        """What a chunk is, by someone who has read it."""
        if self._known.setdefault(index, digest) != digest:
            place = f"from byte {self._file.offset(index):,} on"
            raise BundleError(place, file=self._file.path, found="the file has changed", remedy="push again")


@dataclass(frozen=True, slots=True)
class PushSource:
    """Files in the order in which they are sent; a bundle's manifest comes last."""

    folder: str | None
    """What a bundle's folder on the device is called; None: the one file lies in no folder of its own."""
    files: tuple[PushFile, ...]
    manifest: Manifest | None = None


def open_source(
    path: Path | str, groups: Collection[str] | None = None, *, manifest: Manifest | None = None
) -> PushSource:
    """The files of a bundle's `groups` (None: all) and those that are always needed, or a .litertlm.

    `manifest`: the bundle's, if the caller has read it already.
    BundleError if a file is missing or has not the size that the manifest says.
    """
    found = Path(path)
    if found.is_dir():
        return _open_bundle(found, groups, read_manifest(found) if manifest is None else manifest)
    if found.suffix != ".litertlm" or not found.is_file():
        found_there = "another file" if found.exists() else "no such file"
        raise UsageError(file=path, found=found_there, wanted="a bundle's directory or a .litertlm file")
    if groups is not None:
        raise UsageError("--groups", found=found.name, wanted="a bundle", remedy="a .litertlm goes as a whole")
    return PushSource(None, (_unrecorded(found, safe_name(found.name, "file name")),))


def wanted_names(manifest: Manifest, groups: Collection[str] | None) -> tuple[str, ...]:
    """Files of the groups, and files of no group; UsageError for a group that the bundle lacks."""
    unknown = sorted(set(groups or ()) - manifest.groups.keys())
    if unknown:
        raise UsageError("groups", found=unknown[0], wanted=" or ".join(manifest.groups))
    left_out = {
        name
        for group, record in manifest.groups.items()
        if groups is not None and group not in groups
        for name in record.files
    }
    return tuple(name for name in sorted(manifest.files) if name not in left_out)


def _open_bundle(bundle: Path, groups: Collection[str] | None, manifest: Manifest) -> PushSource:
    for name in manifest.files:
        _require_free_name(name)
    found = [_recorded(bundle / name, name, manifest.files[name]) for name in wanted_names(manifest, groups)]
    found.append(_unrecorded(bundle / MANIFEST_NAME, MANIFEST_NAME))
    return PushSource(bundle.resolve().name, tuple(found), manifest)


def _unrecorded(path: Path, name: str) -> PushFile:
    size = path.stat().st_size
    return PushFile(name, path, size, LocalDigests(path, size, files.CHUNK_BYTES), files.CHUNK_BYTES)


def _recorded(path: Path, name: str, record: FileRecord) -> PushFile:
    """A file of a bundle by the hashes of its manifest; its content is looked at as it is read."""
    remedy = "convert it again"
    if not path.is_file():
        raise BundleError(file=path, found="no such file", remedy=remedy)
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(file=path, found=f"{size:,} bytes", wanted=f"{record.bytes:,}", remedy=remedy)
    return PushFile(name, path, size, record.chunks, files.CHUNK_BYTES)


def chunk_digest(file: PushFile, number: int) -> str:
    """The sha256 of a chunk as it is here now; BundleError if the file has shrunk."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    offset, end = file.offset(number), file.offset(number + 1)
    with open(file.path, "rb", buffering=0) as source:
        source.seek(offset)
        while offset < end:
            count = source.readinto(buffer[: end - offset])
            if not count:
                raise file_shrunk(file.path, offset, end)
            digest.update(buffer[:count])
            offset += count
    return digest.hexdigest()


def require_sound(file: PushFile, number: int) -> None:
    """BundleError if a chunk here is not what its manifest says, or was before."""
    digest = chunk_digest(file, number)
    if isinstance(file.chunks, LocalDigests):
        file.chunks.note(number, digest)
    elif digest != file.chunks[number]:
        found = f"sha256 {digest} from byte {file.offset(number):,} on"
        wanted = f"{file.chunks[number]}, as its manifest says"
        raise BundleError(file=file.path, found=found, wanted=wanted, remedy="convert it again")


class Comparison:
    """Holds what the device has stored against what is here, beside the sending.

    BundleError if a chunk differs because it is not what the manifest says: then sending it again would not help.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, file: PushFile, number: int, digest: str) -> None:
        """Look at one more; what was found wrong meanwhile is raised."""
        self._pending.append(self._pool.submit(_require_stored, file, number, digest))
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until all chunks are compared."""
        while self._pending:
            self._pending.popleft().result()


def _require_stored(file: PushFile, number: int, digest: str) -> None:
    """A chunk that is sound here and not there is sent again; one that is not sound here ends the push."""
    if file.chunks[number] != digest:
        require_sound(file, number)


def _require_free_name(name: str) -> None:
    """No file may stand where a push keeps its own; the device's file system may ignore case."""
    safe_name(name, f"{MANIFEST_NAME} files")
    if name.lower().endswith(PART) or name.lower() in (MANIFEST_NAME, OLD_MANIFEST):
        wanted = f"names other than {OLD_MANIFEST} and *{PART}, which a push keeps for itself"
        raise BundleError("files", file=MANIFEST_NAME, found=name, wanted=wanted)
