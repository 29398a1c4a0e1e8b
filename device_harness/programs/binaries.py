"""A runner's program and the libraries beside it, brought to where they run."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from device_harness.adb.transport import Transport, quote, remote_path
from device_harness.machines.machine import Machine
from device_harness.push.push import DEFAULT_FOLDER, push_source
from device_harness.push.source import PushFile, PushSource
from toolkit.base.errors import UsageError
from toolkit.base.files import CHUNK_BYTES, hash_file, safe_name
from toolkit.results.record import Backend, BinaryRecord

_ASK_S = 30.0


@dataclass(frozen=True, slots=True)
class PlacedBinary:
    """Where a program lies on a machine, and its folder, in which its libraries are."""

    program: str
    folder: str
    records: tuple[BinaryRecord, ...]

    def environment(self, backend: Backend) -> dict[str, str]:
        """What lets the program find its libraries; Qualcomm's NPU has its own part of them loaded by its driver."""
        found = {"LD_LIBRARY_PATH": self.folder}
        return {**found, "ADSP_LIBRARY_PATH": self.folder} if backend == "npu" else found


def place_binary(machine: Machine, program: Path, *, version: str | None = None) -> PlacedBinary:
    """Push a program and all ``*.so`` of its folder, each verified by its hash; on this computer it is run in place.

    The folder on the device has the hashes in its name: other binaries of the same name do not meet.
    """
    if not program.is_file():
        raise UsageError("--binary", found=str(program), wanted=f"the program {program.name}")
    paths = [program, *sorted(path for path in program.parent.glob("*.so") if path != program)]
    files = [_push_file(path) for path in paths]
    records = tuple(
        BinaryRecord(file.name, digest, file.size, version if path == program else None)
        for (file, digest), path in zip(files, paths, strict=True)
    )
    if not isinstance(machine, Transport):
        if not os.access(program, os.X_OK):
            raise UsageError(str(program), found="no permission to execute it", wanted="a program", remedy="chmod +x")
        folder = str(program.resolve().parent)
        return PlacedBinary(str(program.resolve()), folder, records)
    name = hashlib.sha256("".join(f"{record.name} {record.sha256}\n" for record in records).encode()).hexdigest()[:16]
    folder = remote_path(DEFAULT_FOLDER, "bin", name)
    push_source(machine, PushSource(None, tuple(file for file, _ in files)), target=folder)
    placed = remote_path(folder, program.name)
    machine.shell(f"chmod 755 {quote(placed)}", timeout=_ASK_S).require(f"{machine.serial} chmod {placed}")
    return PlacedBinary(placed, folder, records)


def _push_file(path: Path) -> tuple[PushFile, str]:
    found = hash_file(path)
    name = safe_name(path.name, str(path))
    return PushFile(name, path, found.size, found.chunks, CHUNK_BYTES), found.sha256
