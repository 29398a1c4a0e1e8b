"""Writes files atomically (complete or not at all), and checks hashes, file names and free space."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from toolkit.base.directory_swap import replace_directory, restore_interrupted, sibling, sync
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError, system_reason

CHUNK_BYTES = 16 * 1024 * 1024
"""The unit of hashing, copying and resending; part of the manifest's format (docs/formats/manifest.md)."""

MAX_NAME_CHARACTERS = 128
"""Leaves room for a temporary name's prefix and suffix within the 255 bytes that ext4 and f2fs allow."""

Progress = Callable[[int, int], None]
"""A function called with the bytes done so far and the total."""

_CACHED_BYTES = 256 * 1024
"""Small enough to stay in the processor's cache until it is hashed."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}

_log = logging.getLogger(__name__)


def is_safe_name(name: str) -> bool:
    """Whether `name` is a valid file name on every system, and needs no quoting in any shell.

    >>> [is_safe_name(name) for name in ("a.tflite", "", "..", "a/b", ".hidden", "-rf", "a b", "a" * 129)]
    [True, False, False, False, False, False, False, False]
    """
    return len(name) <= MAX_NAME_CHARACTERS and _SAFE_NAME.fullmatch(name) is not None


def safe_name(name: str, what: str) -> str:
    """Return `name` if it is safe, raise UsageError otherwise. `what`: where the name comes from, for the error."""
    if not is_safe_name(name):
        wanted = f"letters, digits and . _ -, starting with a letter or digit, at most {MAX_NAME_CHARACTERS}"
        raise UsageError(what, found=repr(name), wanted=wanted)
    return name


@contextmanager
def atomic_file(path: Path | str, *, verify: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty temporary file beside `path` to write to; then sync it, `verify` it and rename it to `path`.

    After any exception, including an interrupt, the temporary file is removed and `path` is unchanged.
    """
    target = _file_target(path)
    with disk_faults(target), _new_sibling(target, _create_file) as partial:
        yield partial
        sync(partial)
        if verify is not None:
            verify(partial)
        os.replace(partial, target)
        sync(target.parent)


@contextmanager
def scratch_beside(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path`, where a file will be written; it is removed afterwards."""
    target = _file_target(path)
    with disk_faults(target), _new_sibling(target, os.mkdir) as scratch:
        yield scratch


@contextmanager
def atomic_directory(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path` to fill; then sync all of it and rename it to `path`.

    An empty directory at `path` is replaced; one with files in it, only if `replace` is true. After any exception, the
    temporary directory is removed and `path` is unchanged.
    """
    target = _resolved(path)
    _require_replaceable(target, replace=replace)
    with disk_faults(target), _new_sibling(target, os.mkdir) as partial:
        yield partial
        for entry in sorted(partial.rglob("*")):
            sync(entry)
        sync(partial)
        replace_directory(partial, target)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a small file atomically, and read it back to compare; EnvironmentFault if it differs."""

    def verify(partial: Path) -> None:
        found = partial.read_bytes()
        if found != data:
            raise EnvironmentFault(file=path, found="the bytes read back differ from those written")

    with atomic_file(path, verify=verify) as partial:
        partial.write_bytes(data)


@dataclass(frozen=True, slots=True)
class FileHash:
    """A file's size in bytes, and the sha256 of all of it and of each chunk of CHUNK_BYTES, in hexadecimal."""

    size: int
    sha256: str
    chunks: tuple[str, ...]


def hash_file(path: Path | str, *, advance: Callable[[int], None] | None = None) -> FileHash:
    """Hash a file in one pass, with one thread for the whole and one for the chunks.

    `advance` is called with the bytes of each chunk.
    """
    whole = hashlib.sha256()
    chunks: list[str] = []
    size = 0
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        while chunk := _read_chunk(file.fileno()):
            update = pool.submit(whole.update, chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
            update.result()
            if advance is not None:
                advance(len(chunk))
    return FileHash(size, whole.hexdigest(), tuple(chunks))


def range_sha256(path: Path | str, begin: int, end: int) -> str:
    """The sha256 of the bytes [begin, end) of a file, in hexadecimal; BundleError if it ends before `end`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CACHED_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        while begin < end:
            count = file.readinto(buffer[: end - begin])
            if not count:
                raise file_shrunk(path, begin, end)
            digest.update(buffer[:count])
            begin += count
    return digest.hexdigest()


def file_shrunk(path: Path | str, end: int, wanted: int) -> BundleError:
    """The error for a local file that has become shorter."""
    found, least = f"an end at byte {end:,}", f"at least {wanted:,} bytes"
    return BundleError(file=path, found=found, wanted=least, remedy="try again")


class BackgroundHasher:
    """Hashes complete files and syncs them to disk, one after the other, while other files are being written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._stopped = threading.Event()
        self._hashes: dict[Path, Future[FileHash]] = {}

    def add(self, path: Path) -> None:
        """Queue a complete file: nothing may write to it from now on."""
        self._hashes[path] = self._pool.submit(self._finish, path)

    def hash(self, path: Path) -> FileHash:
        """The file's hash: waits for a queued file, and hashes a file that was not queued."""
        return self._hashes[path].result() if path in self._hashes else hash_file(path)

    def _finish(self, path: Path) -> FileHash:
        found = hash_file(path, advance=self._keep_on)  # first: its pages are still in memory
        sync(path)
        return found

    def _keep_on(self, _: int) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def __enter__(self) -> BackgroundHasher:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`: one `os.pwrite` may stop at 2 GiB, or at a signal."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


class Advance:
    """Counts bytes, and calls `progress` with the bytes done so far and the total."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def require_free_space(directory: Path | str, needed_bytes: int) -> None:
    """Raise EnvironmentFault unless the disk of `directory` has `needed_bytes` free; call it before the work starts."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise EnvironmentFault(
            file=directory,
            found=f"{free:,} bytes of free disk space",
            wanted=f"{needed_bytes:,}",
            remedy="free some space, or write elsewhere",
        )


def require_room(path: Path | str, needed_bytes: int) -> None:
    """`require_free_space` for a file or directory that is to be written to `path`; its parent must exist."""
    target = _resolved(path)
    _remove_abandoned(target)
    require_free_space(target.parent, needed_bytes)


@contextmanager
def disk_faults(target: Path) -> Iterator[None]:
    """Turn an OSError for a full or read-only disk into a ToolkitError; `target` is the path being written."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise EnvironmentFault(
                file=target, found=system_reason(error), remedy="free some space, or write elsewhere"
            ) from error
        if error.errno in _UNWRITABLE and error.filename and _is_beside(Path(os.fsdecode(error.filename)), target):
            raise UsageError(
                file=target, found=system_reason(error), remedy="choose a place that is writable"
            ) from error
        raise


@contextmanager
def locked_directory(directory: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a directory's lock, exclusive or shared; the system releases it if the process dies."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    with open(directory / "lock", "ab") as file:
        take_lock(file, kind, lambda: _log.info("waiting for another process that writes in %s", directory))
        yield


def take_lock(file: BinaryIO, kind: int, waits: Callable[[], None]) -> None:
    """Lock a file with one of fcntl's kinds; `waits` is called first if another process holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        waits()
        fcntl.flock(file, kind)


def _read_chunk(fd: int) -> bytes:
    """Read CHUNK_BYTES, or fewer at the end of the file."""
    pieces: list[bytes] = []
    missing = CHUNK_BYTES
    while missing and (piece := os.read(fd, missing)):
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _resolved(path: Path | str) -> Path:
    """The path with symbolic links resolved, so that writing to a link keeps the link; the parent must exist."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UsageError(file=path, found=f"there is no directory {target.parent}", remedy="create it")
    return target


def _file_target(path: Path | str) -> Path:
    target = _resolved(path)
    if target.is_dir():
        raise UsageError(file=path, found="a directory", wanted="the name of a file")
    return target


@contextmanager
def _new_sibling(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new hidden file or directory beside `target`; afterwards it is removed, unless it was renamed.

    It is locked while its process lives, so that what killed processes left behind is recognised; it is removed first.
    """
    _remove_abandoned(target)
    partial, lock = _make_locked(target, make)
    try:
        yield partial
    finally:
        _remove(partial)
        os.close(lock)


def _make_locked(target: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    while True:
        partial = sibling(target, "partial")
        make(partial)
        with suppress(FileNotFoundError):  # another process found it before it was locked, and removed it as abandoned
            lock = os.open(partial, os.O_RDONLY)
            with suppress(OSError):  # on a file system without locks, nothing is ever removed as abandoned
                fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.exists():
                return partial, lock
            os.close(lock)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files beside `target` that no living process has locked; repair what was replaced."""
    restore_interrupted(target)
    for partial in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError):
            lock = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(partial)
                _log.info("removed %s, which a killed process had left behind", partial)
            finally:
                os.close(lock)


def _remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _require_replaceable(target: Path, *, replace: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(file=target, found="a file", wanted="a new directory", remedy="choose another name")
    if target.is_dir() and not replace and any(target.iterdir()):
        raise UsageError(file=target, found="a directory with files in it", wanted="a new or empty one")


def _is_beside(path: Path, target: Path) -> bool:
    """Whether an error is about the file that is being written, and not about a file that the caller reads."""
    return path == target.parent or target.parent in path.parents
