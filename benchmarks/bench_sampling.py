"""Measures the cost of `bench`'s sampler: the processor time of a sample, and how much sampling slows a run.

The sampler is a shell loop beside the measured process. Its processor time is counted while it watches a process that
has the bundle open and is idle. Then the bundle is measured on this computer, sampled at each interval in turns; at ten
seconds, a short run is sampled only once:

  python -m benchmarks.bench_sampling BUNDLE --rounds 5
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gemma_edge
from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device
from device_harness.bench.run import BenchSettings
from device_harness.bench.sampler import DEFAULT_INTERVAL_S, parse_samples, sampling_script
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import BenchRecord, Figures
from toolkit.results.statistics import summary

TESTS: Mapping[str, FigureName] = {"pp128": "prefill_tokens_per_s", "tg64": "decode_tokens_per_s"}
HARDLY_EVER_S = 10.0
_RESTS = "import sys, gemma_edge; model = gemma_edge.load(sys.argv[1]); model.prepare(); print(); sys.stdin.read()"
"""A process that holds a bundle open until its input ends."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The number of samples of a loop, and the processor seconds of everything that it started."""

    samples: int
    cpu_seconds: float
    seconds: float


def sampler_cost(bundle: Path, interval_s: float, seconds: float) -> Cost:
    """Watch a process that has the bundle open for `seconds`."""
    command = [sys.executable, "-c", _RESTS, str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as resting:
        assert resting.stdout is not None
        resting.stdout.readline()
        before = _cpu_seconds()
        loop = ["timeout", str(seconds), "sh", "-c", sampling_script(resting.pid, interval_s)]
        output = subprocess.run(loop, capture_output=True, text=True, check=False).stdout
        used = _cpu_seconds() - before
    return Cost(len(parse_samples(output)), used, seconds)


def _cpu_seconds() -> float:
    """The processor seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_sampled(bundle: Path, interval_s: float, repetitions: int) -> BenchRecord:
    """One measurement of a bundle on this computer."""
    settings = BenchSettings(repetitions, interval_s=interval_s, idle_s=0.0)
    (record,) = gemma_edge.bench(
        bundle, host=True, runner="session", prompt_tokens=128, generated_tokens=64, settings=settings
    )
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each interval, in turns (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="iterations of a run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of watching at rest (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "sampling.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    intervals = (HARDLY_EVER_S, DEFAULT_INTERVAL_S, DEFAULT_INTERVAL_S / 4)
    recorder = Recorder("sampling")
    model = model_record(options.bundle, options.bundle.name)
    print(f"{this_device()}\nload average before: {recorder.load_before:.2f}\n")
    rows = []
    for interval_s in intervals[1:]:
        cost = sampler_cost(options.bundle, interval_s, options.seconds)
        each = cost.cpu_seconds / cost.samples
        figures: Figures = {"sample_cpu_s": each}
        conditions = {"interval_s": f"{interval_s:g}", "watched": "at rest"}
        recorder.append(options.output, Measured(model, {"sample": "sample_cpu_s"}, [figures], conditions))
        rows.append([f"{interval_s:g}", str(cost.samples), f"{1e3 * each:.1f}", f"{each / interval_s:.1%}"])
    print(markdown(["interval, s", "samples", "CPU ms a sample", "of one core"], rows))
    found: dict[float, list[Figures]] = {interval_s: [] for interval_s in intervals}
    for interval_s in [*intervals] * options.rounds:
        record = run_sampled(options.bundle, interval_s, options.repetitions)
        found[interval_s] += [dict(item.figures) for item in record.iterations]
    rows = []
    base = summary([run["decode_tokens_per_s"] for run in found[HARDLY_EVER_S]]).median
    for interval_s, runs in found.items():
        decode = summary([run["decode_tokens_per_s"] for run in runs])
        prefill = text(summary([run["prefill_tokens_per_s"] for run in runs]), ".0f")
        rows.append([f"{interval_s:g}", prefill, text(decode, ".1f"), f"{decode.median / base:.3f}", str(len(runs))])
        conditions = {"interval_s": f"{interval_s:g}", "watched": "a run"}
        recorder.append(options.output, Measured(model, TESTS, runs, conditions))
    print("\n" + markdown(["interval, s", "prefill, tokens/s", "decode, tokens/s", "to hardly any", "n"], rows))


if __name__ == "__main__":
    main()
