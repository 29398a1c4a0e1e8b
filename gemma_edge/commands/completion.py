"""`gemma-edge completion`: prints a shell's completion script."""

from __future__ import annotations

import argparse

from gemma_edge.completion import SHELLS, script
from gemma_edge.terminal import Terminal

EXAMPLES = (
    'eval "$(gemma-edge completion bash)"    # in ~/.bashrc',
    'eval "$(gemma-edge completion zsh)"     # in ~/.zshrc, after compinit',
    "gemma-edge completion fish > ~/.config/fish/completions/gemma-edge.fish",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to print the script for")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0."""
    text = script(arguments.shell)
    terminal.result({"shell": arguments.shell, "script": text}, text)
    return 0
