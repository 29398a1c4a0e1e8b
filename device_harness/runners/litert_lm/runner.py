"""Google's LiteRT-LM on a .litertlm: litert_lm_main and litert_lm_advanced_main, and its Python package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from device_harness.machines.machine import Machine
from device_harness.machines.program import place_program
from device_harness.runners import python_child
from device_harness.runners.benchmark_model.parser import delegation, parse_delegates
from device_harness.runners.interface import FileRange, Job, PlacedModel, Reading, Workload, text_tests
from device_harness.runners.litert_lm.parser import parse_benchmark_info, parse_peak_memory
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest import Manifest
from toolkit.litertlm.reader import LitertlmContent, read_litertlm
from toolkit.results.record import Backend, ModelKind

_MODULE = "device_harness.runners.litert_lm.child"
_CACHE = "bench-litert-lm-cache"

_CACHES = ("*xnnpack_cache*", "*_mldrift_*cache*.bin", "_*.bin", "*.mtp_drafter*")
"""What the engine keeps beside a model, by its executor_settings_base.h; older ones wrote MODEL_ID.bin."""

Program = Literal["litert_lm_main", "litert_lm_advanced_main"]


@dataclass(frozen=True, slots=True)
class LiteRtLmRunner:
    """``binary``: the program here, built for the device, its libraries beside it."""

    binary: Path
    name: Program = "litert_lm_advanced_main"
    version: str | None = None
    extra: tuple[str, ...] = ()
    """Arguments of the program that we have no word for."""
    takes: tuple[ModelKind, ...] = ("litertlm",)

    def require(self, local: Path, manifest: Manifest | None, workload: Workload) -> None:
        """Options that the program has, and a context that the model has."""
        self._read(local, workload)

    def jobs(self, machine: Machine, model: PlacedModel, workload: Workload) -> tuple[Job, ...]:
        """One."""
        content, context = self._read(model.local, workload)
        placed = place_program(machine, self.binary, version=self.version)
        options = [
            f"--backend={workload.backend}",
            f"--model_path={model.path}",
            "--benchmark=true",
            f"--benchmark_prefill_tokens={workload.prompt_tokens}",
            f"--benchmark_decode_tokens={workload.generated_tokens}",
        ]
        if self._is_advanced:
            options += ["--num_iterations=1", "--report_peak_memory_footprint=true"]
            options += [] if context is None else [f"--max_num_tokens={context}"]
            options += [] if workload.threads is None else [f"--num_cpu_threads={workload.threads}"]

        def read(output: str) -> Reading:
            return read_litert_lm(output, workload.backend)

        return (
            Job(
                tests=text_tests(workload),
                argv=(placed.program, *options, *self.extra),
                read=read,
                model=model.record,
                binaries=placed.records,
                environment=placed.environment(workload.backend),
                weight_caches=tuple(f"{model.path}{pattern}" for pattern in _CACHES),
                groups=litertlm_groups(content, model.path),
                context=context if self._is_advanced else None,
            ),
        )

    @property
    def _is_advanced(self) -> bool:
        """Whether it has the options of LiteRT-LM's shared_flags.cc."""
        return self.name == "litert_lm_advanced_main"

    def _read(self, local: Path, workload: Workload) -> tuple[LitertlmContent, int | None]:
        """The file's own word, and the context that the engine is told."""
        if workload.threads is not None and workload.backend != "cpu":
            wanted = "--backend cpu with it: the option is of CPU execution"
            raise UsageError("--threads", found=f"--backend {workload.backend}", wanted=wanted)
        for option, value in (("--threads", workload.threads), ("--context", workload.context)):
            if value is not None and not self._is_advanced:
                remedy = "use litert_lm_advanced_main"
                raise UsageError(option, found=value, wanted=f"none with {self.name}", remedy=remedy)
        return _read_content(local, workload)


@dataclass(frozen=True, slots=True)
class LiteRtLmPythonRunner:
    """The same engine by its package litert-lm-api, where a machine has Python with it and with this package."""

    name: str = "litert_lm_python"
    takes: tuple[ModelKind, ...] = ("litertlm",)

    def require(self, local: Path, manifest: Manifest | None, workload: Workload) -> None:
        """The CPU, and a context that the model has."""
        self._read(local, workload)

    def jobs(self, machine: Machine, model: PlacedModel, workload: Workload) -> tuple[Job, ...]:
        """One."""
        content, context = self._read(model.local, workload)
        binaries = python_child.binaries(machine, _MODULE)
        cache = python_child.cache_folder(machine, _CACHE)
        words = (model.path, "--cache", cache, *python_child.options(workload))
        words += () if context is None else ("--context", str(context))
        return (
            Job(
                tests=text_tests(workload),
                argv=(*python_child.command(machine, _MODULE), *words),
                read=read_litert_lm_child,
                model=model.record,
                binaries=binaries,
                weight_caches=(f"{cache}/*xnnpack_cache*",),
                groups=litertlm_groups(content, model.path),
                context=context,
            ),
        )

    def _read(self, local: Path, workload: Workload) -> tuple[LitertlmContent, int | None]:
        if workload.backend != "cpu":
            raise UsageError("--backend", found=workload.backend, wanted=f"cpu with the runner {self.name}")
        return _read_content(local, workload)


def _read_content(local: Path, workload: Workload) -> tuple[LitertlmContent, int | None]:
    """What the file says, and the context that the engine is told: what is asked for, else the file's own.

    UsageError for more than that, for there the engine would fall silent early.
    """
    content = read_litertlm(local)
    context = workload.context or content.context
    if workload.context is not None and content.context is not None and workload.context > content.context:
        wanted = f"at most {content.context}, the model's own"
        raise UsageError("--context", found=workload.context, wanted=wanted)
    tokens = workload.prompt_tokens + workload.generated_tokens
    if context is not None and tokens > context:
        wanted = f"at most {context}, the context"
        raise UsageError("-p and -n", found=f"{tokens} tokens", wanted=wanted, remedy="ask for fewer")
    return content, context


def litertlm_groups(content: LitertlmContent, path: str) -> dict[str, tuple[FileRange, ...]]:
    """The sections of each group, and the file for what belongs to none: the engine maps sections one by one."""
    groups = {
        name: tuple(FileRange(path, section.begin, section.end) for section in sections)
        for name, sections in content.groups().items()
    }
    return {**groups, "model": (FileRange(path),)}


def read_litert_lm_child(output: str) -> Reading:
    """Our child's line, and what the engine's log says of delegates."""
    return replace(python_child.read_child(output), delegation=delegation(parse_delegates(output), "cpu"))


def read_litert_lm(output: str, backend: Backend) -> Reading:
    """The last block of several: each of our processes runs one iteration."""
    info = parse_benchmark_info(output)[-1]
    prefill, decode = info.prefill[0], info.decode[0]
    figures: dict[str, float] = {
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
