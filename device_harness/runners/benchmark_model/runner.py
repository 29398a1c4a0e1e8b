"""Runs LiteRT's benchmark_model on each signature of each .tflite file of a bundle."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.machines.program import PlacedProgram, place_program
from device_harness.parsers.delegates import delegation, parse_delegates
from device_harness.runners.benchmark_model.parser import parse_benchmark_model
from device_harness.runners.google_program import GoogleProgram, check_program, google_program
from device_harness.runners.interface import (
    FileRange,
    Job,
    JobPlan,
    LocalModel,
    PlacedModel,
    Reading,
    Workload,
    whole_files,
)
from device_harness.runners.spec import RunnerOptions, RunnerRequest
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.bundle.manifest import Manifest
from toolkit.results.figures import FigureName
from toolkit.results.record import Backend
from toolkit.tflite.reader import read_tflite

_NAME = "benchmark_model"
_SUFFIX = ".tflite"
_BACKENDS: dict[Backend, tuple[str, ...]] = {"cpu": (), "gpu": ("--use_gpu=true",), "npu": ("--use_npu=true",)}


def check_options(options: RunnerOptions, workload: Workload) -> None:
    """UsageError if the options do not name a program, or one that lacks what the backend needs."""
    check_program(_NAME, options)
    if options.text("binary") is None and workload.backend == "npu":
        remedy = "put the program and your SoC's libraries in one folder, and give --binary PATH"
        raise UsageError("--binary-version", found="cannot be used with --backend npu", remedy=remedy)


def make_runner(request: RunnerRequest) -> BenchmarkModelRunner:
    """Make the runner with the requested program and signatures."""
    return BenchmarkModelRunner(google_program(_NAME, request), request.options.texts("signature") or ("*",))


@dataclass(frozen=True, slots=True)
class BenchmarkModelRunner:
    """Runs benchmark_model; `signatures`: shell patterns of FILE:SIGNATURE, without the extension .tflite."""

    program: GoogleProgram
    signatures: tuple[str, ...] = ("*",)
    runs: int = 10
    """The number of inferences in each process; the tool prints their mean."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job for each requested signature; UsageError if there is none, or if a context is given."""
        if workload.context is not None:
            found = f"cannot be used with {_NAME}, which runs no conversation"
            raise UsageError("--context", found=found)
        assert model.manifest is not None
        pairs = self._wanted(model.path, model.manifest)
        manifest = model.manifest

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            placed = place_program(machine, self.program.path, version=self.program.version)
            groups = whole_files(there.path, manifest)
            return tuple(self._job(placed, there, groups, workload, *pair) for pair in pairs)

        return jobs

    def _wanted(self, local: Path, manifest: Manifest) -> list[tuple[str, str]]:
        """The pairs of file and signature that match the patterns; UsageError if there are none."""
        names = [name for group in manifest.groups.values() for name in group.files if name.endswith(_SUFFIX)]
        pairs = [(name, signature) for name in names for signature in _signatures(local / name)]
        wanted = [pair for pair in pairs if any(fnmatch.fnmatch(_label(*pair), text) for text in self.signatures)]
        if not wanted:
            found = ", ".join(_label(*pair) for pair in pairs)
            raise UsageError("--signature", found=", ".join(self.signatures), wanted=f"one of {found}")
        return wanted

    def _job(
        self,
        placed: PlacedProgram,
        model: PlacedModel,
        groups: dict[str, tuple[FileRange, ...]],
        workload: Workload,
        file: str,
        signature: str,
    ) -> Job:
        threads = [] if workload.threads is None else [f"--num_threads={workload.threads}"]
        options = [f"--graph={model.path}/{file}", f"--signature_to_run_for={signature}", f"--num_runs={self.runs}"]
        if workload.backend == "npu":
            # The SoC's libraries, which the user put in the folder of the program.
            options += [f"--{kind}_library_path={placed.folder}" for kind in ("dispatch", "compiler_plugin")]
        label = _label(file, signature)

        def read(output: str) -> Reading:
            return read_benchmark_model(output, signature, workload.backend)

        return Job(
            tests={label: "inference_s", f"{label}:init": "init_s"},
            argv=(placed.program, *options, *_BACKENDS[workload.backend], *threads, *self.program.arguments),
            read=read,
            model=model.record,
            binaries=placed.records,
            environment=placed.environment(workload.backend),
            weight_caches=(f"{model.path}/*xnnpack_cache*",),
            groups=groups,
        )


def read_benchmark_model(output: str, signature: str, backend: Backend) -> Reading:
    """Parse the output; EnvironmentFault if another signature ran than the requested one."""
    times = parse_benchmark_model(output)
    if times.signature != signature:
        raise EnvironmentFault("benchmark_model", found=f"the signature {times.signature!r}", wanted=signature)
    found: dict[FigureName, float | None] = {
        "init_s": times.init_s,
        "inference_s": times.inference_s,
        "inference_min_s": times.inference_min_s,
        "inference_max_s": times.inference_max_s,
        "inference_stddev_s": times.inference_stddev_s,
        "warmup_first_s": times.warmup_first_s,
        "inferences_count": times.runs,
        "peak_memory_bytes": times.peak_bytes or times.overall_bytes,
    }
    figures = {name: value for name, value in found.items() if value is not None}
    return Reading(figures, delegation(parse_delegates(output), backend))


def _signatures(path: Path) -> tuple[str, ...]:
    return tuple(read_tflite(path).model.signatures)


def _label(file: str, signature: str) -> str:
    return f"{file.removesuffix(_SUFFIX)}:{signature}"
