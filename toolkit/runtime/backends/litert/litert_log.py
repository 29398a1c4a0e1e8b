"""Sends LiteRT's log to Python's logging instead of standard error.

LiteRT writes to file descriptor 2, and its Python package has no function to change that. So while LiteRT opens or
closes something, the descriptor is redirected to a file, whose lines then go to our log. What LiteRT prints when it is
destroyed, after Python has ended, is discarded (`quiet_at_exit`).
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

# The descriptor belongs to the whole process: two threads redirecting it at once would restore the wrong file.
_one_at_a_time = threading.RLock()

_log = logging.getLogger(__name__)


def quietly(what: str, work: Callable[[], T]) -> T:
    """Run `work` with LiteRT's lines sent to our log; an error becomes EnvironmentFault with LiteRT's error lines."""
    lines: list[str] = []
    level = logging.WARNING
    try:
        with _captured_stderr(lines):
            return work()
    except RuntimeError as error:
        level = logging.DEBUG
        faults = [line for line in lines if line.startswith("ERROR")]
        # The frames of the traceback would keep LiteRT's environment alive, and it would print when it is destroyed.
        raise EnvironmentFault(
            what, found="; ".join([str(error), *faults]), wanted="LiteRT to open it"
        ) from error.with_traceback(None)
    finally:
        for line in lines:
            _log.log(level if line.startswith("ERROR") else logging.DEBUG, "LiteRT: %s", line)


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Collect LiteRT's lines; lines of other threads are written to stderr at the end, a little late."""
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
    """Discard what objects created inside print when exit(3) destroys them; all other output reaches stderr.

    exit(3) runs handlers in reverse order. The one registered last closes the descriptor before that destruction, and
    the one registered first opens it again afterwards: dup(2) returns the lowest free number.
    """
    with contextlib.suppress(AttributeError):  # the C library lacks __cxa_atexit
        spare = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        # As late as possible in Python, because the process may have redirected its stderr by then.
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
    """Register a C function for exit(3); Python's own handlers run too early, and later no Python code can run."""
    libc.__cxa_atexit(ctypes.cast(function, ctypes.c_void_p), ctypes.c_void_p(argument), None)  # type: ignore[arg-type]
