"""Verbs are words around the API, and nothing below them prints or exits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gemma_edge
from gemma_edge.parser import VERBS

ROOT = Path(gemma_edge.__file__).parents[1]
COMMANDS = sorted((ROOT / "gemma_edge" / "commands").glob("*.py"))
QUIET = [path for name in ("toolkit", "converters", "device_harness") for path in sorted((ROOT / name).rglob("*.py"))]
PROGRAMS = {
    "device_harness/runners/child_program.py",
    "toolkit/base/limited.py",
    "toolkit/runtime/backends/gpu/worker.py",
}
"""They run as processes of their own: one measures, one has limits, one holds a driver that may abort."""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_command_imports_another() -> None:
    found = [
        (path.name, name) for path in COMMANDS for name in imported(path) if name.startswith("gemma_edge.commands")
    ]
    assert found == []


def test_the_folder_of_commands_holds_verbs_and_nothing_else() -> None:
    assert {path.stem for path in COMMANDS} == {"__init__", *VERBS}


def test_every_verb_but_those_that_talk_is_a_function_of_the_api() -> None:
    """`run` and `chat` are `load`, `results` is `export_results`; the emulator, demo and completion are for people."""
    assert set(VERBS) - {"run", "chat", "results", "emulator", "demo", "completion"} <= set(gemma_edge.__all__)
    assert "export_results" in gemma_edge.__all__


def test_the_api_knows_no_command_and_no_terminal() -> None:
    api = (ROOT / "gemma_edge" / "api").glob("*.py")
    faces = ("gemma_edge.commands", "gemma_edge.options", "gemma_edge.words", "gemma_edge.terminal", "argparse")
    assert [(path.name, name) for path in api for name in imported(path) if name.startswith(faces)] == []


SPEAKS = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}


def speaking_lines(path: Path) -> list[int]:
    """Lines that print, or end the process, but for how a file ends that can be run as a program."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func) in SPEAKS]


def test_only_gemma_edge_prints_or_exits() -> None:
    found = {str(path.relative_to(ROOT)): speaking_lines(path) for path in QUIET}
    assert {name for name, lines in found.items() if lines} == PROGRAMS
