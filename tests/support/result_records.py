"""Records for tests: those of the fixture, with some fields replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paths import FIXTURES

from toolkit.results.figures import FigureName
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord, Iteration

FIXTURE = FIXTURES / "results.jsonl"
RECORDS = read_results(FIXTURE).records
"""Phone warm, throttled, cold; our session emulated, warm and cold; benchmark_model; flash probe; cut short."""


def record_of(values: Sequence[float], *, figure: FigureName = "decode_tokens_per_s", **fields: object) -> BenchRecord:
    """The first record with these values as its only test, tg128."""
    iterations = tuple(
        Iteration(2.0 * i, 2.0 * i + 1, gate_wait_s=0, thermal_status=0, figures={figure: value})
        for i, value in enumerate(values)
    )
    changed = {"tests": {"tg128": figure}, "iterations": iterations, "drift": {}, **fields}
    return replace(RECORDS[0], **changed)  # type: ignore[arg-type]
