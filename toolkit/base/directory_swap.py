"""Replaces a directory by another in one step, and repairs what a killed process left behind."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}

_log = logging.getLogger(__name__)


def replace_directory(new: Path, target: Path) -> None:
    """Rename `new` to `target`, sync, and remove the old directory; at any moment one of the two has the name.

    Where the system cannot exchange two names, nothing has the name for an instant. If the process is killed just then,
    `restore_interrupted` renames the old directory back.
    """
    if not target.is_dir() or not any(target.iterdir()):
        os.replace(new, target)
        sync(target.parent)
    elif _exchange(new, target):
        sync(target.parent)
        shutil.rmtree(new, ignore_errors=True)
    else:
        _rename_twice(new, target)


def restore_interrupted(target: Path) -> None:
    """Repair `target` if a process was killed while it replaced it: rename the old directory back.

    If the new directory already has the name, the old one is removed.
    """
    pattern = f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.old"
    for old in sorted(target.parent.glob(pattern), key=_changed, reverse=True):
        with _locked(old) as held:
            if not held:
                continue
            if os.path.lexists(target):
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(old, target)
                _log.warning("restored %s, which a process had moved aside before it was killed", target)


def restore_missing(target: Path) -> None:
    """`restore_interrupted` before reading, if there is nothing at `target`."""
    if not os.path.lexists(target):
        restore_interrupted(target)


def sibling(target: Path, kind: str) -> Path:
    """A new hidden name beside `target`."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{kind}")


def sync(path: Path) -> None:
    """Return once a file's content, or the names in a directory, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False if the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _rename_twice(new: Path, target: Path) -> None:
    """Move the old directory aside, locked so that no other process takes it for abandoned, and remove it last."""
    old = sibling(target, "old")
    with _locked(target):
        try:
            os.replace(target, old)
            os.replace(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold a lock on a directory, which ends with the process; yields whether that was possible."""
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        held = False
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(lock)


def _changed(path: Path) -> int:
    try:
        return path.lstat().st_ctime_ns
    except OSError:
        return 0
