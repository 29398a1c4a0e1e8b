"""The source of a push: the wanted files of a bundle, or a .litertlm, with the hashes of their chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from toolkit.base import files
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import range_sha256, safe_name
from toolkit.base.layout import ceil_div
from toolkit.bundle.manifest import MANIFEST_NAME, TEXT_GROUPS, FileRecord, Manifest
from toolkit.bundle.manifest_json import read_manifest
from toolkit.litertlm.hashes import chunk_hashes
from toolkit.litertlm.header import read_header
from toolkit.litertlm.recognise import is_litertlm

PART = ".part"
"""The suffix of a file that is not complete yet."""
OLD_MANIFEST = f"{MANIFEST_NAME}.old"
"""The name of the old bundle's manifest while a push replaces that bundle."""

Step = Literal["check", "compare", "copy", "send", "verify"]
PushProgress = Callable[[Step, int, int], None]
"""Called with the current step, the bytes done and the total."""


@dataclass(frozen=True, slots=True)
class PushFile:
    """A local file, its name on the device, and the sha256 of each chunk of `chunk_bytes`."""

    name: str
    path: Path
    size: int
    chunks: Sequence[str]
    chunk_bytes: int

    def __post_init__(self) -> None:
        safe_name(self.name, "file to push")

    def offset(self, chunk: int) -> int:
        """The offset of a chunk; the file's size for the number after the last."""
        return min(chunk * self.chunk_bytes, self.size)

    def extent(self, first: int, stop: int) -> int:
        """The bytes of chunks `first` up to but not including `stop`."""
        return self.offset(stop) - self.offset(first)

    def length(self, chunk: int) -> int:
        """The bytes of a chunk; the last one may be shorter."""
        return self.extent(chunk, chunk + 1)


class LocalDigests(Sequence[str]):
    """The sha256 of each chunk of a file without a manifest: those recorded in it, the others computed at first use.

    BundleError if the file changes meanwhile, or differs from what is recorded. Threads may share it.
    """

    def __init__(
        self, path: Path, size: int, chunk_bytes: int, recorded: Callable[[], Mapping[int, str]] = dict[int, str]
    ) -> None:
        """`recorded`: called once, for the hashes in the file, by chunk number."""
        self._file = PushFile("file", path, size, ("",) * ceil_div(size, chunk_bytes), chunk_bytes)
        self._read_recorded = cache(recorded)
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
        recorded = self._read_recorded().get(index)
        if recorded is not None:
            return recorded
        if index not in self._known:
            self.note(index, chunk_digest(self._file, index))
        return self._known[index]

    def note(self, index: int, digest: str) -> None:
        """Take the hash of a chunk that the caller has read."""
        place = f"from byte {self._file.offset(index):,} on"
        recorded = self._read_recorded().get(index, digest)
        if recorded != digest:
            remedy = "export it again, or copy it again"
            raise BundleError(place, file=self._file.path, found=f"sha256 {digest}", wanted=recorded, remedy=remedy)
        if self._known.setdefault(index, digest) != digest:
            raise BundleError(place, file=self._file.path, found="the file has changed", remedy="push again")


@dataclass(frozen=True, slots=True)
class PushSource:
    """The files to push, in order; a bundle's manifest is the last."""

    folder: str | None
    """The name of a bundle's folder on the device; None for a single file, which has no folder of its own."""
    files: tuple[PushFile, ...]
    manifest: Manifest | None = None


def open_source(
    path: Path | str, groups: Collection[str] | None = None, *, manifest: Manifest | None = None
) -> PushSource:
    """Open a .litertlm file, or a bundle: the files of its `groups` (None: all) and those that are always needed.

    `manifest`: the bundle's, if the caller has read it already.
    BundleError if a file is missing or does not have the size in the manifest.
    """
    found = Path(path)
    if found.is_dir():
        return _open_bundle(found, groups, read_manifest(found) if manifest is None else manifest)
    if not is_litertlm(found):
        wanted = "a bundle's directory or a .litertlm file"
        if found.exists():
            raise UsageError(file=path, found="a file of another kind", wanted=wanted)
        raise UsageError(file=path, found="no such file or directory", remedy=f"name {wanted}")
    if groups is not None:
        raise UsageError("--groups", found="cannot be used with a .litertlm file, which is always pushed whole")
    return PushSource(None, (_unrecorded(found, safe_name(found.name, "file name"), partial(_recorded_chunks, found)),))


def wanted_names(manifest: Manifest, groups: Collection[str] | None) -> tuple[str, ...]:
    """The files of the groups, and those that belong to no group; UsageError for a group that the bundle lacks.

    `text` includes its embeddings.
    """
    unknown = sorted(set(groups or ()) - manifest.groups.keys())
    if unknown:
        raise UsageError("groups", found=unknown[0], wanted=" or ".join(manifest.groups))
    with_text = TEXT_GROUPS if "text" in (groups or ()) else ()
    left_out = {
        name
        for group, record in manifest.groups.items()
        if groups is not None and group not in groups and record.kind not in with_text
        for name in record.files
    }
    return tuple(name for name in sorted(manifest.files) if name not in left_out)


def _open_bundle(bundle: Path, groups: Collection[str] | None, manifest: Manifest) -> PushSource:
    for name in manifest.files:
        _require_free_name(name)
    wanted = wanted_names(manifest, groups)
    _require_groups(bundle, manifest, wanted)
    found = [_recorded(bundle / name, name, manifest.files[name]) for name in wanted]
    found.append(_unrecorded(bundle / MANIFEST_NAME, MANIFEST_NAME))
    return PushSource(bundle.resolve().name, tuple(found), manifest)


def _require_groups(bundle: Path, manifest: Manifest, wanted: Collection[str]) -> None:
    """BundleError, with what to do, if this copy of a bundle has no file of a group whose files are wanted."""
    absent = {
        name: group.files
        for name, group in manifest.groups.items()
        if group.kind not in TEXT_GROUPS and not any((bundle / file).exists() for file in group.files)
    }
    if any(file in wanted for files in absent.values() for file in files):
        names, others = " and ".join(absent), ",".join(name for name in manifest.groups if name not in absent)
        remedy = f"copy it again with {names}, or convert it again; gemma-edge push --groups {others} sends the rest"
        raise BundleError(file=bundle, found=f"a copy without the files of the group {names}", remedy=remedy)


def _unrecorded(path: Path, name: str, recorded: Callable[[], Mapping[int, str]] = dict[int, str]) -> PushFile:
    """A file that no manifest lists; `recorded`: for the hashes of chunks in the file itself."""
    size = path.stat().st_size
    return PushFile(name, path, size, LocalDigests(path, size, files.CHUNK_BYTES, recorded), files.CHUNK_BYTES)


def _recorded_chunks(path: Path) -> Mapping[int, str]:
    """The hashes of whole chunks in a .litertlm; none for a file that is not whole, which its check will report."""
    try:
        found = chunk_hashes(path, read_header(path))
    except BundleError:
        return {}
    return {} if found is None else found.whole


def _recorded(path: Path, name: str, record: FileRecord) -> PushFile:
    """A file of a bundle, with the manifest's hashes; its content is verified when it is read."""
    remedy = "convert it again"
    if not path.is_file():
        raise BundleError(file=path, found="no such file", remedy=remedy)
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(file=path, found=f"{size:,} bytes", wanted=f"{record.bytes:,}", remedy=remedy)
    return PushFile(name, path, size, record.chunks, files.CHUNK_BYTES)


def chunk_digest(file: PushFile, number: int) -> str:
    """The sha256 of a local chunk as it is now; BundleError if the file has become shorter."""
    return range_sha256(file.path, file.offset(number), file.offset(number + 1))


def require_unchanged(file: PushFile, number: int) -> None:
    """BundleError if a local chunk differs from its manifest, or from its earlier hash."""
    digest = chunk_digest(file, number)
    if isinstance(file.chunks, LocalDigests):
        file.chunks.note(number, digest)
    elif digest != file.chunks[number]:
        found = f"sha256 {digest} from byte {file.offset(number):,} on"
        wanted = f"{file.chunks[number]}, as its manifest says"
        raise BundleError(file=file.path, found=found, wanted=wanted, remedy="convert it again")


class Comparison:
    """Compares the hashes of stored chunks with the local ones, in parallel with sending.

    BundleError if a chunk differs because the local file differs from the manifest: sending it again would not help.
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
        """Queue one more comparison; raise a fault found by an earlier one."""
        self._pending.append(self._pool.submit(_require_stored, file, number, digest))
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until all chunks are compared."""
        while self._pending:
            self._pending.popleft().result()


def _require_stored(file: PushFile, number: int, digest: str) -> None:
    """BundleError if the local chunk is wrong too; if only the device's is, it is sent again later."""
    if file.chunks[number] != digest:
        require_unchanged(file, number)


def _require_free_name(name: str) -> None:
    """Refuse a file name that a push uses itself; the device's file system may ignore case."""
    safe_name(name, f"{MANIFEST_NAME} files")
    if name.lower().endswith(PART) or name.lower() in (MANIFEST_NAME, OLD_MANIFEST):
        wanted = f"names other than {OLD_MANIFEST} and *{PART}, which a push uses itself"
        raise BundleError("files", file=MANIFEST_NAME, found=name, wanted=wanted)
