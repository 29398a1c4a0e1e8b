"""Runs work on untrusted files in a child process, with limits on time, memory and output.

Chat templates are programs, and tokenizers are read by a library whose work cannot be limited from inside the process.
A forked child starts in a few milliseconds, because nothing has to be loaded again. Whatever happens in the child, the
parent continues and raises one error.
"""

from __future__ import annotations

import math
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from toolkit.base.errors import BundleError, ToolkitError

T = TypeVar("T")

_LOOK_S = 0.1
"""The time between looks at the child's memory, in seconds, on systems that cannot limit it."""
_PATIENCE = 60
"""The limit of wall-clock time, as a multiple of that of processor time: other programs may keep the computer busy."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the work may use: processor seconds, bytes of memory beyond what the process has now, bytes of its result.

    `seconds` is not wall-clock time, which can be long for valid work on a busy computer. `output_bytes` limits the
    pickled result.
    """

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 64 << 20


def limited(what: str, work: Callable[[], T], limits: Limits = Limits()) -> T:
    """The result of `work`, run in a child process. ToolkitErrors of `work` are raised here; BundleError if it crashes
    or exceeds a limit.

    `what`: the place in the error, such as `chat template`. The result must be plain data of our own classes.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Safe although there are threads: the child starts none, and takes no lock that one of the parent's could hold,
        # except those that fork itself handles.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _serve(work, writing, limits)
    os.close(writing)
    try:
        data = _read(reading, limits, child)
    finally:
        os.close(reading)
        # The child has ended already, or has reached a limit.
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if isinstance(data, str):
        raise BundleError(what, found=data, wanted="a harmless file")
    if not data:
        raise BundleError(what, found=_ending(status, limits), wanted="a harmless file")
    outcome: tuple[bool, T | ToolkitError] = pickle.loads(data)  # written by `_serve`, our own code
    succeeded, value = outcome
    if succeeded:
        return value  # type: ignore[return-value]
    assert isinstance(value, ToolkitError)
    raise value


def _serve(work: Callable[[], object], writing: int, limits: Limits) -> NoReturn:
    """Run the work in the child, write its outcome, and end the process without any cleanup."""
    try:
        # The parent ends the child, whatever signals the terminal sends to both. Libraries that panic print to stderr.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _limit_memory(limits.memory_bytes)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds, (_, hard) = math.ceil(limits.seconds), resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))
        data = pickle.dumps(_outcome(work))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)
    except BaseException:  # also one from a library that panics while memory is short
        os._exit(2)
    os._exit(0)


def _outcome(work: Callable[[], object]) -> tuple[bool, object]:
    try:
        return True, work()
    except ToolkitError as error:
        return False, error
    except MemoryError:
        raise
    except RecursionError:
        return False, BundleError(found="deeper nesting than can be processed", wanted="a harmless file")


def _limit_memory(more_bytes: int) -> None:
    """Limit this process to so many bytes more than it has now; without /proc, its parent watches its memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + more_bytes
    except FileNotFoundError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


def _read(fd: int, limits: Limits, child: int) -> bytes | str:
    """All bytes that the child writes, none if it crashed; or a text that says which limit it exceeded."""
    end, pieces, size = time.monotonic() + _PATIENCE * limits.seconds, bytearray(), 0
    looks = not os.path.exists("/proc/self/statm")
    most = _peak_bytes() + limits.memory_bytes
    while True:
        left = end - time.monotonic()
        ready = left > 0 and select.select([fd], [], [], min(left, _LOOK_S) if looks else left)[0]
        if not ready and looks and left > _LOOK_S:
            if _resident_bytes(child) > most:
                return _too_much_memory(limits)
            continue
        if not ready:
            return f"it did not finish within {_PATIENCE * limits.seconds:g} s"
        piece = os.read(fd, 1 << 20)
        if not piece:
            return bytes(pieces)
        size += len(piece)
        if size > limits.output_bytes:
            return f"it returned more than {limits.output_bytes >> 20} MiB"
        pieces += piece


def _ending(status: int, limits: Limits) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return f"it took more than {limits.seconds:g} s"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return f"it crashed ({signal.Signals(os.WTERMSIG(status)).name})"
    return _too_much_memory(limits)


def _too_much_memory(limits: Limits) -> str:
    return f"it failed, or needed more than {limits.memory_bytes >> 20} MiB of memory"


def _peak_bytes() -> int:
    """The most memory that this process has had; macOS counts bytes, Linux kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident_bytes(process: int) -> int:
    """The resident memory of a process in bytes, from ps(1); 0 for a process that has ended."""
    command = ["ps", "-o", "rss=", "-p", str(process)]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.strip()
    return int(found) * 1024 if found.isdigit() else 0
