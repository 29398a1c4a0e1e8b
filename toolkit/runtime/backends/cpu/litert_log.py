"""LiteRT's own log, kept off the process's standard error.

LiteRT writes to file descriptor 2, and its Python package has no call that would lower its voice. So while it opens or
closes something the descriptor leads to a file, whose lines then go to our log. What LiteRT destroys after Python's
end is silenced there (`quiet_at_exit`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from toolkit.base.errors import EnvironmentFault

T = TypeVar("T")

STDERR = 2
_LINE = re.compile(r"(VERBOSE|INFO|WARNING|ERROR): |└ ")

# A descriptor belongs to the whole process: two threads that led it elsewhere at once would put back the wrong file.
_one_at_a_time = threading.RLock()

_log = logging.getLogger(__name__)


def quietly(what: str, work: Callable[[], T]) -> T:
    """Run `work` with LiteRT's lines going to our log; EnvironmentFault with those of its errors where it raises."""
    lines: list[str] = []
    level = logging.WARNING
    try:
        with _captured_stderr(lines):
            return work()
    except RuntimeError as error:
        level = logging.DEBUG
        faults = [line for line in lines if line.startswith("ERROR")]
        # The traceback's frames would keep LiteRT's environment alive beyond its quiet end.
        raise EnvironmentFault(
            what, found="; ".join([str(error), *faults]), wanted="LiteRT to open it"
        ) from error.with_traceback(None)
    finally:
        for line in lines:
            _log.log(level if line.startswith("ERROR") else logging.DEBUG, "LiteRT: %s", line)


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Collect LiteRT's lines; those that other threads write meanwhile come out at the end, a little late."""
    with _one_at_a_time, tempfile.TemporaryFile() as sink:
        if sys.stderr is not None:
            sys.stderr.flush()
        saved = os.dup(STDERR)
        os.dup2(sink.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(saved, STDERR)
            os.close(saved)
            sink.seek(0)
            for line in sink.read().splitlines(keepends=True):
                text = line.decode(errors="replace").rstrip("\n")
                if _LINE.match(text):
                    lines.append(text)
                else:
                    os.write(STDERR, line)


@contextmanager
def quiet_at_exit() -> Iterator[None]:
    """Silence what the C library's exit destroys of what is created inside; everything else still reaches stderr.

    exit(3) runs handlers in reverse order. The one registered last closes the descriptor before that destruction, the
    one registered first opens it again behind it: dup(2) returns the lowest free number.
    """
    with contextlib.suppress(AttributeError):  # no C library that has it
        spare = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        # As late as Python can: the process may have led its stderr elsewhere by then.
        atexit.register(_copy_stderr_to, spare)
        libc = ctypes.CDLL(None)
        _at_c_exit(libc, libc.dup, spare)
    yield
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        _at_c_exit(libc, libc.close, STDERR)


def _copy_stderr_to(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # stderr is closed
        os.dup2(STDERR, descriptor, inheritable=False)


def _at_c_exit(libc: ctypes.CDLL, function: Callable[[int], int], argument: int) -> None:
    """Python's own handlers run too early; these are C functions, for there is no Python any more."""
    libc.__cxa_atexit(ctypes.cast(function, ctypes.c_void_p), ctypes.c_void_p(argument), None)  # type: ignore[arg-type]
