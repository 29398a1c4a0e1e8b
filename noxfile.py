"""The project's tasks: `nox` runs lint, types and quick; `nox -l` lists all; words after `--` go to the program.

They make no environments: each runs in the one that nox is installed in (`pip install -e '.[dev]'`, and for test and
full `'.[test]'`; see README.md). Those of tests end with a list of what was skipped, and why (`-rs`).
"""

from __future__ import annotations

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "quick"]


def python_module(session: nox.Session, *words: str) -> None:
    """Run `python -m ...` of this environment, whether or not it is on the PATH."""
    session.run(sys.executable, "-m", *words)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and which package may import which."""
    python_module(session, "ruff", "check")
    python_module(session, "ruff", "format", "--check")
    session.run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over everything, tests and examples too."""
    python_module(session, "mypy", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Two minutes on two cores, without torch, LiteRT-LM or a C compiler: after every change."""
    python_module(session, "pytest", "-rs", "-n", "2", "-m", "not (slow or full or reference or lm)", *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    """Every test except those marked full, with coverage: what CI runs."""
    words = ["-rs", "-n", "2", "--dist", "loadfile", "--cov", "--cov-report=term", "--durations=40"]
    python_module(session, "pytest", *words, *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Every test there is: before an issue is called resolved."""
    python_module(session, "pytest", "-rs", "-n", "2", "--dist", "loadfile", "-m", "", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documents as a site in site/, without warnings: needs `pip install -e '.[docs]'`, and takes seconds."""
    session.run(sys.executable, "docs/site/build.py", *(session.posargs or ["site"]))


@nox.session
def wheels(session: nox.Session) -> None:
    """Whether every dependency has a wheel for macOS, Windows and Linux; asks the package index, installs nothing."""
    session.run(sys.executable, "tests/support/platform_wheels.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Convert a synthetic checkpoint: whether speed and memory are still as before, in a minute."""
    python_module(session, "benchmarks.bench_convert", "--preset", "tiny", *session.posargs)
