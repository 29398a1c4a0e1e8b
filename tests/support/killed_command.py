"""Runs commands as `gemma-edge` does, each in a forked child, which a signal may end before or after a chosen rename.

`KilledCommands` starts this module as a process that has imported everything, so that a child does nothing but the work
that is to be interrupted. A rename is a call of `os.replace`, or the exchange of two directories.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from waiting import PATIENCE_S

P = ParamSpec("P")
R = TypeVar("R")

_RENAMES = "renames: "
_FAILED = 99


@dataclass(frozen=True)
class Aim:
    """A signal, and the rename that it is sent `before` or `after`, counted from 1; 0: never."""

    number: int = signal.SIGKILL
    moment: str = "before"
    count: int = 0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or a signal's number below 0; what it wrote on stderr; its renames.

    A killed one could not count its renames.
    """

    code: int
    errors: str
    renames: int | None


class KilledCommands:
    """The process that forks the children; one command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "killed_command"]
        self._server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers = selectors.DefaultSelector()
        assert self._server.stdout is not None
        self._answers.register(self._server.stdout, selectors.EVENT_READ)
        assert self._answer() == "ready"

    def start(self, arguments: Sequence[str], errors: Path, aim: Aim | None = None, **environment: str) -> None:
        """Begin a command; `errors`: the file for its stderr."""
        aim = aim or Aim()
        wanted = [aim.number, aim.moment, aim.count, list(arguments), str(errors), environment]
        assert self._server.stdin is not None
        print(json.dumps(wanted), file=self._server.stdin, flush=True)
        self._errors = errors
        self._child = int(self._answer())

    def send_signal(self, number: int) -> None:
        """To the command, unless it has ended: the process waits for it only once `ended` asks."""
        os.kill(self._child, number)

    def ended(self) -> Ended:
        """Wait for the end of the command."""
        assert self._server.stdin is not None
        print("wait", file=self._server.stdin, flush=True)
        code = int(self._answer())
        text, _, renames = self._errors.read_text().rpartition(_RENAMES)
        return Ended(code, text, int(renames)) if renames.strip().isdigit() else Ended(code, text + renames, None)

    def _answer(self) -> str:
        assert self._server.stdout is not None
        assert self._answers.select(PATIENCE_S), "no answer"
        return self._server.stdout.readline().strip()

    def __enter__(self) -> KilledCommands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._server.kill()
        self._server.communicate()


# --- the process -----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Read a command from each line, fork a child for it, and wait for it when told to."""
    _import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _be_child(*json.loads(line))
        print(child, flush=True)
        assert sys.stdin.readline() == "wait\n"
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _import_everything() -> None:
    import importlib
    import pkgutil

    import gemma_edge.commands

    for module in pkgutil.iter_modules(gemma_edge.commands.__path__):
        importlib.import_module(f"gemma_edge.commands.{module.name}")
    for name in ("converters.convert", "toolkit.litertlm.export", "toolkit.report.results_page", "matplotlib.figure"):
        importlib.import_module(name)


def _be_child(
    number: int, moment: str, count: int, arguments: list[str], errors: str, environment: dict[str, str]
) -> None:
    done = [0]
    code = _FAILED
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        os.environ.update(environment)
        sys.argv = ["gemma-edge", *arguments]
        code = _run(Aim(number, moment, count), done)
    except KeyboardInterrupt:
        code = 130  # before the command began
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(2, f"{_RENAMES}{done[0]}\n".encode())
        os._exit(code)


def _run(aim: Aim, done: list[int]) -> int:
    """The exit code of a command; `done` counts its renames."""
    from gemma_edge import cli
    from toolkit.base import directory_swap

    def aimed(rename: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(rename)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            done[0] += 1
            aim_is_here = done[0] == aim.count
            if aim_is_here and aim.moment == "before":
                os.kill(os.getpid(), aim.number)
            value = rename(*args, **kwargs)
            if aim_is_here and aim.moment == "after":
                os.kill(os.getpid(), aim.number)
            return value

        return wrapped

    os.replace = aimed(os.replace)
    if os.environ.get("WITHOUT_EXCHANGE"):
        directory_swap._exchange = lambda first, second: False
    else:
        directory_swap._exchange = aimed(directory_swap._exchange)
    try:
        cli.entry()
    except SystemExit as end:
        return int(end.code or 0)


if __name__ == "__main__":
    serve()
