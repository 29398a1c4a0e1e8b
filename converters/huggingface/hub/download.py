"""Downloads files of a repository into Hugging Face's cache; an interrupted download continues where it ended.

Not by `huggingface_hub`, which begins a large file again after an interrupt (since 1.16, a process's partial file is
its own), takes a small one of any length, and names it as the server's ETag says, even outside of the cache. The layout
is its own, so that it finds what is here: `blobs/HASH`, and links to them in `snapshots/COMMIT`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from converters.huggingface.hub.ranges import stream_range
from converters.huggingface.hub.repository import HubFile, HubRepository
from toolkit.base.errors import CheckpointError
from toolkit.base.files import Advance, Progress, disk_faults, require_free_space

PART_SUFFIX = ".gemma-edge-part"
"""The ending of a blob that is not complete."""

_AT_ONCE = 4
_HASHED_BYTES = 1 << 20


class _Stopped(Exception):
    """The download was cancelled from outside."""


def download(repository: HubRepository, names: Sequence[str], progress: Progress | None = None) -> None:
    """Download the files that are not in the cache; `progress` gets the number of bytes done and their total.

    After an error or an interrupt, whatever was downloaded is kept.
    """
    files = [(repository.files or {})[name] for name in names if repository.cached(name) is None]
    if not files:
        return
    blobs = {file.name: repository.storage / "blobs" / repository.blob_name(file) for file in files}
    parts = map(_part_of, blobs.values())
    have = sum(path.stat().st_size for path in parts if path.exists())
    total = sum(file.size for file in files)
    repository.storage.mkdir(parents=True, exist_ok=True)
    require_free_space(repository.storage, total - have)
    advance, stop, lock = Advance(total, progress), threading.Event(), threading.Lock()

    def done(count: int) -> None:
        with lock:
            advance(count)

    with disk_faults(repository.storage), ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            work = [pool.submit(_fetch, repository, file, blobs[file.name], stop, done) for file in files]
            finished, _ = wait(work, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        finally:
            stop.set()


def _part_of(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}{PART_SUFFIX}")


def _fetch(
    repository: HubRepository, file: HubFile, blob: Path, stop: threading.Event, done: Callable[[int], None]
) -> None:
    if stop.is_set():
        return
    part = _part_of(blob)
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another process may be downloading it
        if blob.exists():
            done(file.size)
        else:
            _complete(repository, file, stream.fileno(), stop, done)
            os.rename(part, blob)
    part.unlink(missing_ok=True)
    _link(repository.folder / file.name, blob)


def _link(name: Path, blob: Path) -> None:
    """Make the blob appear under a name; where the system has no links, as a copy."""
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f".{name.name}.{uuid.uuid4().hex}")
    try:
        temporary.symlink_to(os.path.relpath(blob, name.parent))
    except OSError:
        shutil.copyfile(blob, temporary)
    os.replace(temporary, name)


def _complete(
    repository: HubRepository, file: HubFile, fd: int, stop: threading.Event, done: Callable[[int], None]
) -> None:
    """Append what is missing, and check the whole."""
    digest, have = file.digest(), os.fstat(fd).st_size
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
    wanted = repository.blob_name(file)
    if digest.hexdigest() != wanted:
        os.ftruncate(fd, 0)
        raise CheckpointError(
            f"{repository.hub_id}/{file.name}",
            found=f"{digest.name} {digest.hexdigest()[:16]}...",
            wanted=f"{wanted[:16]}..., as the Hub says",
            remedy="it was removed: run it again to download it again",
        )
    os.fsync(fd)


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
