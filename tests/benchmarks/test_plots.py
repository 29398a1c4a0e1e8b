"""Plots of benchmark records: the latest of each contender, and the same bytes from the same records."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import plot_results


def write(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def bandwidth(context: int, rate: float, commit: str = "b", cpu: str = "one") -> dict[str, object]:
    memory = {"before": 20e9, "after": 21e9}
    return {
        "device": {"cpu": cpu},
        "versions": {"gemma-edge": commit},
        "bundle": "e2b",
        "context": context,
        "bytes_per_s": {"median": rate},
        "memory_read_bytes_per_s": memory,
    }


def test_the_latest_record_of_each_contender_is_drawn(tmp_path: Path) -> None:
    write(tmp_path / "bandwidth.jsonl", [bandwidth(512, 1e9), bandwidth(4096, 3e9), bandwidth(512, 2e9)])
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None
    assert [bar.label for bar in plot.bars] == ["e2b at 512", "e2b at 4,096", "memory, read by NumPy"]
    assert [sum(bar.parts.values()) for bar in plot.bars] == [2.0, 3.0, 21.0]
    assert plot_results.memory(tmp_path) is None


def test_records_of_another_commit_or_machine_are_not_drawn_beside_the_last(tmp_path: Path) -> None:
    others = [bandwidth(512, 1e9, commit="a"), bandwidth(2048, 1e9, cpu="other")]
    write(tmp_path / "bandwidth.jsonl", [*others, bandwidth(4096, 3e9)])
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None
    assert [bar.label for bar in plot.bars] == ["e2b at 4,096", "memory, read by NumPy"]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "bandwidth.jsonl", [bandwidth(512, 1e9), bandwidth(4096, 3e9)])
    plot_results.main(["--results", str(tmp_path)])
    first = (tmp_path / "bandwidth.svg").read_bytes()
    plot_results.main(["--results", str(tmp_path)])
    assert (tmp_path / "bandwidth.svg").read_bytes() == first
    assert [path.name for path in tmp_path.glob("*.svg")] == ["bandwidth.svg"]
