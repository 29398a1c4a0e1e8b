"""What every benchmark needs: where it ran, children measured by the kernel, and result files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from toolkit.results.statistics import Summary

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("ai-edge-litert", "litert-lm-api", "numpy")


@dataclass(frozen=True, slots=True)
class Device:
    """The machine, without its name."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str


@dataclass(frozen=True, slots=True)
class ChildUsage:
    """What one child process took; `peak_rss_bytes` is the kernel's ru_maxrss, mapped file pages included."""

    seconds: float
    peak_rss_bytes: int
    cpu_seconds: float
    """User and system, of all its threads."""


def text(figures: Summary, form: str, factor: float = 1.0) -> str:
    """Median, and from least to most.

    >>> from toolkit.results.statistics import summary
    >>> text(summary([1.0, 2.0, 4.0]), ".1f")
    '2.0 (1.0 to 4.0)'
    """
    return f"{figures.median * factor:{form}} ({figures.least * factor:{form}} to {figures.most * factor:{form}})"


def this_device() -> Device:
    """The machine this process runs on."""
    return Device(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    """Model name and, since virtual machines hide it, family, model and stepping, and what int8 speed hangs on."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name", platform.machine())
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return " ".join([name, numbers, *(flag for flag in wanted if flag in flags)])


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions, and the commit of this repository with a + if files of it were changed."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"gemma-edge": _commit(), **found}


def _commit() -> str:
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return importlib.metadata.version("gemma-edge")
    sources = ["gemma_edge", "toolkit", "converters", "benchmarks/*.py"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *sources], check=False).returncode
    return commit.stdout.strip() + ("+" if changed else "")


# A process starts with its parent's peak (the kernel folds it in at exec), so a small one in between starts the child.
_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
with open(sys.argv[1], "w") as report:
    cpu = usage.ru_utime + usage.ru_stime
    json.dump([time.perf_counter() - started, usage.ru_maxrss * 1024, cpu, os.waitstatus_to_exitcode(status)], report)
"""


def run_child(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> ChildUsage:
    """Run a command to its end with its output in `log`; SystemExit with the log's end if it fails."""
    with open(log, "wb") as output, TemporaryDirectory() as scratch:
        report = Path(scratch) / "usage.json"
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report), *arguments]
        merged = {**os.environ, **(environment or {})}
        subprocess.run(launcher, stdout=output, stderr=subprocess.STDOUT, env=merged, check=True)
        seconds, peak_rss_bytes, cpu_seconds, code = json.loads(report.read_text(encoding="utf-8"))
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        sys.exit(f"error: {' '.join(arguments)}: exit code {code}\n{end}")
    return ChildUsage(seconds, peak_rss_bytes, cpu_seconds)


def convert_command(checkpoint: Path, *options: str) -> list[str]:
    """`convert` by this Python, without its quality gate; -o and the output's path are still to come."""
    return [sys.executable, "-m", "gemma_edge", "--no-progress", "convert", str(checkpoint), "--no-verify", *options]


def run_step(module: str, step: Sequence[object], log: Path) -> tuple[ChildUsage, list[float]]:
    """Run `python -m benchmarks.MODULE --child STEP...`; the last list in its output is what the step returned."""
    usage = run_child([sys.executable, "-m", f"benchmarks.{module}", "--child", *map(str, step)], log)
    lines = log.read_text(encoding="utf-8").splitlines()
    return usage, json.loads(next(line for line in reversed(lines) if line.startswith("[")))


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one system, and the most that one of its processes held."""

    seconds: tuple[float, ...]
    peak_rss_bytes: int


def take_turns(module: str, steps: Mapping[str, Sequence[object]], rounds: int, log: Path) -> dict[str, Series]:
    """Rounds of one process for each system, by name, so that a slow minute of the machine hits all alike."""
    found = {name: Series((), 0) for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            usage, seconds = run_step(module, step, log)
            before = found[name]
            peak = max(before.peak_rss_bytes, usage.peak_rss_bytes)
            found[name] = Series((*before.seconds, *seconds), peak)
    return found


def timed_runs(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run after the first, which warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def tree_bytes(path: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def conversion_cells(usage: ChildUsage, output: Path) -> list[str]:
    """Of a table: seconds, MB of peak memory, MB of files."""
    return [f"{usage.seconds:.1f}", f"{usage.peak_rss_bytes / 1e6:.0f}", f"{tree_bytes(output) / 1e6:.0f}"]


def load_average() -> float:
    """Of the last minute: above some tenths before a run, someone else is at work and the figures are noise."""
    return os.getloadavg()[0]


def append_result(path: Path, benchmark: str, fields: Mapping[str, object], packages: Sequence[str] = PACKAGES) -> None:
    """Add one line of JSON: what was measured, when, on what, with what."""
    record = {
        "benchmark": benchmark,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": asdict(this_device()),
        "versions": versions(packages),
        **fields,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
