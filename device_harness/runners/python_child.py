"""Starts a runner that is one of our modules on a machine, and reads the line of JSON that it prints."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, TypeVar

from device_harness.machines.machine import Machine
from device_harness.runners.child_program import RESULT
from device_harness.runners.interface import Reading, Workload
from toolkit import __version__
from toolkit.base.errors import EnvironmentFault
from toolkit.base.json_types import Range
from toolkit.base.strict_json import parse_json, read_record
from toolkit.results.figures import known_figures
from toolkit.results.record import BinaryRecord, Delegation

_START_S = 120.0
_CHILD = "runner in Python"

T = TypeVar("T")
Number = Annotated[float, Range(-1e18, 1e18)]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a child says about itself."""

    version: str
    binaries: tuple[BinaryRecord, ...]


@dataclass(frozen=True, slots=True)
class _Error:
    """A child's error; see ToolkitError.to_json."""

    file: str | None
    place: str | None
    found: str
    wanted: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class _ToldError:
    error: _Error


@dataclass(frozen=True, slots=True)
class _Phase:
    begin_s: Number
    end_s: Number


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a child measured, and when, on the clock of /proc/uptime."""

    begin_s: Number
    end_s: Number
    figures: dict[str, Number]
    phases: dict[str, _Phase]


def command(machine: Machine, module: str) -> tuple[str, ...]:
    """The command that starts one of our modules on the machine."""
    return (machine.python, "-m", module)


def cache_folder(machine: Machine, name: str) -> str:
    """The folder for a runner's packed weights, separate from all others, because a cold start empties it."""
    return f"{machine.cache_folder}/{name}"


def binaries(machine: Machine, module: str) -> tuple[BinaryRecord, ...]:
    """Ask the module for the programs and libraries that it uses; EnvironmentFault if the machine lacks one."""
    words = command(machine, module)
    result = machine.shell(f"{' '.join(map(shlex.quote, words))} 2>&1", timeout=_START_S)
    if result.exit_code:
        raise _failure(f"{machine.serial} {words[0]}", result.stdout)
    told = _result(result.stdout, _Told, machine.serial)
    if told.version != __version__:
        what = f"{machine.serial} gemma-edge"
        raise EnvironmentFault(what, found=told.version, wanted=__version__, remedy="install the same version there")
    return told.binaries


def _failure(place: str, output: str) -> EnvironmentFault:
    """The error that the child printed; if it could not even start, its last line of output."""
    remedy = (
        "install gemma-edge and what the runner needs there; a phone has no Python: "
        "--runner litert_lm_advanced_main --binary-version latest"
    )
    told = _results(output, place)
    if not told:
        return EnvironmentFault(place, found=(output.strip().splitlines() or ["no answer"])[-1][:300], remedy=remedy)
    error = read_record(told[0], _ToldError, None, EnvironmentFault, place).error
    return EnvironmentFault(
        place, file=error.file, found=error.found, wanted=error.wanted, remedy=error.remedy or remedy
    )


def options(workload: Workload) -> tuple[str, ...]:
    """The child's arguments for a workload."""
    words = ("--prompt-tokens", str(workload.prompt_tokens), "--generated-tokens", str(workload.generated_tokens))
    return words if workload.threads is None else (*words, "--threads", str(workload.threads))


def read_child(output: str) -> Reading:
    """Read the line of JSON that a child printed."""
    measured = _result(output, _Measured, _CHILD)
    figures = known_figures(measured.figures, _CHILD)
    phases = {name: (phase.begin_s, phase.end_s) for name, phase in measured.phases.items()}
    return Reading(figures=figures, begin_s=measured.begin_s, end_s=measured.end_s, phases=phases)


def read_nodes(output: str) -> Delegation:
    """Read the line of JSON from a child that counted nodes."""
    return _result(output, Delegation, _CHILD)


def _result(output: str, kind: type[T], what: str) -> T:
    found = _results(output, what)
    if len(found) != 1:
        raise EnvironmentFault(what, found=f"{len(found)} results", wanted="one line")
    return read_record(found[0], kind, None, EnvironmentFault, what)


def _results(output: str, what: str) -> list[object]:
    lines = (line[len(RESULT) :] for line in output.splitlines() if line.startswith(RESULT))
    return [parse_json(line.encode("utf-8", "replace"), None, EnvironmentFault, what) for line in lines]
