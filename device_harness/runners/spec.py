"""What a runner says of itself: a `RunnerSpec` in its folder's `__init__`, and a word in `device_harness.runners.ALL`.

The command line, the defaults and the choice of a runner all come from here; nothing else knows a runner by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_harness.runners.interface import Job, Runner, Workload
from toolkit.base.files import Progress
from toolkit.results.record import DeviceRecord, Figures, ModelKind

if TYPE_CHECKING:  # as in interface.py
    from device_harness.push.source import PushProgress, Step


@dataclass(frozen=True, slots=True)
class RunnerOption:
    """An option that only some runners have, on the command line `--binary-version` for the name `binary_version`."""

    name: str
    metavar: str
    help: str
    repeats: bool = False
    """Whether it may be given more than once."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The values that were given for a runner's options, as texts, by the option's name."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def texts(self, name: str) -> tuple[str, ...]:
        """All values of an option that repeats."""
        return self.values.get(name, ())

    def text(self, name: str) -> str | None:
        """The last value of an option; None if it was not given."""
        return self.texts(name)[-1] if self.texts(name) else None


class BenchListener:
    """Functions that are called while a benchmark runs; these do nothing."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""

    def iteration(self, job: Job, done: int, total: int, figures: Figures | None) -> None:
        """Called with the iterations done, the total, and the figures of the last one (None before the first)."""

    def downloading(self, name: str) -> AbstractContextManager[Progress | None]:
        """Open while a program is downloaded; yields a progress function for bytes done and the total, or None."""
        return nullcontext()

    def pushing(self, serial: str) -> AbstractContextManager[PushProgress]:
        """Open while files are pushed to a device; yields a progress function."""
        return nullcontext(_ignore)


def _ignore(step: Step, done: int, total: int) -> None:
    """A progress function that does nothing."""


@dataclass(frozen=True, slots=True)
class RunnerRequest:
    """What a runner is made from."""

    options: RunnerOptions
    workload: Workload
    device: DeviceRecord
    listener: BenchListener


def _accept(options: RunnerOptions, workload: Workload) -> None:
    """Accept all options."""


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """One runner. `make` and `check` import what they need when they are called.

    For the child processes that some runners start import this package too, and what they import is measured.
    """

    name: str
    """The name in results and for `--runner`."""
    about: str
    """What it runs, for the help of `--runner`."""
    takes: tuple[ModelKind, ...]
    """Which kinds of model it runs."""
    make: Callable[[RunnerRequest], Runner]
    """May download a program. UsageError, EnvironmentFault."""
    default_for: tuple[ModelKind, ...] = ()
    options: tuple[RunnerOption, ...] = ()
    check: Callable[[RunnerOptions, Workload], None] = _accept
    """UsageError for options that cannot be followed; asked before any machine is."""
