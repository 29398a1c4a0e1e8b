"""Downloads files of a repository into Hugging Face's cache; an interrupted download goes on where it ended.

`huggingface_hub` begins a large file again after an interrupt (since 1.16, a process's partial file is its own). So
large files are written beside its blobs under a name that stays, checked against the Hub's SHA-256, and then handed
over to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from converters.huggingface.hub.ranges import stream_range
from converters.huggingface.hub.repository import HubFile, HubRepository
from toolkit.base.errors import CheckpointError
from toolkit.base.files import Advance, Progress, disk_faults, require_free_space

PART_SUFFIX = ".gemma-edge-part"
"""Of a blob that is not complete."""

_AT_ONCE = 4
_HASHED_BYTES = 1 << 20


class _Stopped(Exception):
    """The download was given up from outside."""


def download(repository: HubRepository, names: Sequence[str], progress: Progress | None = None) -> None:
    """Download those of the files that are not in the cache; `progress` gets the bytes done and their total.

    After an error or an interrupt, whatever was downloaded is kept.
    """
    files = [(repository.files or {})[name] for name in names if repository.cached(name) is None]
    if not files:
        return
    parts = {file.name: _part(repository, file) for file in files}
    have = sum(path.stat().st_size for path in parts.values() if path is not None and path.exists())
    total = sum(file.size for file in files)
    repository.storage.mkdir(parents=True, exist_ok=True)
    require_free_space(repository.storage, total - have)
    advance, stop, lock = Advance(total, progress), threading.Event(), threading.Lock()

    def done(count: int) -> None:
        with lock:
            advance(count)

    with disk_faults(repository.storage), ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            work = [pool.submit(_fetch, repository, file, parts[file.name], stop, done) for file in files]
            finished, _ = wait(work, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        finally:
            stop.set()


def _part(repository: HubRepository, file: HubFile) -> Path | None:
    """Where a large file is written until it is complete; None for a small one."""
    if file.sha256 is None:
        return None
    return repository.storage / "blobs" / f"{file.sha256}{PART_SUFFIX}"


def _fetch(
    repository: HubRepository, file: HubFile, part: Path | None, stop: threading.Event, done: Callable[[int], None]
) -> None:
    if stop.is_set():
        return
    if part is None:
        repository.fetch(file.name)
        done(file.size)
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another process may be downloading it
        blob = part.with_suffix("")
        if blob.exists():
            done(file.size)
        else:
            _complete(repository, file, stream.fileno(), stop, done)
            os.rename(part, blob)
    part.unlink(missing_ok=True)
    repository.fetch(file.name)


def _complete(
    repository: HubRepository, file: HubFile, fd: int, stop: threading.Event, done: Callable[[int], None]
) -> None:
    """Append what is missing, and check the whole."""
    digest, have = hashlib.sha256(), os.fstat(fd).st_size
    if have > file.size:
        os.ftruncate(fd, 0)
        have = 0
    for start in range(0, have, _HASHED_BYTES):
        digest.update(os.pread(fd, min(_HASHED_BYTES, have - start), start))
    done(have)
    for piece in stream_range(repository, file, have, file.size):
        if stop.is_set():
            raise _Stopped
        _write(fd, piece)
        digest.update(piece)
        done(len(piece))
    if digest.hexdigest() != file.sha256:
        os.ftruncate(fd, 0)
        raise CheckpointError(
            f"{repository.hub_id}/{file.name}",
            found=f"sha256 {digest.hexdigest()[:16]}...",
            wanted=f"{str(file.sha256)[:16]}..., as the Hub says",
            remedy="it was removed: run it again to download it again",
        )
    os.fsync(fd)


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
