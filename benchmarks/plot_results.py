"""Draws the plots of README.md from the records in results/: from each file, those of the last commit and machine.

The same records give the same bytes. If a script has written no records yet, those of November 2026 are drawn.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measure import RESULTS
from benchmarks.old_results import Point, old_points
from toolkit.report.plots import Bar, Line, Panel, StackedBars, TimeSeries, plot_output, write_plot
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

OLD = "2026-11"


def latest(results: Path, script: str, *keys: str) -> list[Point]:
    """The last record for each combination of values of the facts `keys`, in order; empty if there is no file.

    Only records with the commit and machine of the file's last record count: others are not comparable.
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
    """The bytes read per second while decoding, by model and context, below the memory's bandwidth."""
    points = latest(results, "bandwidth", "model", "filled")
    if not points:
        return None
    points.sort(key=lambda point: (point.facts["model"], int(point.facts["filled"])))
    most = max(point.figures["memory_read_bytes_per_s"] for point in points)
    bars = [_bar("memory, read by NumPy", "decode", most / 1e9)]
    before: str | None = None
    for point in points:
        model, filled = point.facts["model"], int(point.facts["filled"])
        rate = point.figures["decode_read_bytes_per_s"] / 1e9
        bars.append(_bar(f"{model} at {filled:,}", "decode", rate, new=model != before))
        before = model
    return StackedBars("Weights and caches read while decoding", "GB/s", bars)


def memory(results: Path) -> StackedBars | None:
    """The memory of a run after its last token, the least first."""
    bars = []
    points = [point for point in latest(results, "memory", "model", "run") if "anonymous_bytes" in point.figures]
    for point in sorted(points, key=lambda point: point.figures["anonymous_bytes"] + point.figures["file_bytes"]):
        ple = point.figures["ple_resident_bytes"]
        parts = {
            "anonymous": point.figures["anonymous_bytes"] / 1e9,
            "other files": (point.figures["file_bytes"] - ple) / 1e9,
            "PLE shards": ple / 1e9,
        }
        bars.append(Bar(f"{point.facts['model']}, {point.facts['run']}", parts))
    return StackedBars("Resident memory after the last token", "GB", bars) if bars else None


def convert_size(results: Path) -> StackedBars | None:
    """Checkpoint bytes per second, beside the storage's rate just before; the fastest conversion first."""
    points = latest(results, "convert_size", "model", "recipe", "search")
    points.sort(key=lambda point: -_conversion_rate(point))
    bars: list[Bar] = []
    for point in points:
        label = " ".join(point.facts[key] for key in ("model", "recipe", "search"))
        bars.append(_bar(label, "conversion", _conversion_rate(point) / 1e6, new=bool(bars)))
        bars.append(_bar("storage alone", "storage", point.figures["storage_bytes_per_s"] / 1e6))
    return StackedBars("Conversion of a cold checkpoint", "MB/s", bars) if bars else None


def _conversion_rate(point: Point) -> float:
    return point.figures["kept_bytes"] / point.figures["convert_s"]


def ple(results: Path, start: str) -> StackedBars | None:
    """The microseconds of a lookup, the fastest first."""
    points = [point for point in latest(results, "ple", "model", "table", "start") if point.facts["start"] == start]
    points.sort(key=lambda point: point.figures["lookup_latency_p50_s"])
    bars = [_bar(point.facts["table"], "look-up", point.figures["lookup_latency_p50_s"] * 1e6) for point in points]
    return StackedBars(f"One token's per-layer embeddings, page cache {start}", "µs", bars) if bars else None


def decode(results: Path) -> StackedBars | None:
    """The rates of all systems and engines, with bars together for each model and recipe, the fastest first.

    Labels have the length of the prompt where it differs.
    """
    points = latest(results, "decode", "bytes", "quantization", "system", "runtime", "prompt")
    has_prompts = len({point.facts.get("prompt") for point in points}) > 1
    points.sort(key=lambda point: (*_model_and_recipe(point), -point.figures["decode_tokens_per_s"]))
    bars: list[Bar] = []
    before: tuple[bool, str] | None = None
    for point in points:
        facts, group = point.facts, _model_and_recipe(point)
        where = "" if facts["runtime"] == facts["system"] else f" in {facts['runtime']}"
        label = f"{facts['quantization']} ({_size(point)}), {facts['system']}{where}"
        label += f" after {int(facts['prompt']):,}" if has_prompts else ""
        new = before is not None and group != before
        bars.append(_bar(label, "decode", point.figures["decode_tokens_per_s"], new=new))
        before = group
    return StackedBars("Decode rates by file", "tokens/s", bars) if bars else None


def mixes(results: Path) -> TimeSeries | None:
    """Divergence of the tiny model's bundles over what a token reads: all of them, and the finer ones."""
    points = [point for point in latest(results, "calibration", "recipe", "weights") if "weight_bytes" in point.figures]
    if not points:
        return None
    points.sort(key=lambda point: point.figures["weight_bytes"])

    def panel(unit: str, most: float) -> Panel:
        lines = {}
        for name, recipes in (("search", "search"), ("calibrated", "self"), ("a type for each matrix", "mix")):
            some = [point for point in points if _way(point) == recipes and point.figures[_DIVERGENCE] <= most]
            sizes, values = ([point.figures[key] for point in some] for key in ("weight_bytes", _DIVERGENCE))
            if some:
                lines[name] = Line([size / 1e6 for size in sizes], values, dots=True)
        return Panel(unit, lines, from_zero=True)

    panels = [panel("nats", math.inf), panel(f"nats, to {_FINE}", _FINE)]
    return TimeSeries("Divergence on books over the weights that a token reads", panels, "MB a token")


_DIVERGENCE, _FINE = "books_kl_nats", 0.03


def _way(point: Point) -> str:
    return "mix" if point.facts["recipe"].startswith("mix") else point.facts["weights"]


def _model_and_recipe(point: Point) -> tuple[bool, str]:
    """What bars that stand together have in common. Only E2B's files have gigabytes; those of 0.43 B are smaller."""
    return int(point.facts["bytes"]) >= 10**9, point.facts["quantization"]


def _size(point: Point) -> str:
    """The size, rounded to 0.1 GB: files of one size and recipe from different makers differ by a few percent."""
    return f"{int(point.facts['bytes']) / 1e9:.1f} GB"


def _bar(label: str, part: str, value: float, *, new: bool = False) -> Bar:
    return Bar(label, {part: value}, gap_before=new)


def plots(results: Path) -> dict[str, StackedBars | TimeSeries]:
    """Every plot of which there are records, by the name of its file."""
    found = {
        "bandwidth": bandwidth(results),
        "memory": memory(results),
        "convert_size": convert_size(results),
        "ple_cold": ple(results, "cold"),
        "ple_warm": ple(results, "warm"),
        "decode": decode(results),
        "mixes": mixes(results),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_results", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    results = parser.parse_args(arguments).results
    for name, plot in plots(results).items():
        # The repository's own plots, some of them drawn before plots had a mark.
        write_plot(plot, plot_output(results / f"{name}.svg", force=True))
        print(results / f"{name}.svg")


if __name__ == "__main__":
    main()
