"""What a benchmark asks of a runner: which process measures what on a machine, and what its output says.

Everything else is done by `device_harness.bench`, for all runners alike: one process for each iteration, waiting for a
cool device, samples of memory, cold starts, time limits, results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from toolkit.results.figures import FigureName
from toolkit.results.labels import workload_name
from toolkit.results.record import Backend, BinaryRecord, Delegation, Figures, ModelRecord, Start

if TYPE_CHECKING:  # a runner's child imports this module too, and has the memory of what it imports counted
    from device_harness.machines.machine import Machine
    from device_harness.push.source import PushSource
    from toolkit.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Workload:
    """What a runner is asked to measure."""

    prompt_tokens: int = 512
    generated_tokens: int = 128
    start: Start = "warm"
    backend: Backend = "cpu"
    threads: int | None = None
    """How many CPU threads; None: the runner's own choice."""
    context: int | None = None
    """Positions that the caches hold; None: the model's own number."""
    timeout_s: float = 600.0
    """The time limit of one process in seconds, after which it is killed."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this computer, read and judged once: a bundle's directory, or a .litertlm file."""

    path: Path
    source: PushSource
    size: str | None = None
    """MatFormer size, one of the bundle's; None for a .litertlm, which has one."""

    @property
    def manifest(self) -> Manifest | None:
        """A bundle's manifest; None for a .litertlm."""
        return self.source.manifest


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model on the machine that runs it."""

    record: ModelRecord
    path: str
    """The path on the machine that runs it: the bundle's folder, or the file."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [begin, end) of a file on the machine that runs it, all of it by default."""

    path: str
    begin: int = 0
    end: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.end is None

    def touches(self, begin: int, end: int) -> bool:
        """Whether any byte of [begin, end) is one of ours."""
        return begin < end and self.begin < end and (self.end is None or begin < self.end)


def whole_files(
    folder: str, manifest: Manifest, groups: Iterable[str] | None = None
) -> dict[str, tuple[FileRange, ...]]:
    """A bundle's files by group, in its folder on the machine."""
    names = manifest.groups if groups is None else groups
    return {name: tuple(FileRange(f"{folder}/{file}") for file in manifest.groups[name].files) for name in names}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one process said of itself."""

    figures: Figures
    delegation: Delegation | None = None
    begin_s: float | None = None
    end_s: float | None = None
    """The measured part, by the machine's /proc/uptime; None: the whole process."""


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration, one record of results. Its process is started anew for each iteration."""

    tests: Mapping[str, FigureName]
    """Test name, such as pp512, to the figure that is its result."""
    argv: tuple[str, ...]
    read: Callable[[str], Reading]
    """Parse the figures from the process's complete output, both streams; EnvironmentFault if it has no result."""
    model: ModelRecord
    binaries: tuple[BinaryRecord, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    weight_caches: tuple[str, ...] = ()
    """Files on the machine, the last part a shell pattern, that a cold start goes without."""
    groups: Mapping[str, tuple[FileRange, ...]] = field(default_factory=dict)
    """Parameter group to its parts of files on the machine: whose pages are whose."""
    context: int | None = None
    """Positions that the runner makes room for, where it is told or its model says."""
    no_delegation: str | None = "the log does not say"
    """Why a reading without delegation has none; None: no graph runs."""
    count_nodes: tuple[str, ...] = ()
    """A process that tells delegation when all else is measured, where the measured one cannot."""
    read_nodes: Callable[[str], Delegation] | None = None
    """Parse the result of that process from its output; EnvironmentFault if it has none."""


def text_tests(workload: Workload) -> dict[str, FigureName]:
    """Test names of a text model to figures: llama-bench's, and two that it does not measure."""
    return {
        workload_name(workload.prompt_tokens, 0): "prefill_tokens_per_s",
        workload_name(0, workload.generated_tokens): "decode_tokens_per_s",
        f"ttft{workload.prompt_tokens}": "time_to_first_token_s",
        "init": "init_s",
    }


JobPlan: TypeAlias = "Callable[[Machine, PlacedModel], tuple[Job, ...]]"
"""Brings to the machine what a runner needs beside the model, and says what is to be run there."""


class Runner(Protocol):
    """A kind of program that measures; it holds its own options, such as where its program is."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Judge the model before anything large is sent; UsageError or BundleError for what cannot be measured."""
