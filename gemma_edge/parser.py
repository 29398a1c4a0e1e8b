"""The words of the command line: the verbs, their options, and errors about unknown words."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn, TextIO

import toolkit
from gemma_edge.terminal import to_stderr, to_stdout
from toolkit.base.errors import UsageError

VERBS = {
    "inspect": "show the parameter groups, sizes and memory of a checkpoint or a bundle",
    "convert": "convert a checkpoint to a bundle, and check its quality",
    "check": "check every hash, bound and reference of a bundle or a .litertlm, and report all faults",
    "verify": "compare a bundle's predictions with its checkpoint's",
    "run": "answer one prompt, on this computer or on a device",
    "chat": "hold a conversation, on this computer or on a device",
    "export": "write a bundle as one .litertlm file for Google's LiteRT-LM and the apps that use it",
    "rebuild": "make a bundle or a .litertlm again from its lock and its checkpoint, with the same bytes",
    "devices": "list Android devices on USB, on this computer and at given addresses, and why any cannot be used",
    "push": "copy a bundle or a .litertlm to Android devices, sending only what has changed, with verified hashes",
    "bench": "measure a model on an Android device or this computer: speed, memory, temperature",
    "probe": "measure how fast a device reads per-layer embeddings from flash, by row and in batches, cold and warm",
    "report": "write benchmark results as one HTML page, with tables, plots and the origin of each figure",
    "results": "export benchmark results as one table in Parquet or CSV, with a row for each iteration",
    "compare": "compare two sets of benchmark results, with a confidence interval and a verdict for each test",
    "emulator": "run an emulated Android device on 127.0.0.1, with faults on request, until interrupted",
    "completion": "print the script with which a shell completes the words of this program",
    "demo": "convert, check, verify, run and export the built-in tiny model in three sizes, explaining each step",
}
"""Summaries of the verbs, in the order of the workflow; each verb is a module of `gemma_edge.commands`."""

_HELP = "help"
_OTHER_NAMES = {
    "benchmark": "bench",
    "generate": "run",
    "install": "push",
    "list": "devices",
    "package": "export",
    "prompt": "run",
    "quantise": "convert",
    "quantize": "convert",
    "validate": "check",
    "version": "--version",
}
"""What other programs call these verbs, for suggestions."""

_DESCRIPTION = (
    "Convert Gemma 3n and Gemma 4 checkpoints to LiteRT bundles for phones, check their quality, and run them."
)
_EPILOG = """exit codes:
  0 done; 1 the work ran, but its result is bad; 2 wrong usage or bad input;
  3 device or environment fault; 130 interrupted; 129 or 143 terminated"""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        self._refuse(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or the version; argparse would pass over what cannot be written."""
        if file is None or file is sys.stdout:
            to_stdout(message)
        elif file is sys.stderr:
            to_stderr(message)
        else:
            file.write(message)

    def parse_words(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse options and other words in any order; also returns what is left over."""
        self.exit_on_error = False  # otherwise argparse joins the option and its fault into one text
        try:
            return self.parse_known_intermixed_args(words)
        except argparse.ArgumentError as error:
            self._refuse(error.message, error.argument_name)
        except AttributeError as error:
            # argparse puts back what it changes, and fails at that if a signal comes before it has changed all of it.
            if isinstance(error.__context__, (KeyboardInterrupt, SystemExit)):
                raise error.__context__ from None
            raise

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
        """The names of all options except --help, which is never suggested."""
        return [name for name in self._option_string_actions if name not in ("-h", "--help")]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. UsageError if it is wrong, naming the nearest valid word; SystemExit after --help.

    Global options may stand before the verb or after it.
    """
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), None)
    if place is None or {"-V", "--version"}.intersection(words[:place]):
        parser = program_parser()
        parser.parse_known_args(words)
        parser.error(f"no verb given; choose one of {', '.join(VERBS)}")
    name, rest = words[place], [*words[:place], *words[place + 1 :]]
    if name == _HELP:  # `help run` is `run --help`
        return parse([*rest, "--help"])
    if name not in VERBS:
        other = _OTHER_NAMES.get(name)
        meant = f"; did you mean {other}?" if other else _nearest(name, VERBS)
        program_parser().error(f"{name!r} is not a verb{meant}")
    verb = verb_parser(name)
    arguments, extra = verb.parse_words(rest)
    if extra:
        option = next((item for item in extra if item.startswith("--")), extra[0])
        verb.error(f"unrecognized arguments: {' '.join(extra)}{_nearest(option, verb.option_strings())}")
    return arguments


def print_help(stream: TextIO) -> None:
    """Print what `--help` prints."""
    program_parser().print_help(stream)


def _nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion: a known word that `word` begins (--temp) or that begins it (--temperatures), else a similar one."""
    typed, names = word.partition("=")[0], sorted(known)
    whole = [name for name in names if len(typed.strip("-")) > 1 and name.startswith(typed)]
    whole = whole or [name for name in names if len(name.strip("-")) > 3 and typed.startswith(name)]
    close = whole[:1] if len(whole) == 1 else difflib.get_close_matches(typed, whole or names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def verb_parser(name: str) -> Parser:
    """The parser of one verb, whose module is imported for it."""
    command = importlib.import_module(f"gemma_edge.commands.{name}")
    summary = VERBS[name]
    parser = Parser(
        prog=f"gemma-edge {name}",
        description=summary[:1].upper() + summary[1:] + ".",
        epilog=_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared_options()],
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.set_defaults(execute=command.execute)
    return parser


def _epilog(command: ModuleType) -> str:
    """The limits of a verb, if it has any, and its examples."""
    parts = [("limits", getattr(command, "LIMITS", ())), ("examples", command.EXAMPLES)]
    return "\n\n".join("\n".join([f"{title}:", *(f"  {line}" for line in lines)]) for title, lines in parts if lines)


def program_parser(whole: str | None = None) -> Parser:
    """The parser whose help lists all verbs without importing them; only the verb `whole` has its options."""
    parser = Parser(
        prog="gemma-edge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared_options()],
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"gemma-edge {toolkit.__version__}")
    verbs = parser.add_subparsers(title="verbs, in the order of the workflow", metavar="VERB")
    for name, summary in VERBS.items():
        verbs.add_parser(name, help=summary, add_help=False, parents=[verb_parser(name)] if name == whole else [])
    return parser


def _shared_options() -> Parser:
    """Options allowed both before and after the verb; they have no defaults, so that neither overrides the other."""
    shared = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("global options")
    volume = group.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="count", help="log more, and show the traceback of an error")
    volume.add_argument("-q", "--quiet", action="store_true", help="print only results, warnings and errors")
    group.add_argument("--json", action="store_true", help="print results as JSON on stdout, one object per line")
    group.add_argument("--no-progress", action="store_true", help="show no progress bars")
    return shared
