"""Draws the plots of README.md from the records in results/: of each file those of the last commit and machine there.

The same records give the same bytes. Where a script has written none yet, those of November 2026 are drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measure import RESULTS
from benchmarks.old_results import Point, old_points
from toolkit.report.plots import Bar, StackedBars, plot_output, write_plot
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

OLD = "2026-11"


def latest(results: Path, script: str, *keys: str) -> list[Point]:
    """The last record of each value of `keys`, which are facts, in the order in which they came; none without a file.

    Only those count that the same commit gave on the same machine as the file's last one: others do not compare.
    """
    path, old = results / f"{script}.jsonl", results / OLD / f"{script}.jsonl"
    if path.exists():
        points = [_point(record) for record in read_results(path).records]
    else:
        points = old_points(old, script) if old.exists() else []
    comparable = [point for point in points if point.origin == points[-1].origin]
    return list({tuple(point.facts.get(key) for key in keys): point for point in comparable}.values())


def _point(record: BenchRecord) -> Point:
    script, device, model = record.script, record.device, record.model
    facts = {"model": model.name, "quantization": model.quantization or "", "bytes": str(model.bytes)}
    facts |= {"start": record.start, **(script.conditions if script is not None else {})}
    names = dict.fromkeys(name for item in record.iterations for name in item.figures)
    figures = {
        str(name): median([item.figures[name] for item in record.iterations if name in item.figures]) for name in names
    }
    origin = (device.model, device.kernel, device.cpus, device.memory_bytes, script.commit if script else None)
    return Point(origin, facts, figures)


def bandwidth(results: Path) -> StackedBars | None:
    """Bytes read per second of decoding, beside what the memory gives."""
    points = latest(results, "bandwidth", "model", "filled")
    bars = []
    for point in points:
        filled = int(point.facts["filled"])
        rate = point.figures["decode_read_bytes_per_s"] / 1e9
        bars.append(_bar(f"{point.facts['model']} at {filled:,}", "decode", rate, new=filled == 512))
    if not points:
        return None
    most = max(point.figures["memory_read_bytes_per_s"] for point in points)
    bars.append(_bar("memory, read by NumPy", "decode", most / 1e9, new=True))
    return StackedBars("Weights and caches read while decoding", "GB/s", bars)


def memory(results: Path) -> StackedBars | None:
    """What a run holds when its last token is out."""
    bars = []
    for point in latest(results, "memory", "model", "run"):
        if "anonymous_bytes" in point.figures:
            ple = point.figures["ple_resident_bytes"]
            parts = {
                "anonymous": point.figures["anonymous_bytes"] / 1e9,
                "files, but PLE": (point.figures["file_bytes"] - ple) / 1e9,
                "PLE shards": ple / 1e9,
            }
            bars.append(Bar(f"{point.facts['model']}, {point.facts['run']}", parts))
    return StackedBars("Resident memory after the last token", "GB", bars) if bars else None


def convert_size(results: Path) -> StackedBars | None:
    """Checkpoint bytes per second, beside what storage gave."""
    bars = []
    for point in latest(results, "convert_size", "model", "recipe", "search"):
        label = " ".join(point.facts[key] for key in ("model", "recipe", "search"))
        rate = point.figures["kept_bytes"] / point.figures["convert_s"]
        bars.append(_bar(label, "rate", rate / 1e6, new=True))
        bars.append(_bar("storage alone", "rate", point.figures["storage_bytes_per_s"] / 1e6))
    return StackedBars("Conversion of a cold checkpoint", "MB/s", bars) if bars else None


def ple(results: Path, start: str) -> StackedBars | None:
    """Microseconds a look-up takes."""
    points = [point for point in latest(results, "ple", "model", "table", "start") if point.facts["start"] == start]
    bars = [_bar(point.facts["table"], "look-up", point.figures["lookup_latency_p50_s"] * 1e6) for point in points]
    return StackedBars(f"One token's per-layer embeddings, page cache {start}", "us", bars) if bars else None


def decode(results: Path) -> StackedBars | None:
    """Rates of every system and engine, a group of bars for each size of file."""
    points = latest(results, "decode", "bytes", "quantization", "system", "runtime")
    points.sort(key=lambda point: (_size(point), point.facts["quantization"]))
    bars, before = [], None
    for point in points:
        facts, size = point.facts, _size(point)
        label = f"{facts['quantization']} ({size}), {facts['system']} in {facts['runtime']}"
        bars.append(_bar(label, "decode", point.figures["decode_tokens_per_s"], new=size != before))
        before = size
    return StackedBars("Decode rates by file", "tokens/s", bars) if bars else None


def calibration(results: Path) -> StackedBars | None:
    """Divergence of the tiny model's bundles in 18 languages, a group of bars for each recipe, the largest first."""
    points = latest(results, "calibration", "recipe", "weights")
    points.sort(key=lambda point: -point.figures["output_bytes"])
    bars, before = [], None
    for point in points:
        recipe, size = point.facts["recipe"], point.figures["output_bytes"] / 1e6
        label = f"{recipe} ({size:.1f} MB), {point.facts['weights']}"
        bars.append(_bar(label, "languages", point.figures["languages_kl_nats"], new=recipe != before))
        before = recipe
    return StackedBars("Divergence of the tiny model's bundles, by size", "nats a prediction", bars) if bars else None


def _size(point: Point) -> str:
    """Files of one size and recipe by different makers differ by some percent: rounded to a tenth of a gigabyte."""
    return f"{int(point.facts['bytes']) / 1e9:.1f} GB"


def _bar(label: str, part: str, value: float, *, new: bool = False) -> Bar:
    return Bar(label, {part: value}, gap_before=new)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_results", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    results = parser.parse_args(arguments).results
    plots = {
        "bandwidth": bandwidth(results),
        "memory": memory(results),
        "convert_size": convert_size(results),
        "ple_cold": ple(results, "cold"),
        "ple_warm": ple(results, "warm"),
        "decode": decode(results),
        "calibration": calibration(results),
    }
    for name, plot in plots.items():
        if plot is not None:
            # The repository's own plots, some of them drawn before plots had a mark.
            write_plot(plot, plot_output(results / f"{name}.svg", force=True))
            print(results / f"{name}.svg")


if __name__ == "__main__":
    main()
