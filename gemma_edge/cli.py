"""The command line: runs the verb, and turns every outcome into an exit code and, for an error, one line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from gemma_edge.parser import parse, print_help
from gemma_edge.terminal import STDOUT, Label, Terminal, to_stderr, write_line
from toolkit.base.errors import EnvironmentFault, ToolkitError, UsageError, system_reason

DONE, BAD_RESULT, WRONG_USE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130
_SIGNALLED = 128  # plus the signal's number, as in shells
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of a path that can name no file, on no machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code; argv: the arguments without the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print_help(sys.stderr)
        return WRONG_USE
    try:
        arguments = parse(words)
    except BrokenPipeError:
        return DONE
    except (ToolkitError, OSError) as error:
        return _fail(_known(error), Terminal(as_json="--json" in words), traced=False)
    except SystemExit as end:
        return _exit_code(end)
    except KeyboardInterrupt:
        return _interrupted()  # while a verb's libraries are imported, which may take seconds on a busy machine
    verbose: int = getattr(arguments, "verbose", 0)
    quiet: bool = getattr(arguments, "quiet", False)
    terminal = Terminal(
        as_json=getattr(arguments, "json", False), quiet=quiet, progress=not getattr(arguments, "no_progress", False)
    )
    with _log_on_stderr(terminal, verbose):
        return _run(arguments, terminal, traced=verbose > 0)


def entry() -> NoReturn:
    """Run the command of this process's arguments, and end the process."""
    _open_standard_streams()
    if "_ARGCOMPLETE" in os.environ:
        from gemma_edge.completion import complete

        complete()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP; leave it ignored
            signal.signal(number, _terminate)
    try:
        code = main()
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        code = _interrupted()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open the null device in place of each standard stream that was closed before the start, as by `>&-`.

    Python sets such a stream to None and leaves its descriptor free: the next file to be opened would get that
    descriptor, and with it whatever libraries print.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "w" if descriptor else "r", encoding="utf-8"))


def _run(arguments: argparse.Namespace, terminal: Terminal, *, traced: bool) -> int:
    try:
        code: int = arguments.execute(arguments, terminal)
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
            return DONE  # its reader has seen enough; another pipe or socket that breaks is a fault
        return _fail(_known(error), terminal, traced=traced)


def _known(error: Exception) -> ToolkitError:
    """Turn any exception into a ToolkitError."""
    if isinstance(error, ToolkitError):
        return error
    if isinstance(error, OSError):
        kind = UsageError if error.errno in _NO_PATH else EnvironmentFault
        return kind(file=error.filename, found=system_reason(error))
    if isinstance(error, MemoryError):
        return EnvironmentFault(found="out of memory", remedy="choose a smaller size")
    found = f"a bug in gemma-edge ({type(error).__name__}: {error})"
    return EnvironmentFault(found=found, remedy="run it again with -v and report the output")


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """End as after Ctrl-C, with nothing half-written. Further signals are ignored, so that cleaning up completes."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(_SIGNALLED + number)


def _exit_code(end: SystemExit) -> int:
    code = end.code if isinstance(end.code, int) else WRONG_USE
    if code > _SIGNALLED:
        to_stderr("terminated\n")
    return code


def _interrupted() -> int:
    to_stderr("interrupted\n")
    return INTERRUPTED


def _fail(error: ToolkitError, terminal: Terminal, *, traced: bool) -> int:
    if traced:
        write_line("info", traceback.format_exc().rstrip())
    with suppress(OSError):  # under --json, of a stdout that cannot be written; the line on stderr has said it
        terminal.error(error)
    return error.exit_code


@contextmanager
def _log_on_stderr(terminal: Terminal, verbose: int) -> Iterator[None]:
    """Print the log of our own packages on stderr: warnings; with -v also info, with -vv also debug messages."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = _LogLines(terminal)
    loggers = [logging.getLogger(package) for package in ("gemma_edge", "toolkit", "converters", "device_harness")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


class _LogLines(logging.Handler):
    """A logging handler that prints records as lines on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.log(_label(record.levelno), record.getMessage())


def _label(level: int) -> Label:
    """The word before a log line, by its level."""
    if level < logging.WARNING:
        return "info"
    return "warning" if level < logging.ERROR else "error"
