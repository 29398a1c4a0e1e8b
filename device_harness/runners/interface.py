"""The interface of a runner: which process measures what on a machine, and how to parse its output.

`device_harness.bench` does everything else, in the same way for all runners: one process for each iteration, waiting
for a cool device, memory samples, cold starts, time limits, results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from toolkit.base.errors import ToolkitError
from toolkit.base.processors import require_threads
from toolkit.results.figures import FigureName
from toolkit.results.labels import workload_name
from toolkit.results.record import Backend, BinaryRecord, Delegation, Figures, ModelRecord, Start

if TYPE_CHECKING:  # child processes import this module too, and the memory of their imports is measured
    from device_harness.machines.machine import Machine
    from device_harness.push.source import PushSource
    from toolkit.bundle.manifest import Manifest

PROMPT_TOKENS, GENERATED_TOKENS = 512, 128
"""The default lengths of a workload."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload that a runner is to measure."""

    prompt_tokens: int = PROMPT_TOKENS
    generated_tokens: int = GENERATED_TOKENS
    start: Start = "warm"
    backend: Backend = "cpu"
    threads: int | None = None
    """The number of CPU threads; None: the runner's own default."""
    context: int | None = None
    """The number of positions in the caches; None: the model's own."""
    timeout_s: float = 600.0
    """The time limit of one process in seconds, after which it is killed."""

    def __post_init__(self) -> None:
        require_threads(self.threads)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this computer, read and checked once: a bundle's directory, or a .litertlm file."""

    path: Path
    source: PushSource
    size: str | None = None
    """The MatFormer size, one of the bundle's; None for a .litertlm, which has only one."""
    sha256: str | None = None
    """The hash of a .litertlm; None for a bundle, whose manifest has those of its files."""

    @property
    def manifest(self) -> Manifest | None:
        """The bundle's manifest; None for a .litertlm."""
        return self.source.manifest


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model on the machine that runs it."""

    record: ModelRecord
    path: str
    """The path on the machine that runs it: the bundle's folder, or the file."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes [begin, end) of a file on the machine, by default all of them."""

    path: str
    begin: int = 0
    end: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.end is None

    def touches(self, begin: int, end: int) -> bool:
        """Whether the range overlaps [begin, end)."""
        return begin < end and self.begin < end and (self.end is None or begin < self.end)


def whole_files(
    folder: str, manifest: Manifest, groups: Iterable[str] | None = None
) -> dict[str, tuple[FileRange, ...]]:
    """The files of a bundle by group, in its folder on the machine."""
    names = manifest.groups if groups is None else groups
    return {name: tuple(FileRange(f"{folder}/{file}") for file in manifest.groups[name].files) for name in names}


@dataclass(frozen=True, slots=True)
class Reading:
    """The results in one process's output."""

    figures: Figures
    delegation: Delegation | None = None
    begin_s: float | None = None
    end_s: float | None = None
    """The measured part, by the machine's /proc/uptime; None: the whole process."""
    phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """When each of `prompt` and `decode` began and ended, on the same clock, as far as the runner says."""
    weight_cache_fault: str | None = None
    """Why packed weights were not kept in a file, as the job asked for; None if they were."""


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration to measure, which gives one record of results; each iteration starts a new process."""

    tests: Mapping[str, FigureName]
    """The figure that is the result of each test, by the test's name, such as pp512."""
    argv: tuple[str, ...]
    read: Callable[[str], Reading]
    """Parse the figures from the process's complete output, both streams; EnvironmentFault if it has no result."""
    model: ModelRecord
    binaries: tuple[BinaryRecord, ...]
    read_failure: Callable[[str, int], ToolkitError | None] | None = None
    """The error in the output of a failed process, given its exit code; None: its last line says enough."""
    works_in_child: bool = False
    """Whether the process's first child does the work, so that the memory to sample is the child's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    weight_caches: tuple[str, ...] = ()
    """Files on the machine, with a shell pattern as the last part, that are removed before a cold start."""
    groups: Mapping[str, tuple[FileRange, ...]] = field(default_factory=dict)
    """The file ranges on the machine of each parameter group, to attribute pages in memory to groups."""
    context: int | None = None
    """The number of positions for which the runner allocates caches, if known."""
    no_delegation: str | None = "the log does not say"
    """The reason to record if a reading has no delegation; None: no graph runs."""
    count_nodes: tuple[str, ...] = ()
    """The command of a process that counts delegated nodes after all measurements, if the measured one cannot."""
    read_nodes: Callable[[str], Delegation] | None = None
    """Parse the result of that process from its output; EnvironmentFault if it has none."""


def text_tests(workload: Workload) -> dict[str, FigureName]:
    """The tests of a text model, with their figures: llama-bench's, and two that it does not have."""
    return {
        workload_name(workload.prompt_tokens, 0): "prefill_tokens_per_s",
        workload_name(0, workload.generated_tokens): "decode_tokens_per_s",
        f"ttft{workload.prompt_tokens}": "time_to_first_token_s",
        "init": "init_s",
    }


JobPlan: TypeAlias = "Callable[[Machine, PlacedModel], tuple[Job, ...]]"
"""Copies to the machine what a runner needs in addition to the model, and returns the jobs to run there."""


class Runner(Protocol):
    """A program that measures, with its options, such as the path of the program."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Check the model before anything large is sent; UsageError or BundleError if it cannot be measured."""
