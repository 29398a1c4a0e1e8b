"""Our own session, where a device has Python with this package: Linux boards, the emulated device, this computer."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from typing import Any

from device_harness.machine import Machine
from device_harness.push import DEFAULT_FOLDER
from device_harness.runners.interface import Job, PlacedModel, Reading, Workload
from device_harness.runners.session_child import RESULT
from toolkit import __version__
from toolkit.errors import EnvironmentFault, UsageError
from toolkit.results.record import BinaryRecord, ModelKind
from toolkit.runtime.weight_cache import default_directory

_MODULE = "device_harness.runners.session_child"
_START_S = 120.0
_CACHE = "bench-weight-cache"


@dataclass(frozen=True, slots=True)
class SessionRunner:
    """Runs a bundle's directory with LiteRT's CPU runtime."""

    name: str = "session"
    takes: tuple[ModelKind, ...] = ("bundle",)

    def jobs(self, machine: Machine, model: PlacedModel, workload: Workload) -> tuple[Job, ...]:
        """One. EnvironmentFault if the machine has no Python with this package."""
        manifest = model.manifest
        assert manifest is not None
        if workload.backend != "cpu":
            raise UsageError("--backend", found=workload.backend, wanted="cpu with the runner session")
        tokens = workload.prompt_tokens + workload.generated_tokens
        if tokens > manifest.text.context:
            wanted = f"at most {manifest.text.context}, the bundle's context"
            raise UsageError("-p and -n", found=f"{tokens} tokens", wanted=wanted, remedy="ask for fewer")
        python = sys.executable if machine.kind == "host" else "python3"
        cache = str(default_directory() / _CACHE) if machine.kind == "host" else f"{DEFAULT_FOLDER}/{_CACHE}"
        options = {"--prompt-tokens": workload.prompt_tokens, "--generated-tokens": workload.generated_tokens}
        options |= {} if workload.threads is None else {"--threads": workload.threads}
        size = model.record.size or manifest.default_size
        argv = [python, "-m", _MODULE, model.path, "--size", size, "--cache", cache]
        argv += [str(word) for pair in options.items() for word in pair]
        return (
            Job(
                tests=session_tests(workload),
                argv=tuple(argv),
                read=read_session,
                model=model.record,
                binaries=_binaries(machine, python),
                weight_caches=(f"{cache}/*.xnnpack",),
                groups={
                    name: tuple(f"{model.path}/{file}" for file in group.files)
                    for name, group in manifest.groups.items()
                },
            ),
        )


def session_tests(workload: Workload) -> dict[str, str]:
    """llama-bench's names, and what it does not measure."""
    return {
        f"pp{workload.prompt_tokens}": "prefill_tokens_per_s",
        f"tg{workload.generated_tokens}": "decode_tokens_per_s",
        f"ttft{workload.prompt_tokens}": "time_to_first_token_s",
        "init": "init_s",
    }


def read_session(output: str) -> Reading:
    """The child's line."""
    value = _result(output)
    return Reading(figures=value["figures"], begin_s=value["begin_s"], end_s=value["end_s"])


def _binaries(machine: Machine, python: str) -> tuple[BinaryRecord, ...]:
    result = machine.shell(f"{shlex.quote(python)} -m {_MODULE} 2>&1", timeout=_START_S)
    if result.exit_code:
        words = (result.stdout.strip().splitlines() or ["nothing"])[-1]
        remedy = "install Python and gemma-edge there, or choose another --runner"
        raise EnvironmentFault(
            f"{machine.serial} {python}", found=words, wanted="Python with gemma-edge", remedy=remedy
        )
    value = _result(result.stdout)
    if value["version"] != __version__:
        what = f"{machine.serial} gemma-edge"
        raise EnvironmentFault(what, found=value["version"], wanted=__version__, remedy="install the same there")
    return tuple(BinaryRecord(**entry) for entry in value["binaries"])


def _result(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith(RESULT)]
    if len(lines) != 1:
        raise EnvironmentFault("session", found=f"{len(lines)} results", wanted="one line")
    return dict(json.loads(lines[0].removeprefix(RESULT)))
