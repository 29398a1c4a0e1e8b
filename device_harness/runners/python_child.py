"""What starts a runner that is a module of ours on a machine, and reads the line of JSON that it prints."""

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
    """What starts a module of ours there."""
    return (machine.python, "-m", module)


def cache_folder(machine: Machine, name: str) -> str:
    """The folder in which a runner keeps packed weights, separate from all others, since a cold start empties it."""
    return f"{machine.cache_folder}/{name}"


def binaries(machine: Machine, module: str) -> tuple[BinaryRecord, ...]:
    """What the module says it runs on; EnvironmentFault if the machine has not what it needs."""
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
    """What the child says of its error; its last words where it did not even begin."""
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
    """The child's arguments for what is asked of it."""
    words = ("--prompt-tokens", str(workload.prompt_tokens), "--generated-tokens", str(workload.generated_tokens))
    return words if workload.threads is None else (*words, "--threads", str(workload.threads))


def read_child(output: str) -> Reading:
    """Read the line of JSON that a child printed."""
    value = _result(output)
    figures = known_figures(value["figures"], "runner in Python")
    return Reading(figures=figures, begin_s=value["begin_s"], end_s=value["end_s"])


def read_nodes(output: str) -> Delegation:
    """The line of a child that counted nodes."""
    return Delegation(**_result(output))


def _result(output: str) -> dict[str, Any]:
    found = _results(output)
    if len(found) != 1:
        raise EnvironmentFault("runner in Python", found=f"{len(found)} results", wanted="one line")
    return found[0]


def _results(output: str) -> list[dict[str, Any]]:
    return [dict(json.loads(line[len(RESULT) :])) for line in output.splitlines() if line.startswith(RESULT)]
