"""Decides where a command may write: the same rules for every file and directory that is named as an output.

An output is never an input of the same command, nor inside one, and never a device, a FIFO or a socket. Links are
followed, and their targets must meet the same rules. What gemma-edge wrote, as its content shows, is replaced by
another of its kind; any other file, or directory with files in it, only with `--force`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.directory_swap import restore_interrupted
from toolkit.base.errors import UsageError, system_reason

Identity = tuple[int, int]
"""Device and inode, which are equal if two paths name the same file, whatever links and mounts lie between."""

_OTHER_NAME = "choose another name"
_OTHER = "name a place outside it"


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A kind of output, and how one that gemma-edge wrote is recognised."""

    name: str
    """In messages, such as `a bundle`."""
    stranger: Callable[[Path], str | None]
    """Says, for messages, what is at a path if it is of another kind or gemma-edge did not write it; otherwise None."""
    is_directory: bool = False
    other_endings: tuple[str, ...] = ()
    """Endings of names that mean another kind of output."""


@dataclass(frozen=True, slots=True)
class Output:
    """A place to write to.

    `inputs`: what the same command reads or has written; paths that do not exist are ignored. `force`: whether a file
    or directory that gemma-edge did not write may be replaced. `offers_force`: whether the user can ask for that.
    """

    path: Path
    kind: OutputKind
    inputs: tuple[Path, ...] = ()
    force: bool = False
    offers_force: bool = True

    def require(self) -> Path:
        """Return the path with all links followed; UsageError if it may not be written.

        Call it before the work starts, and again before a rename that comes much later.
        """
        if self.path.suffix.lower() in self.kind.other_endings:
            wanted = f"{self.kind.name}, a directory" if self.kind.is_directory else self.kind.name
            remedy = "choose a name without this ending"
            raise UsageError(file=self.path, found=f"the ending {self.path.suffix}", wanted=wanted, remedy=remedy)
        target = self._target()
        found = self._status(target)
        self._require_no_input(target, found)
        if found is not None:
            self._require_replaceable(target, found)
        return target

    def _target(self) -> Path:
        try:
            target = Path(os.path.realpath(self.path))
            if not target.parent.is_dir():
                raise UsageError(file=self.path, found=f"there is no directory {target.parent}", remedy="create it")
        except (OSError, ValueError) as error:  # a NUL in the name, or one that is too long
            raise self._unwritable(error) from error
        restore_interrupted(target)
        return target

    def _status(self, target: Path) -> os.stat_result | None:
        """The status of what is at the path: a regular file, a directory, or nothing; UsageError for anything else."""
        try:
            found = os.stat(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unwritable(error) from error
        what = _special(found.st_mode)
        if what is not None:
            raise self._error(what)
        if stat.S_ISDIR(found.st_mode) and not self.kind.is_directory:
            raise self._error("a directory", wanted="the name of a file", remedy=_OTHER_NAME)
        return found

    def _require_no_input(self, target: Path, found: os.stat_result | None) -> None:
        """Raise UsageError if the target is an input, is inside one, or contains one."""
        above = set(_identities_above(target))
        own = None if found is None else _identity(found)
        for source in self.inputs:
            if own is not None and own in _identities_of(source):
                raise self._error(f"an input of this command ({source})", remedy=_OTHER_NAME)
            if _status_of(source) in above:
                raise self._error(f"inside an input of this command ({source})", remedy=_OTHER)
            if own is not None and self.kind.is_directory and own in _all_above(source):
                raise self._error(f"a directory that contains an input of this command ({source})", remedy=_OTHER)

    def _require_replaceable(self, target: Path, found: os.stat_result) -> None:
        if self.kind.is_directory and not stat.S_ISDIR(found.st_mode):
            raise self._error("a file", wanted=f"a new directory for {self.kind.name}", remedy=_OTHER_NAME)
        if stat.S_ISDIR(found.st_mode) and _identity(found) in _in_use():
            raise self._error("a directory that contains your home or the working directory", remedy=_OTHER_NAME)
        try:
            empty = not any(target.iterdir()) if stat.S_ISDIR(found.st_mode) else found.st_size == 0
            what = None if empty else self.kind.stranger(target)
        except OSError as error:
            raise self._unwritable(error) from error
        if what is not None and not self.force:
            remedy = f"{_OTHER_NAME}, or replace it with --force" if self.offers_force else _OTHER_NAME
            raise self._error(what, wanted=f"a new name, or {self.kind.name} to replace", remedy=remedy)

    def _error(self, found: str, *, wanted: str | None = None, remedy: str = "choose another place") -> UsageError:
        return UsageError(file=self.path, found=found, wanted=wanted, remedy=remedy)

    def _unwritable(self, error: OSError | ValueError) -> UsageError:
        return UsageError(file=self.path, found=system_reason(error), remedy="choose a place that is writable")


def _special(mode: int) -> str | None:
    """What a file is if it is neither regular nor a directory; None otherwise."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = stat.S_IFMT(mode)
    return None if kind in (stat.S_IFREG, stat.S_IFDIR) else kinds.get(kind, "not a regular file")


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _status_of(path: Path | str) -> Identity | None:
    try:
        return _identity(os.stat(path))
    except (OSError, ValueError):
        return None


def _identities_above(path: Path) -> Iterator[Identity]:
    """The identities of all directories above a path that has no links in it."""
    for folder in path.parents:
        found = _status_of(folder)
        if found is not None:
            yield found


def _entries(source: Path) -> Iterator[Path]:
    """An input, and its entries if it is a directory: the files of a download are links to elsewhere."""
    yield source
    with suppress(OSError):
        yield from source.iterdir()


def _identities_of(source: Path) -> set[Identity]:
    return {found for entry in _entries(source) if (found := _status_of(entry)) is not None}


def _all_above(source: Path) -> set[Identity]:
    """The identities of all directories that contain an input, or the targets of its links."""
    places = {Path(os.path.realpath(entry)) for entry in _entries(source) if os.path.lexists(entry)}
    return {found for place in places for found in _identities_above(place)}


def _in_use() -> set[Identity]:
    """The identities of the home directory, the working directory, and all directories above them."""
    places = [Path.home(), Path.cwd()]
    return {found for place in places for found in (_status_of(place), *_identities_above(place)) if found is not None}
