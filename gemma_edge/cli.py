"""The command line: finds the verb, and turns every ending into an exit code and a line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import toolkit
from gemma_edge.terminal import Label, Terminal, one_line, write_line
from toolkit.base.errors import EnvironmentFault, ToolkitError, UsageError, system_reason

DONE, BAD_RESULT, WRONG_USE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130
_SIGNALLED = 128  # and the signal's number, as shells have it

_VERBS = {
    "inspect": "show the parameter groups, sizes and memory of a checkpoint or a bundle",
    "convert": "convert a checkpoint to a bundle, and check its quality",
    "check": "check every hash, bound and reference of a bundle or a .litertlm, and report all faults",
    "verify": "compare a bundle's predictions with its checkpoint's",
    "run": "answer one prompt, on this computer or on a device",
    "chat": "hold a conversation, on this computer or on a device",
    "export": "write a bundle as one .litertlm file for Google's LiteRT-LM and the apps that use it",
    "rebuild": "make a bundle or a .litertlm again from its lock and its checkpoint, with the same bytes",
    "devices": "list Android devices on USB, on this computer and at given addresses, and why any of them is unusable",
    "push": "copy a bundle or a .litertlm to Android devices, sending only what has changed, with verified hashes",
    "bench": "measure a model on an Android device or this computer: speed, memory, temperature",
    "probe": "measure how fast flash gives rows of per-layer embeddings, one by one and in batches, cold and warm",
    "report": "write benchmark results as one HTML page, with tables, plots and the origin of each figure",
    "results": "export benchmark results as one table in Parquet or CSV, with a row for each iteration",
    "compare": "compare two sets of benchmark results, with a confidence interval and a verdict for each test",
    "emulator": "run an emulated Android device on 127.0.0.1, with faults on request, until interrupted",
    "demo": "convert, check, verify, run and export the built-in tiny model in three sizes, explaining each step",
}
"""Summaries of the verbs, in the order of the workflow; each verb is a module of `gemma_edge.commands`."""

_DESCRIPTION = "Convert Gemma 3n checkpoints to LiteRT bundles for edge devices, check their quality, and run them."
_EPILOG = """exit codes:
  0 done; 1 the work ran, but its result is bad; 2 wrong usage or bad input;
  3 device or environment fault; 130 interrupted; 143 terminated"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        self._refuse(message)

    def parse_known_args(  # type: ignore[override]  # typeshed's overloads for namespaces of one's own
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self.exit_on_error = False  # otherwise argparse joins the option and its fault into one text
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self._refuse(error.message, error.argument_name)

    def _get_value(self, action: argparse.Action, arg_string: str) -> object:
        """What converts an option's text raises a UsageError, which does not know the option."""
        try:
            return super()._get_value(action, arg_string)
        except UsageError as error:
            place = "/".join(action.option_strings) or error.place
            remedy = error.remedy or f"see {self.prog} --help"
            raise UsageError(place, file=error.file, found=error.found, wanted=error.wanted, remedy=remedy) from error

    def _refuse(self, found: str, option: str | None = None) -> NoReturn:
        raise UsageError(option, found=found, remedy=f"see {self.prog} --help")

    def option_strings(self) -> list[str]:
        """The names of all options."""
        return list(self._option_string_actions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code; argv: the arguments without the program's name."""
    try:
        words = sys.argv[1:] if argv is None else argv
        arguments = _parse(words)
    except UsageError as error:
        return _fail(error, as_json="--json" in words, traced=False)
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
    """The entry point of the `gemma-edge` command; ends the process."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP; leave it ignored
            signal.signal(number, _terminate)
    try:
        code = main()
    except SystemExit as end:
        code = _exit_code(end)
    sys.stdout.flush()
    sys.exit(code)


def _run(arguments: argparse.Namespace, terminal: Terminal, *, traced: bool) -> int:
    try:
        code: int = arguments.execute(arguments, terminal)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader closed the pipe. Python flushes stdout again at exit, so point it somewhere valid.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        return _fail(_known(error), as_json=terminal.as_json, traced=traced)


def _known(error: Exception) -> ToolkitError:
    """Turn any exception into a ToolkitError."""
    if isinstance(error, ToolkitError):
        return error
    if isinstance(error, OSError):
        return EnvironmentFault(file=error.filename, found=system_reason(error))
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
        sys.stderr.write("terminated\n")
    return code


def _interrupted() -> int:
    sys.stderr.write("interrupted\n")
    return INTERRUPTED


def _fail(error: ToolkitError, *, as_json: bool, traced: bool) -> int:
    if traced:
        write_line("info", traceback.format_exc().rstrip())
    write_line("error", one_line(str(error)))
    if as_json:
        sys.stdout.write(json.dumps({"error": error.to_json(), "exit_code": error.exit_code}) + "\n")
        sys.stdout.flush()
    return error.exit_code


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. UsageError if it is wrong, naming the nearest valid word; SystemExit after --help."""
    word = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(word)
    if word is None and not {"-h", "--help", "--version"}.intersection(words):
        parser.error(f"no verb given; choose one of {', '.join(_VERBS)}")
    if word is not None and word not in _VERBS:
        parser.error(f"{word!r} is not a verb{_nearest(word, _VERBS)}")
    arguments, extra = parser.parse_known_args(words)
    if extra:
        verb: _Parser = arguments.parser
        option = next((item for item in extra if item.startswith("--")), extra[0])
        verb.error(f"unrecognized arguments: {' '.join(extra)}{_nearest(option, verb.option_strings())}")
    del arguments.parser
    return arguments


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _parser(word: str | None) -> _Parser:
    shared = _shared_options()
    parser = _Parser(
        prog="gemma-edge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gemma-edge {toolkit.__version__}")
    verbs = parser.add_subparsers(title="verbs, in the order of the workflow", metavar="VERB", required=True)
    for name in (word,) if word in _VERBS else _VERBS:
        summary = _VERBS[name]
        verb = verbs.add_parser(
            name,
            help=summary,
            description=summary[:1].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
            allow_abbrev=False,
        )
        # Only the chosen verb is imported: importing takes a second or two.
        if name == word:
            command = importlib.import_module(f"gemma_edge.commands.{name}")
            verb.epilog = "examples:\n" + "\n".join(f"  {line}" for line in command.EXAMPLES)
            command.add_arguments(verb)
            verb.set_defaults(execute=command.execute, parser=verb)
    return parser


def _shared_options() -> _Parser:
    """Options allowed both before and after the verb; they have no defaults, so that neither overrides the other."""
    shared = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("global options")
    volume = group.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="count", help="log more, and show the traceback of an error")
    volume.add_argument("-q", "--quiet", action="store_true", help="print only results, warnings and errors")
    group.add_argument("--json", action="store_true", help="print results as JSON on stdout, one object per line")
    group.add_argument("--no-progress", action="store_true", help="show no progress bars")
    return shared


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
