"""Reads the records of November 2026, in the scripts' own JSON lines, for the plots that were drawn from them.

They stay as they were written (results/2026-11/): the format that the scripts write now, gemma-edge-results, needs
times and hashes that were not recorded then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OldRecord = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """What a plot needs from a record of either format."""

    origin: tuple[object, ...]
    """The machine and the commit: records that differ in these are not comparable."""
    facts: Mapping[str, str]
    """The model's name, and the conditions under which it was measured."""
    figures: Mapping[str, float]
    """Medians, by the names of toolkit/results/figures.py."""


def old_points(path: Path, script: str) -> list[Point]:
    """The points of one script's file."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    readers: dict[str, Callable[[OldRecord], Iterator[Point]]] = {
        "bandwidth": _bandwidth,
        "memory": _memory,
        "convert_size": _convert_size,
        "ple": _ple,
        "decode": _decode,
    }
    return [point for record in records for point in readers[script](record)]


def _origin(record: OldRecord) -> tuple[object, ...]:
    return tuple(record["device"].values()), record["versions"]["gemma-edge"]


def _bandwidth(record: OldRecord) -> Iterator[Point]:
    facts = {"model": record["bundle"], "filled": str(record["context"])}
    memory = max(record["memory_read_bytes_per_s"][when] for when in ("before", "after"))
    figures = {"decode_read_bytes_per_s": record["bytes_per_s"]["median"], "memory_read_bytes_per_s": memory}
    yield Point(_origin(record), facts, figures)


def _memory(record: OldRecord) -> Iterator[Point]:
    facts = {"model": record["bundle"], "run": record["contender"]}
    if record["run"] is None:
        yield Point(_origin(record), facts, {})
        return
    end = record["run"]["memory"]["decode"]
    figures = {
        "anonymous_bytes": end["rss_anonymous_bytes"],
        "file_bytes": end["rss_file_bytes"],
        "ple_resident_bytes": end["groups"]["per_layer_embedding"]["resident_bytes"],
    }
    yield Point(_origin(record), facts, figures)


def _convert_size(record: OldRecord) -> Iterator[Point]:
    facts = {"model": record["checkpoint"], "recipe": record["recipe"], "search": record["search"]}
    figures = {
        "kept_bytes": record["kept_bytes"],
        "convert_s": record["seconds"]["median"],
        "storage_bytes_per_s": record["storage_bytes_per_s"],
    }
    yield Point(_origin(record), facts, figures)


def _ple(record: OldRecord) -> Iterator[Point]:
    for start in ("cold", "warm"):
        if record[f"{start}_median_us"]:
            facts = {"model": record["bundle"], "table": record["way"]["name"], "start": start}
            yield Point(_origin(record), facts, {"lookup_latency_p50_s": record[f"{start}_median_us"]["median"] / 1e6})


def _decode(record: OldRecord) -> Iterator[Point]:
    facts = {"quantization": record["recipe"], "system": record["system"], "bytes": str(record["file_bytes"])}
    facts["runtime"] = str(record.get("runtime") or record["engine"])
    yield Point(_origin(record), facts, {"decode_tokens_per_s": record["decode_tokens_per_s"]["median"]})
