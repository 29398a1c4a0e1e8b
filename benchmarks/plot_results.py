"""Draws the plots of README.md from the records in results/: of each file those of the last commit and machine there.

The same records give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS
from toolkit.report.plots import Bar, StackedBars, write_plot

Record = Mapping[str, Any]


def latest(path: Path, key: Callable[[Record], object]) -> list[Record]:
    """The last record of each key, in the order in which the keys came; none where the file is missing.

    Only those count that the same commit gave on the same machine as the file's last one: others do not compare.
    """
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    comparable = [record for record in records if _origin(record) == _origin(records[-1])]
    return list({key(record): record for record in comparable}.values())


def _origin(record: Record) -> tuple[object, object]:
    return record["device"], record["versions"]["gemma-edge"]


def bandwidth(results: Path) -> StackedBars | None:
    """Bytes read per second of decoding, beside what the memory gives."""
    records = latest(results / "bandwidth.jsonl", lambda r: (r["bundle"], r["context"]))
    bars = []
    for record in records:
        label = f"{record['bundle']} at {record['context']:,}"
        bars.append(_bar(label, "decode", record["bytes_per_s"]["median"] / 1e9, new=record["context"] == 512))
    if not records:
        return None
    most = max(max(record["memory_read_bytes_per_s"][when] for when in ("before", "after")) for record in records)
    bars.append(_bar("memory, read by NumPy", "decode", most / 1e9, new=True))
    return StackedBars("Weights and caches read while decoding", "GB/s", bars)


def memory(results: Path) -> StackedBars | None:
    """What a run holds when its last token is out."""
    bars = []
    for record in latest(results / "memory.jsonl", lambda r: (r["bundle"], r["contender"])):
        if record["run"] is None:
            continue
        end = record["run"]["memory"]["decode"]
        ple = end["groups"]["per_layer_embedding"]["resident_bytes"]
        parts = {
            "anonymous": end["rss_anonymous_bytes"] / 1e9,
            "files, but PLE": (end["rss_file_bytes"] - ple) / 1e9,
            "PLE shards": ple / 1e9,
        }
        bars.append(Bar(f"{record['bundle']}, {record['contender']}", parts))
    return StackedBars("Resident memory after the last token", "GB", bars) if bars else None


def convert_size(results: Path) -> StackedBars | None:
    """Checkpoint bytes per second, beside what storage gave."""
    bars = []
    for record in latest(results / "convert_size.jsonl", lambda r: (r["checkpoint"], r["recipe"], r["search"])):
        label = f"{record['checkpoint']} {record['recipe']} {record['search']}"
        bars.append(_bar(label, "rate", record["kept_bytes"] / record["seconds"]["median"] / 1e6, new=True))
        bars.append(_bar("storage alone", "rate", record["storage_bytes_per_s"] / 1e6))
    return StackedBars("Conversion of a cold checkpoint", "MB/s", bars) if bars else None


def ple(results: Path, state: str) -> StackedBars | None:
    """Microseconds a look-up takes."""
    records = latest(results / "ple.jsonl", lambda r: (r["bundle"], r["way"]["name"]))
    found = [record for record in records if record[f"{state}_median_us"]]
    bars = [_bar(record["way"]["name"], "look-up", record[f"{state}_median_us"]["median"]) for record in found]
    return StackedBars(f"One token's per-layer embeddings, page cache {state}", "us", bars) if bars else None


def decode(results: Path) -> StackedBars | None:
    """Rates of every system and engine, a group of bars for each size of file."""
    records = latest(results / "decode.jsonl", lambda r: (_size(r), r["recipe"], r["system"], _runtime(r)))
    records.sort(key=lambda r: (_size(r), r["recipe"]))
    bars, before = [], None
    for record in records:
        size = _size(record)
        label = f"{record['recipe']} ({size}), {record['system']} in {_runtime(record)}"
        bars.append(_bar(label, "decode", record["decode_tokens_per_s"]["median"], new=size != before))
        before = size
    return StackedBars("Decode rates by file", "tokens/s", bars) if bars else None


def _size(record: Record) -> str:
    """Files of one size and recipe by different makers differ by some percent: rounded to a tenth of a gigabyte."""
    return f"{record['file_bytes'] / 1e9:.1f} GB"


def _runtime(record: Record) -> str:
    """Older records name it otherwise."""
    return str(record.get("runtime") or record["engine"])


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
    }
    for name, plot in plots.items():
        if plot is not None:
            write_plot(plot, results / f"{name}.svg")
            print(results / f"{name}.svg")


if __name__ == "__main__":
    main()
