"""Completes words of the command line when a shell asks (argcomplete's protocol)."""

from __future__ import annotations

import os

import argcomplete
from argcomplete.shell_integration import shellcode

from gemma_edge.parser import VERBS, program_parser

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The script that a shell evaluates so that this program completes its words."""
    return shellcode(["gemma-edge"], shell=shell)


def complete() -> None:
    """Answer the shell, and end the process. Only the verb in the line to be completed is imported."""
    words = os.environ.get("COMP_LINE", "").split()[1:]
    point = int(os.environ.get("COMP_POINT", "0"))
    verb = next((word for word in words if word in VERBS), None)
    ended = os.environ.get("COMP_LINE", "")[:point].endswith(" ") or (words and words[-1] != verb)
    argcomplete.autocomplete(program_parser(verb if ended else None))
