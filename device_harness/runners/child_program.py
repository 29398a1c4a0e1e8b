"""The child process of a runner that is one of our modules: `python3 -m MODULE` measures, and prints JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolkit import __version__
from toolkit.base.errors import ToolkitError
from toolkit.base.files import hash_file
from toolkit.base.procfs import parse_io
from toolkit.results.record import Delegation

RESULT = "gemma-edge-result: "
"""The prefix of the line of JSON, because LiteRT prints lines too."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a child has measured: its figures, and when the prompt and the answer were computed, by `uptime`."""

    figures: Mapping[str, float]
    phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def run_child(
    argv: list[str] | None,
    measure: Callable[[argparse.Namespace], Measured],
    library: Callable[[], tuple[str, Path]],
    count: Callable[[argparse.Namespace], Delegation] | None = None,
) -> int:
    """The main function of the child; returns the exit code. Prints what it measured, or without a model, its versions.

    `library` returns the package that does the work, and its shared library; `count`, for --count-nodes, counts
    the nodes that a delegate takes.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generated-tokens", type=int, default=128)
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--context", type=int)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--prompt-ids", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--count-nodes", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        if arguments.model is None:
            value = _described(*library())
        elif arguments.count_nodes and count is not None:
            value = asdict(count(arguments))
        else:
            value = _measured(measure, arguments)
    except ToolkitError as error:
        # The message comes last: the last line is what is shown of the output of a program that failed.
        sys.stdout.write(f"{RESULT}{json.dumps({'error': error.to_json()})}\n{error}\n")
        return error.exit_code
    sys.stdout.write(RESULT + json.dumps(value) + "\n")
    sys.stdout.flush()
    return 0


def _measured(measure: Callable[[argparse.Namespace], Measured], arguments: argparse.Namespace) -> dict[str, object]:
    before, begin_s = _counts(), uptime()
    found = measure(arguments)
    end_s = uptime()
    counted = {name: value - before[name] for name, value in _counts().items()}
    figures = {**found.figures, **counted}
    phases = {name: {"begin_s": begin, "end_s": end} for name, (begin, end) in found.phases.items()}
    return {"begin_s": begin_s, "end_s": end_s, "figures": figures, "phases": phases}


def _described(package: str, library: Path) -> dict[str, object]:
    found = [
        {"name": name, "sha256": hash_file(path).sha256, "bytes": path.stat().st_size, "version": version}
        for name, path, version in (
            ("python3", Path(sys.executable), sys.version.split()[0]),
            (library.name, library, importlib.metadata.version(package)),
        )
    ]
    return {"version": __version__, "binaries": found}


def _counts() -> dict[str, int]:
    """Page faults and reads of this process and of its children that have ended; empty if the system has no such files.

    The kernel adds a child's to those of its parent when the parent has waited for it.
    """
    try:
        io = parse_io(Path("/proc/self/io").read_text(encoding="ascii"))
    except (OSError, ToolkitError):
        return {}
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    counts = {
        "major_faults_count": sum(used.ru_majflt for used in usage),
        "minor_faults_count": sum(used.ru_minflt for used in usage),
    }
    return counts if io.read_bytes is None else {**counts, "read_bytes": io.read_bytes}


def uptime() -> float:
    """The time on the clock of /proc/uptime, which samples use."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
