"""Runs LiteRT-LM's programs litert_lm_main and litert_lm_advanced_main on a .litertlm."""

from __future__ import annotations

from dataclasses import dataclass

from device_harness.machines.machine import Machine
from device_harness.machines.program import place_program
from device_harness.parsers.delegates import delegation, parse_delegates
from device_harness.runners.google_program import GoogleProgram, google_program
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Reading, Workload, text_tests
from device_harness.runners.litert_lm.model import EngineModel, read_engine_model
from device_harness.runners.litert_lm.parser import parse_benchmark_info, parse_peak_memory
from device_harness.runners.spec import RunnerRequest
from toolkit.base.errors import UsageError
from toolkit.results.record import Backend, Figures

_CACHES = ("*xnnpack_cache*", "*_mldrift_*cache*.bin", "_*.bin", "*.mtp_drafter*")
"""The cache files of the engine next to a model, by its executor_settings_base.h; older versions wrote MODEL_ID.bin."""


@dataclass(frozen=True, slots=True)
class EngineProgram:
    """One of Google's two programs for the engine."""

    name: str
    has_shared_flags: bool
    """Whether the program has the options of LiteRT-LM's shared_flags.cc."""


ADVANCED = EngineProgram("litert_lm_advanced_main", has_shared_flags=True)
PLAIN = EngineProgram("litert_lm_main", has_shared_flags=False)


def make_runner(request: RunnerRequest, engine: EngineProgram) -> LiteRtLmRunner:
    """Make the runner with the requested program."""
    return LiteRtLmRunner(google_program(engine.name, request), engine)


@dataclass(frozen=True, slots=True)
class LiteRtLmRunner:
    """Runs one of Google's two programs; `program`: the path of the one that `engine` names."""

    program: GoogleProgram
    engine: EngineProgram = ADVANCED

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job. UsageError for options that the program lacks, or a longer context than the model's."""
        if workload.threads is not None and workload.backend != "cpu":
            raise UsageError("--threads", found=f"can be used with --backend cpu only, not {workload.backend}")
        for option, value in (("--threads", workload.threads), ("--context", workload.context)):
            if value is not None and not self.engine.has_shared_flags:
                remedy = f"use {ADVANCED.name}"
                raise UsageError(option, found=f"cannot be used with {self.engine.name}", remedy=remedy)
        found = read_engine_model(model.path, workload)

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            return (self._job(machine, there, found, workload),)

        return jobs

    def _job(self, machine: Machine, model: PlacedModel, found: EngineModel, workload: Workload) -> Job:
        placed = place_program(machine, self.program.path, version=self.program.version)
        options = self._options(model.path, workload, found.context)

        def read(output: str) -> Reading:
            return read_litert_lm(output, workload.backend)

        return Job(
            tests=text_tests(workload),
            argv=(placed.program, *options, *self.program.arguments),
            read=read,
            model=model.record,
            binaries=placed.records,
            environment=placed.environment(workload.backend),
            weight_caches=tuple(f"{model.path}{pattern}" for pattern in _CACHES),
            groups=found.groups(model.path),
            context=found.context if self.engine.has_shared_flags else None,
        )

    def _options(self, path: str, workload: Workload, context: int | None) -> list[str]:
        options = [
            f"--backend={workload.backend}",
            f"--model_path={path}",
            "--benchmark=true",
            f"--benchmark_prefill_tokens={workload.prompt_tokens}",
            f"--benchmark_decode_tokens={workload.generated_tokens}",
        ]
        if self.engine.has_shared_flags:
            options += ["--num_iterations=1", "--report_peak_memory_footprint=true"]
            options += [] if context is None else [f"--max_num_tokens={context}"]
            options += [] if workload.threads is None else [f"--num_cpu_threads={workload.threads}"]
        return options


def read_litert_lm(output: str, backend: Backend) -> Reading:
    """Parse the last block of the output: each process runs one iteration."""
    info = parse_benchmark_info(output)[-1]
    prefill, decode = info.prefill[0], info.decode[0]
    figures: Figures = {
        "init_s": info.init_s,
        "prefill_s": prefill.seconds,
        "decode_s": decode.seconds,
        "prefill_tokens_count": prefill.tokens,
        "decode_tokens_count": decode.tokens,
        "prefill_tokens_per_s": prefill.tokens_per_s,
        "decode_tokens_per_s": decode.tokens_per_s,
    }
    if info.time_to_first_token_s is not None:
        figures["time_to_first_token_s"] = info.time_to_first_token_s
    peak = parse_peak_memory(output)
    if peak is not None:
        figures["peak_memory_bytes"] = peak
    return Reading(figures, delegation(parse_delegates(output), backend))
