"""Runs LiteRT-LM's engine by its package litert-lm-api, on machines that have Python with it and gemma-edge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from device_harness.machines.machine import Machine
from device_harness.parsers.delegates import delegation, parse_delegates
from device_harness.runners import python_child
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Reading, Workload, text_tests
from device_harness.runners.litert_lm.model import EngineModel, read_engine_model
from toolkit.base.errors import UsageError

_MODULE = "device_harness.runners.litert_lm.child"
_CACHE = "bench-litert-lm-cache"


@dataclass(frozen=True, slots=True)
class LiteRtLmPythonRunner:
    """Runs a .litertlm in Google's engine, on the CPU."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job. UsageError for another backend than the CPU, or a longer context than the model's."""
        if workload.backend != "cpu":
            raise UsageError("--backend", found=workload.backend, wanted="cpu, which is all that litert_lm_python has")
        found = read_engine_model(model.path, workload)

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            return (_job(machine, there, found, workload),)

        return jobs


def _job(machine: Machine, model: PlacedModel, found: EngineModel, workload: Workload) -> Job:
    binaries = python_child.binaries(machine, _MODULE)
    cache = python_child.cache_folder(machine, _CACHE)
    context = () if found.context is None else ("--context", str(found.context))
    words = (model.path, "--cache", cache, *python_child.options(workload), *context)
    return Job(
        tests=text_tests(workload),
        argv=(*python_child.command(machine, _MODULE), *words),
        read=read_litert_lm_child,
        model=model.record,
        binaries=binaries,
        weight_caches=(f"{cache}/*xnnpack_cache*",),
        groups=found.groups(model.path),
        context=found.context,
    )


def read_litert_lm_child(output: str) -> Reading:
    """Read our child's line of JSON, and the delegates from the engine's log."""
    return replace(python_child.read_child(output), delegation=delegation(parse_delegates(output), "cpu"))
