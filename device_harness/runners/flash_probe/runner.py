"""The flash probe as a runner: rows of a bundle's PLE shards, cold or warm, in every way to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from device_harness.flash.probe import ProbeSettings, ReadMeasure, parse_probe, shard_groups, shard_names
from device_harness.machines.machine import Machine
from device_harness.machines.program import PlacedProgram, place_program
from device_harness.programs.build import FLASH_PROBE, native_program, parse_architecture
from device_harness.runners.interface import Job, PlacedModel, Reading, Workload, whole_files
from toolkit.base.errors import EnvironmentFault, ResultsError
from toolkit.bundle.manifest import Manifest
from toolkit.results.record import Figures, ModelKind

_ASK_S = 30.0
_SINGLE_ROWS = ("pread", "pread_random", "mmap", "mmap_random")
_BATCHES = (*_SINGLE_ROWS, "pread_readahead", "mmap_willneed")


@dataclass(frozen=True, slots=True)
class FlashProbeRunner:
    """One process reads in every way, in the state that the workload's start asks for."""

    settings: ProbeSettings = field(default_factory=ProbeSettings)
    name: str = FLASH_PROBE
    takes: tuple[ModelKind, ...] = ("bundle",)

    def require(self, local: Path, manifest: Manifest | None, workload: Workload) -> None:
        """Every bundle has shards."""

    def jobs(self, machine: Machine, model: PlacedModel, workload: Workload) -> tuple[Job, ...]:
        """One."""
        manifest = model.manifest
        assert manifest is not None
        placed = place_probe(machine)
        settings = replace(self.settings, state=workload.start)
        shards = [str(PurePosixPath(model.path, name)) for name in shard_names(manifest)]
        job = Job(
            tests=probe_tests(),
            argv=(placed.program, *settings.arguments(), *shards),
            read=read_probe,
            model=model.record,
            binaries=placed.records,
            groups=whole_files(model.path, manifest, shard_groups(manifest)),
            no_delegation=None,
        )
        return (job,)


def place_probe(machine: Machine, say: Callable[[str], None] | None = None) -> PlacedProgram:
    """Build it, if that was never done for such a machine, and bring it there."""
    answer = machine.shell("uname -m", timeout=_ASK_S).require(f"{machine.serial} uname -m")
    architecture = parse_architecture(answer, machine.serial)
    return place_program(machine, native_program(FLASH_PROBE, architecture, say=say).path)


def probe_tests() -> dict[str, str]:
    """``ple_row:pread`` and so on, each to the figure of its median latency."""
    pairs = [("row", access) for access in _SINGLE_ROWS] + [("batch", access) for access in _BATCHES]
    return {f"ple_{pattern}:{access}": f"{pattern}_{access}_latency_p50_s" for pattern, access in pairs}


def read_probe(output: str) -> Reading:
    """EnvironmentFault if the output is not complete, or if reads that were to be cold could not be."""
    try:
        _, measures = parse_probe(output, FLASH_PROBE)
    except ResultsError as error:
        raise EnvironmentFault(FLASH_PROBE, found=error.found, wanted=error.wanted, remedy=error.remedy) from error
    figures: Figures = {}
    for measure in measures:
        if measure.state == "not_cold":
            found = f"{measure.resident_pages_before:,} pages that stay in memory"
            remedy = "run it without --cold, or move the bundle to a file system that can be emptied"
            raise EnvironmentFault(f"{FLASH_PROBE} cold start", found=found, wanted="none", remedy=remedy)
        figures |= _figures(measure)
    return Reading(figures)


def _figures(measure: ReadMeasure) -> Figures:
    values: Figures = {
        "latency_p50_s": measure.latency_p50_us / 1e6,
        "latency_p99_s": measure.latency_p99_us / 1e6,
        "bandwidth_bytes_per_s": measure.bandwidth_bytes_per_s,
        "minor_faults_count": measure.minor_faults,
        "major_faults_count": measure.major_faults,
        "resident_after_count": measure.resident_pages_after,
    }
    if measure.storage_read_bytes is not None:
        values["storage_read_bytes"] = measure.storage_read_bytes
    return {f"{measure.pattern}_{measure.access}_{name}": value for name, value in values.items()}
