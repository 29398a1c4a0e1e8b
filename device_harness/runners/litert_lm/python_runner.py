"""Runs LiteRT-LM's engine by its package litert-lm-api, on machines that have Python with it and gemma-edge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from device_harness.machines.machine import Machine
from device_harness.parsers.delegates import delegation, parse_delegates
from device_harness.runners import python_child
from device_harness.runners.gpu_failure import read_gpu_failure
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Reading, Workload, text_tests
from device_harness.runners.litert_lm.model import EngineModel, read_engine_model
from toolkit.base.errors import UsageError
from toolkit.results.record import Backend
from toolkit.runtime.backends.gpu.log import selected_adapter

_MODULE = "device_harness.runners.litert_lm.child"
_CACHE = "bench-litert-lm-cache"


@dataclass(frozen=True, slots=True)
class LiteRtLmPythonRunner:
    """Runs a .litertlm in Google's engine, on the CPU or the GPU."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job. UsageError for an NPU, for threads of a GPU, or a longer context than the model's."""
        if workload.backend == "npu":
            raise UsageError("--backend", found="npu", wanted="cpu or gpu with the runner litert_lm_python")
        if workload.threads is not None and workload.backend != "cpu":
            raise UsageError("--threads", found=f"can be used with --backend cpu only, not {workload.backend}")
        found = read_engine_model(model.path, workload)

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            return (_job(machine, there, found, workload),)

        return jobs


def _job(machine: Machine, model: PlacedModel, found: EngineModel, workload: Workload) -> Job:
    binaries = python_child.binaries(machine, _MODULE)
    cache = python_child.cache_folder(machine, _CACHE)
    context = () if found.context is None else ("--context", str(found.context))
    where = ("--backend", workload.backend)
    words = (model.path, "--cache", cache, *where, *python_child.options(workload), *context)
    return Job(
        tests=text_tests(workload),
        argv=(*python_child.command(machine, _MODULE), *words),
        read=partial(read_litert_lm_child, backend=workload.backend),
        read_failure=read_gpu_failure if workload.backend == "gpu" else None,
        model=model.record,
        binaries=binaries,
        # The folder has nothing but the engine's caches: packed weights, and the GPU's weights and compiled kernels.
        weight_caches=(f"{cache}/*",),
        groups=found.groups(model.path),
        context=found.context,
    )


def read_litert_lm_child(output: str, *, backend: Backend) -> Reading:
    """Read our child's line of JSON, and from the engine's log the delegates and the GPU's name."""
    found, adapter = delegation(parse_delegates(output), backend), selected_adapter(output)
    if found is not None and backend == "gpu" and adapter is not None:
        found = replace(found, source=f"{found.source}, adapter {adapter}")
    return replace(python_child.read_child(output), delegation=found)
