"""Runs the flash probe: reads rows of a bundle's PLE shards, cold or warm, with every access method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from device_harness.flash.probe import ProbeSettings, place_probe, shard_groups, shard_names
from device_harness.machines.machine import Machine
from device_harness.programs.build import FLASH_PROBE
from device_harness.runners.flash_probe.parser import read_probe
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Workload, whole_files
from toolkit.base.errors import UsageError
from toolkit.results.figures import FigureName, known_figure

_SINGLE_ROWS = ("pread", "pread_random", "mmap", "mmap_random")
_BATCHES = (*_SINGLE_ROWS, "pread_readahead", "mmap_willneed")


def check_workload(workload: Workload) -> None:
    """UsageError for a context, a number of threads or a backend other than the CPU, which would have no effect."""
    given = {"--context": workload.context, "--threads": workload.threads}
    options = [option for option, value in given.items() if value is not None]
    options += ["--backend"] if workload.backend != "cpu" else []
    if options:
        raise UsageError(options[0], found=f"cannot be used with {FLASH_PROBE}, which runs no model")


@dataclass(frozen=True, slots=True)
class FlashProbeRunner:
    """Runs one process that reads with every access method, cold or warm as the workload's start says."""

    settings: ProbeSettings = field(default_factory=ProbeSettings)

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job; every bundle has shards."""
        manifest = model.manifest
        assert manifest is not None
        settings = replace(self.settings, state=workload.start)

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            placed = place_probe(machine)
            shards = [str(PurePosixPath(there.path, name)) for name in shard_names(manifest)]
            job = Job(
                tests=probe_tests(),
                argv=(placed.program, *settings.arguments(), *shards),
                read=read_probe,
                model=there.record,
                binaries=placed.records,
                groups=whole_files(there.path, manifest, shard_groups(manifest)),
                no_delegation=None,
            )
            return (job,)

        return jobs


def probe_tests() -> dict[str, FigureName]:
    """The tests, `ple_row:pread` and so on, each with the figure of its median latency."""
    pairs = [("row", access) for access in _SINGLE_ROWS] + [("batch", access) for access in _BATCHES]
    return {
        f"ple_{pattern}:{access}": known_figure(f"{pattern}_{access}_latency_p50_s", FLASH_PROBE)
        for pattern, access in pairs
    }
