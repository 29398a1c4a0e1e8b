"""Starts a runner that is one of our modules on a machine, and reads the line of JSON that it prints."""

from __future__ import annotations

import json
import shlex
from typing import Any

from device_harness.machines.machine import Machine
from device_harness.runners.child_program import RESULT
from device_harness.runners.interface import Reading, Workload
from toolkit import __version__
from toolkit.base.errors import EnvironmentFault
from toolkit.results.figures import known_figures
from toolkit.results.record import BinaryRecord, Delegation

_START_S = 120.0


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
    value = _result(result.stdout)
    if value["version"] != __version__:
        what = f"{machine.serial} gemma-edge"
        raise EnvironmentFault(what, found=value["version"], wanted=__version__, remedy="install the same there")
    return tuple(BinaryRecord(**entry) for entry in value["binaries"])


def _failure(place: str, output: str) -> EnvironmentFault:
    """The error that the child printed; if it could not even start, its last line of output."""
    remedy = (
        "install gemma-edge and what the runner needs there; a phone has no Python: "
        "--runner litert_lm_advanced_main --binary-version latest"
    )
    told = _results(output)
    if not told:
        return EnvironmentFault(place, found=(output.strip().splitlines() or ["no answer"])[-1], remedy=remedy)
    error = told[0]["error"]
    return EnvironmentFault(
        place, file=error["file"], found=error["found"], wanted=error["wanted"], remedy=error["remedy"] or remedy
    )


def options(workload: Workload) -> tuple[str, ...]:
    """The child's arguments for a workload."""
    words = ("--prompt-tokens", str(workload.prompt_tokens), "--generated-tokens", str(workload.generated_tokens))
    return words if workload.threads is None else (*words, "--threads", str(workload.threads))


def read_child(output: str) -> Reading:
    """Read the line of JSON that a child printed."""
    value = _result(output)
    figures = known_figures(value["figures"], "runner in Python")
    return Reading(figures=figures, begin_s=value["begin_s"], end_s=value["end_s"])


def read_nodes(output: str) -> Delegation:
    """Read the line of JSON from a child that counted nodes."""
    return Delegation(**_result(output))


def _result(output: str) -> dict[str, Any]:
    found = _results(output)
    if len(found) != 1:
        raise EnvironmentFault("runner in Python", found=f"{len(found)} results", wanted="one line")
    return found[0]


def _results(output: str) -> list[dict[str, Any]]:
    return [dict(json.loads(line[len(RESULT) :])) for line in output.splitlines() if line.startswith(RESULT)]
