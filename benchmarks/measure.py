"""What all benchmarks share: the description of the machine, measured child processes, and records of results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from device_harness.bench.state import read_device, read_state
from device_harness.machines.host import Host
from toolkit import __version__
from toolkit.base.files import hash_file
from toolkit.base.processors import usable_processors
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.results.figures import FigureName
from toolkit.results.json_lines import open_results
from toolkit.results.record import (
    Backend,
    BenchRecord,
    Delegation,
    Figures,
    Iteration,
    MemoryRecord,
    ModelKind,
    ModelRecord,
    Samples,
    ScriptRecord,
    Start,
)
from toolkit.results.statistics import Summary

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("ai-edge-litert", "litert-lm-api", "numpy")


@dataclass(frozen=True, slots=True)
class Device:
    """The machine, without its host name."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str


@dataclass(frozen=True, slots=True)
class ChildUsage:
    """What one child process used; `peak_rss_bytes`: the kernel's ru_maxrss, including mapped file pages."""

    seconds: float
    peak_rss_bytes: int
    cpu_seconds: float
    """User and system time of all its threads."""


def text(figures: Summary, form: str, factor: float = 1.0) -> str:
    """The median, and in brackets the least and the most.

    >>> from toolkit.results.statistics import summary
    >>> text(summary([1.0, 2.0, 4.0]), ".1f")
    '2.0 (1.0 to 4.0)'
    """
    return f"{figures.median * factor:{form}} ({figures.least * factor:{form}} to {figures.most * factor:{form}})"


def this_device() -> Device:
    """The machine that this process runs on."""
    return Device(
        cpu=_cpu_name(),
        cores=usable_processors(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    """The CPU's model name; as virtual machines hide it, also family, model, stepping and the flags that int8 needs."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name", platform.machine())
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return " ".join([name, numbers, *(flag for flag in wanted if flag in flags)])


def _commit() -> str:
    """The commit of this repository, with a + if its files have changed."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return importlib.metadata.version("gemma-edge")
    sources = ["gemma_edge", "toolkit", "converters", "device_harness", "benchmarks/*.py"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *sources], check=False).returncode
    return commit.stdout.strip() + ("+" if changed else "")


# A process inherits its parent's peak memory at exec, so a small process in between starts the child.
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
    """Run a command to its end, with its output in `log`; if it fails, SystemExit with the end of the log."""
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
    """The `convert` command of this Python without the quality gate; -o and the output's path must be appended."""
    return [sys.executable, "-m", "gemma_edge", "--no-progress", "convert", str(checkpoint), "--no-verify", *options]


def run_step(
    module: str, step: Sequence[object], log: Path, environment: Mapping[str, str] | None = None
) -> tuple[ChildUsage, list[float]]:
    """Run `python -m benchmarks.MODULE --child STEP...`; the last list in its output is what the step returned."""
    usage = run_child([sys.executable, "-m", f"benchmarks.{module}", "--child", *map(str, step)], log, environment)
    lines = log.read_text(encoding="utf-8").splitlines()
    return usage, json.loads(next(line for line in reversed(lines) if line.startswith("[")))


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one system, and the highest peak memory of its processes."""

    seconds: tuple[float, ...]
    peak_rss_bytes: int


def take_turns(module: str, steps: Mapping[str, Sequence[object]], rounds: int, log: Path) -> dict[str, Series]:
    """Rounds of one process for each system, by name, so that a slow minute of the machine affects all alike."""
    found = {name: Series((), 0) for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            usage, seconds = run_step(module, step, log)
            before = found[name]
            peak = max(before.peak_rss_bytes, usage.peak_rss_bytes)
            found[name] = Series((*before.seconds, *seconds), peak)
    return found


ENCODE_TESTS: Mapping[str, FigureName] = {"encode": "encode_s", "peak": "peak_rss_bytes"}
"""What is measured of an encoder."""


def encoder_figures(series: Series, error: float | None = None) -> list[Figures]:
    """The figures of each run, with the peak memory of all; `error`: relative to another system's result."""
    told: Figures = {} if error is None else {"relative_error_fraction": error}
    return [{"encode_s": seconds, "peak_rss_bytes": series.peak_rss_bytes, **told} for seconds in series.seconds]


def timed_runs(run: Callable[[], object], repeats: int) -> list[float]:
    """The seconds of each run after the first, which warms up."""
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


CONVERT_TESTS: Mapping[str, FigureName] = {
    "convert": "convert_s",
    "convert_cpu": "convert_cpu_s",
    "peak": "peak_rss_bytes",
    "output": "output_bytes",
}
"""What is measured of a conversion."""


def conversion_figures(usage: ChildUsage, output_bytes: int) -> Figures:
    """The figures of one conversion, by the names in `CONVERT_TESTS`."""
    return {
        "convert_s": usage.seconds,
        "convert_cpu_s": usage.cpu_seconds,
        "peak_rss_bytes": usage.peak_rss_bytes,
        "output_bytes": output_bytes,
    }


def conversion_cells(usage: ChildUsage, output: Path) -> list[str]:
    """The cells of a table: seconds, MB of peak memory, MB of files."""
    return [f"{usage.seconds:.1f}", f"{usage.peak_rss_bytes / 1e6:.0f}", f"{tree_bytes(output) / 1e6:.0f}"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a script measured of one contender: one record of results."""

    model: ModelRecord
    """What was run, converted or sent."""
    tests: Mapping[str, FigureName]
    """The names of results, such as pp512, with their figures."""
    runs: Sequence[Figures]
    """The figures of each counted run."""
    conditions: Mapping[str, str]
    """What distinguishes this contender from the script's others."""
    start: Start = "warm"
    """Whether its files were in the page cache."""
    threads: int | None = None
    context: int | None = None
    is_whole: bool = True
    """Whether it ran to its end."""
    backend: Backend = "cpu"
    delegation: Delegation | None = None


def _is_installed(package: str) -> bool:
    return any(importlib.metadata.distributions(name=package))


def without_directories(argument: str) -> str:
    """An argument without the directories of absolute paths: where a file lies on this machine says nothing to others.

    >>> without_directories("/big/e2b/"), without_directories("e2b=/big/e2b"), without_directories("a/b or c")
    ('e2b', 'e2b=e2b', 'a/b or c')
    >>> without_directories("--also=--calibrate /big/text --kl 0.1")
    '--also=--calibrate text --kl 0.1'
    """
    return re.sub(r"(?<![^\s=])/(?:[^\s/]+/)*([^\s/]+)/?(?!\S)", r"\1", argument)


class Recorder:
    """Appends what a script measures to a results file (docs/formats/results.md); made before measuring starts."""

    def __init__(self, script: str, packages: Sequence[str] = PACKAGES) -> None:
        """`script`: its name without `bench_`; `packages`: those whose versions are recorded if they are installed."""
        self._runner = f"bench_{script}"
        self._packages = packages
        self._started_utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._started = time.monotonic()
        self._commit = _commit()
        self._before = read_state(Host())

    @property
    def load_before(self) -> float:
        """The load of the minute before: above a few tenths, other work is running and the figures are noise."""
        return self._before.load_1min or 0.0

    def append(self, path: Path, measured: Measured, versions: Mapping[str, str] | None = None) -> None:
        """Append one record; `versions`: those of a peer's packages, which has an environment of its own."""
        found = {name: importlib.metadata.version(name) for name in self._packages if _is_installed(name)}
        script = ScriptRecord(self._commit, dict(measured.conditions), {**found, **(versions or {})})
        record = BenchRecord(
            tool=f"gemma-edge {__version__}",
            started_utc=self._started_utc,
            seconds=round(time.monotonic() - self._started, 3),
            runner=self._runner,
            backend=measured.backend,
            start=measured.start,
            threads=measured.threads,
            context=measured.context,
            arguments=("python", "-m", f"benchmarks.{self._runner}", *map(without_directories, sys.argv[1:])),
            tests=dict(measured.tests),
            model=measured.model,
            binaries=(),
            device=replace(read_device(Host()), model=_cpu_name()),
            delegation=measured.delegation,
            iterations=tuple(Iteration(None, None, 0, None, dict(run)) for run in measured.runs),
            memory=MemoryRecord(None, None, {}, None, None, None),
            samples=Samples({"t_s": ()}, None),
            drift={},
            state_before=self._before,
            state_after=read_state(Host()),
            flags=() if measured.is_whole else ("interrupted",),
            script=script,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_results(path) as writer:
            writer.append(record)


def model_record(path: Path, name: str, *, size: str | None = None, quantization: str | None = None) -> ModelRecord:
    """The record of a bundle or a checkpoint (a directory), or of a file, whose ending is its kind."""
    if path.is_file():
        kinds: dict[str, ModelKind] = {".litertlm": "litertlm", ".tflite": "tflite", ".gguf": "gguf"}
        return ModelRecord(name, kinds[path.suffix], size, hash_file(path).sha256, path.stat().st_size, quantization)
    is_bundle = (path / MANIFEST_NAME).exists()
    digest = hash_file(path / (MANIFEST_NAME if is_bundle else "config.json")).sha256
    return ModelRecord(name, "bundle" if is_bundle else "checkpoint", size, digest, tree_bytes(path), quantization)
