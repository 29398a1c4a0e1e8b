"""Places bundle_runner and LiteRT's library on a machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_harness.adb.faults import DeviceFault
from device_harness.machines.machine import Machine
from device_harness.native.library import LibraryChoice, LiteRtLibrary, find_library
from device_harness.programs.build import Architecture, NativeProgram, parse_architecture
from device_harness.programs.bundle_runner import System, bundle_runner
from device_harness.push.program import ProgramFiles
from device_harness.push.source import PushFile
from toolkit.base.files import CHUNK_BYTES, Progress, hash_file
from toolkit.results.record import BinaryRecord

_ASK_S = 30.0
_GPU_LIBRARIES = "libLiteRt*Accelerator.so"


@dataclass(frozen=True, slots=True)
class PlacedRunner:
    """The program and the library on a machine, ready to start."""

    program: str
    library: str
    """Their paths on the machine."""
    runtime: str
    """The library's version, or its hash, for the names of weight caches."""
    records: tuple[BinaryRecord, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line that starts it; commands may follow as arguments (docs/formats/bundle_runner.md)."""
        return (self.program, self.library)


def place_runner(
    machine: Machine,
    choice: LibraryChoice | None = None,
    *,
    with_gpu: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> PlacedRunner:
    """Build the program and find the library for this machine, each once, and copy them there.

    `with_gpu`: also copy LiteRT's libraries for GPUs from the library's folder, from where it loads them.
    EnvironmentFault, with a remedy, if there is no compiler or no library.
    """
    system, architecture = _system_of(machine)
    program = bundle_runner(system, architecture, say=say)
    library = find_library(system, architecture, choice or LibraryChoice(), say=say, progress=progress)
    beside = tuple(sorted(library.path.parent.glob(_GPU_LIBRARIES))) if with_gpu else ()
    files = _program_files(program, library, beside)
    folder = machine.place_program(files)
    records = tuple(
        BinaryRecord(file.name, digest, file.size, library.version if file.path == library.path else None)
        for file, digest in zip(files.files, files.digests, strict=True)
    )
    # This computer's own files stay where they are.
    here = machine.kind == "host"
    placed = str(library.path.resolve()) if here else f"{folder}/{library.path.name}"
    return PlacedRunner(f"{folder}/{program.path.name}", placed, library.runtime, records)


def _system_of(machine: Machine) -> tuple[System, Architecture]:
    """Whether programs for Android's linker run on the machine, and its architecture."""
    command = "uname -m; if [ -e /system/bin/linker64 ]; then echo android; else echo linux; fi"
    words = machine.shell(command, timeout=_ASK_S).require(f"{machine.serial} uname -m").split()
    if len(words) != 2:
        raise DeviceFault(f"{machine.serial} uname -m", found=shlex.join(words), wanted="an architecture")
    return "android" if words[1] == "android" else "linux", parse_architecture(words[0], machine.serial)


def _program_files(program: NativeProgram, library: LiteRtLibrary, beside: tuple[Path, ...]) -> ProgramFiles:
    hashed = [(path, hash_file(path)) for path in (program.path, library.path, *beside)]
    files = tuple(PushFile(path.name, path, found.size, found.chunks, CHUNK_BYTES) for path, found in hashed)
    return ProgramFiles(program.path, files, tuple(found.sha256 for _, found in hashed))
