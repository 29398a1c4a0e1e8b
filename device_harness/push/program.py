"""Pushes a program, alone or with its libraries, to a separate folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from device_harness.adb.transport import DeviceRefusal, Transport, quote, remote_path
from device_harness.adb.turns import in_turn
from device_harness.push.push import DEFAULT_FOLDER, push_source
from device_harness.push.source import PART, PushFile, PushSource
from toolkit.base.errors import UsageError
from toolkit.base.files import CHUNK_BYTES, hash_file, safe_name

_ASK_S = 30.0
_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """A local program and its libraries with their sha256: the program first, then all `*.so` of its folder."""

    program: Path
    files: tuple[PushFile, ...]
    digests: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash over the files' names and hashes, which identifies a build of the program."""
        lines = (f"{file.name} {digest}\n" for file, digest in zip(self.files, self.digests, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:_KEY_DIGITS]


def open_program(program: Path) -> ProgramFiles:
    """Hash a program and the libraries in its folder; UsageError if it does not exist."""
    if not program.is_file():
        raise UsageError("--binary", found=str(program), wanted=f"the program {program.name}")
    paths = [program, *sorted(path for path in program.parent.glob("*.so") if path != program)]
    hashed = [(path, hash_file(path)) for path in paths]
    files = [
        PushFile(safe_name(path.name, str(path)), path, found.size, found.chunks, CHUNK_BYTES) for path, found in hashed
    ]
    return ProgramFiles(program, tuple(files), tuple(found.sha256 for _, found in hashed))


def push_program(device: Transport, files: ProgramFiles, receiver: str | None = None) -> str:
    """Push the files, verified by their hashes, and make the program executable; return the folder on the device.

    The folder's name contains a hash, so that different builds of a program do not mix.
    """
    folder = remote_path(DEFAULT_FOLDER, "bin", files.key)
    push_source(device, PushSource(None, files.files), target=folder, receiver=receiver)
    placed = remote_path(folder, files.program.name)
    device.shell(f"chmod 700 {quote(placed)}", timeout=_ASK_S).require(f"{device.serial} chmod {placed}")
    return folder


def place_small_program(device: Transport, program: Path, folder: str) -> str:
    """Send a program of a few kB by `sync:`, which needs no programs on the device; return its path on the device.

    It is read back and compared. adbd makes files from `sync:` writable by everybody, so only the owner may enter
    `folder`.
    """
    part, placed = remote_path(folder, program.name + PART), remote_path(folder, program.name)
    make = f"umask 022; mkdir -p {quote(folder)} && chmod 700 {quote(folder)}"
    finish = f"chmod 700 {quote(part)} && mv -f {quote(part)} {quote(placed)}"
    with in_turn("programs", device.serial, program.name, waiting_for="another process that places it there"):
        device.shell(make, timeout=_ASK_S).require(f"{device.serial} {folder}")
        device.push_file(program, part, mode=0o700)
        if device.pull_bytes(part) != program.read_bytes():
            found = "bytes other than those sent"
            raise DeviceRefusal(f"{device.serial} {part}", found=found, remedy="try another cable")
        device.shell(finish, timeout=_ASK_S).require(f"{device.serial} {placed}")
    return placed
