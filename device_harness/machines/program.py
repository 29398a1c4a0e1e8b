"""A runner's program and the libraries beside it, brought to where they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.push.program import open_program
from toolkit.results.record import Backend, BinaryRecord


@dataclass(frozen=True, slots=True)
class PlacedProgram:
    """The paths of a program on a machine, and of its folder, which also has its libraries."""

    program: str
    folder: str
    records: tuple[BinaryRecord, ...]

    def environment(self, backend: Backend) -> dict[str, str]:
        """What lets the program find its libraries; Qualcomm's NPU has its own part of them loaded by its driver."""
        found = {"LD_LIBRARY_PATH": self.folder}
        return {**found, "ADSP_LIBRARY_PATH": self.folder} if backend == "npu" else found


def place_program(machine: Machine, program: Path, *, version: str | None = None) -> PlacedProgram:
    """Bring a program and all `*.so` of its folder to a machine; `version` is the program's, for the record."""
    found = open_program(program)
    folder = machine.place_program(found)
    records = tuple(
        BinaryRecord(file.name, digest, file.size, version if file.path == program else None)
        for file, digest in zip(found.files, found.digests, strict=True)
    )
    return PlacedProgram(f"{folder}/{program.name}", folder, records)
