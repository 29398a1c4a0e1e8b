"""Copies a runner's program and its libraries to the machine that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.push.program import open_program
from toolkit.results.record import Backend, BinaryRecord


@dataclass(frozen=True, slots=True)
class PlacedProgram:
    """The paths on a machine of a program and of its folder, which also contains its libraries."""

    program: str
    folder: str
    records: tuple[BinaryRecord, ...]

    def environment(self, backend: Backend) -> dict[str, str]:
        """The variables by which the program, and for an NPU Qualcomm's driver, finds its libraries."""
        found = {"LD_LIBRARY_PATH": self.folder}
        return {**found, "ADSP_LIBRARY_PATH": self.folder} if backend == "npu" else found


def place_program(machine: Machine, program: Path, *, version: str | None = None) -> PlacedProgram:
    """Copy a program and all `*.so` in its folder to a machine; `version`: the program's, for the record."""
    found = open_program(program)
    folder = machine.place_program(found)
    records = tuple(
        BinaryRecord(file.name, digest, file.size, version if file.path == program else None)
        for file, digest in zip(found.files, found.digests, strict=True)
    )
    return PlacedProgram(f"{folder}/{program.name}", folder, records)
