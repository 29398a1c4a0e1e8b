"""Runs bundle_runner on a machine: the same prompts as the session's runner, and the same figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.native.library import LibraryChoice
from device_harness.native.place import place_runner
from device_harness.programs.bucket import GOOGLE
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Reading, Workload, whole_files
from device_harness.runners.native.parser import read_failure, read_gpu_nodes, read_native, read_profile
from device_harness.runners.program_options import SERVER_VARIABLE
from device_harness.runners.session.runner import require_workload, session_tests
from device_harness.runners.spec import RunnerOptions, RunnerRequest
from toolkit.base.errors import UsageError
from toolkit.base.files import safe_name
from toolkit.bundle.manifest import TEXT_DECODER, Manifest
from toolkit.results.record import Delegation
from toolkit.runtime.backends.gpu.fit import require_fit
from toolkit.tflite.reader import read_tflite

NAME = "native"
_BACKENDS = ("cpu", "gpu")
_CACHE = "bench-native-weights"


def check_options(options: RunnerOptions, workload: Workload) -> None:
    """UsageError for two libraries, or a backend that the program does not have."""
    if options.text("library") is not None and options.text("library_version") is not None:
        raise UsageError("--library-version", found="cannot be used with --library")
    if (version := options.text("library_version")) is not None:
        safe_name(version, "--library-version")
    if workload.backend not in _BACKENDS:
        raise UsageError("--backend", found=workload.backend, wanted=f"cpu or gpu with the runner {NAME}")


def make_runner(request: RunnerRequest) -> NativeRunner:
    """Make the runner with the requested library."""
    path = request.options.text("library")
    server = os.environ.get(SERVER_VARIABLE) or GOOGLE
    choice = LibraryChoice(Path(path) if path else None, request.options.text("library_version"), server)
    return NativeRunner(choice, request.listener.note)


@dataclass(frozen=True, slots=True)
class NativeRunner:
    """Runs a bundle's directory with our program in C."""

    library: LibraryChoice
    say: Callable[[str], None]

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job; UsageError for more tokens than the bundle's context.

        For a GPU, BundleError or EnvironmentFault for a decoder that LiteRT's delegate does not take whole. Placing the
        job is an EnvironmentFault without a compiler or a library for the machine.
        """
        manifest = model.manifest
        assert manifest is not None
        require_workload(manifest, workload, NAME, _BACKENDS)
        if workload.backend == "gpu":
            require_fit(model.path / TEXT_DECODER)

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            return (self._job(machine, there, model.path, manifest, workload),)

        return jobs

    def _job(self, machine: Machine, model: PlacedModel, bundle: Path, manifest: Manifest, workload: Workload) -> Job:
        is_on_gpu = workload.backend == "gpu"
        placed = place_runner(machine, self.library, with_gpu=is_on_gpu, say=self.say)
        cache = f"{machine.cache_folder}/{_CACHE}"
        opening: dict[str, object] = {
            "do": "open",
            "bundle": model.path,
            "size": model.record.size or manifest.default_size,
        }
        if is_on_gpu:
            opening["backend"] = "gpu"
        else:
            opening["weight_cache"] = {"folder": cache, "runtime": placed.runtime}
        if workload.threads is not None:
            opening["threads"] = workload.threads

        size = manifest.size(model.record.size)
        signatures = [size.signature(width) for width in (1, *manifest.text.prefill_sizes)]

        def count(output: str) -> Delegation:
            content = read_tflite(bundle / TEXT_DECODER)
            nodes = sum(len(content.graph(name).operators) for name in signatures)
            return (read_gpu_nodes if is_on_gpu else read_profile)(output, nodes, signatures)

        def read(output: str) -> Reading:
            return read_native(output, workload.prompt_tokens, workload.generated_tokens)

        return Job(
            tests=session_tests(workload),
            argv=(*placed.argv, *_commands(opening, workload)),
            read=read,
            model=model.record,
            binaries=placed.records,
            read_failure=partial(read_failure, backend=workload.backend),
            weight_caches=() if is_on_gpu else (f"{cache}/*.xnnpack",),
            groups=whole_files(model.path, manifest),
            context=manifest.text.context,
            no_delegation="LiteRT's profiler was not asked: the run was cut short",
            count_nodes=(*placed.argv, json.dumps(opening), *(() if is_on_gpu else ('{"do": "profile"}',))),
            read_nodes=count,
        )


def _commands(opening: dict[str, object], workload: Workload) -> tuple[str, ...]:
    """The commands of a benchmark: a first prompt, then a second one, whose tokens are others."""
    prompt, generated = workload.prompt_tokens, workload.generated_tokens
    commands: tuple[dict[str, object], ...] = (
        opening,
        {"do": "prefill", "random": prompt - 1},
        {"do": "decode", "random": 1},
        {"do": "truncate", "position": 0},
        {"do": "prefill", "random": prompt},
        {"do": "decode", "random": generated},
        {"do": "stats"},
    )
    return tuple(map(json.dumps, commands))
