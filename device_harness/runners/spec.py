"""The description of a runner: a `RunnerSpec` in its folder's `__init__`, listed in `device_harness.runners.ALL`.

The command line, the defaults and the choice of a runner all use it; no other code names a runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_harness.runners.interface import Runner, Workload
from toolkit.base.files import Progress
from toolkit.results.figures import FigureName
from toolkit.results.record import DeviceRecord, Figures, ModelKind

if TYPE_CHECKING:  # as in interface.py
    from device_harness.push.source import PushProgress, Step


@dataclass(frozen=True, slots=True)
class RunnerOption:
    """An option of some runners; the name `binary_version` is `--binary-version` on the command line."""

    name: str
    metavar: str
    help: str
    repeats: bool = False
    """Whether the option may be given more than once."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The values given for a runner's options, as text, by the option's name."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def texts(self, name: str) -> tuple[str, ...]:
        """All values of an option that may repeat."""
        return self.values.get(name, ())

    def text(self, name: str) -> str | None:
        """The last value of an option; None if it was not given."""
        return self.texts(name)[-1] if self.texts(name) else None


class BenchListener:
    """Functions that are called while a benchmark runs; these do nothing."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""

    def iteration(self, tests: Mapping[str, FigureName], done: int, total: int, figures: Figures | None) -> None:
        """Called with the iterations done, the total, and the figures of the last one (None before the first).

        tests: the figure of each test, as in a record.
        """

    def downloading(self, name: str) -> AbstractContextManager[Progress | None]:
        """Open while a program is downloaded; yields a progress function for bytes done and the total, or None."""
        return nullcontext()

    def pushing(self, serial: str) -> AbstractContextManager[PushProgress]:
        """Open while files are pushed to a device, or checked before that; yields a progress function."""
        return nullcontext(_ignore)


def _ignore(step: Step, done: int, total: int) -> None:
    """A progress function that does nothing."""


@dataclass(frozen=True, slots=True)
class RunnerRequest:
    """The arguments for making a runner."""

    options: RunnerOptions
    workload: Workload
    device: DeviceRecord
    listener: BenchListener


def _accept(options: RunnerOptions, workload: Workload) -> None:
    """Accept all options."""


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """The description of one runner. `make` and `check` import what they need only when they are called.

    This is because the child processes of some runners import this package too, and the memory of imports is measured.
    """

    name: str
    """The name in results and for `--runner`."""
    about: str
    """What the runner runs, for the help of `--runner`."""
    takes: tuple[ModelKind, ...]
    """The kinds of model that the runner takes."""
    make: Callable[[RunnerRequest], Runner]
    """Makes the runner, and may download a program. UsageError, EnvironmentFault."""
    default_for: tuple[ModelKind, ...] = ()
    """The kinds of model for which this runner is the default."""
    default_on_phones: tuple[ModelKind, ...] = ()
    """Those for which it is the default on real devices, whatever `default_for` says of others."""
    has_lengths: bool = True
    """Whether it processes a prompt and generates tokens, as many as the workload says."""
    options: tuple[RunnerOption, ...] = ()
    check: Callable[[RunnerOptions, Workload], None] = _accept
    """UsageError for invalid options; called before a machine is needed."""
