"""Parses the output of LiteRT's benchmark_model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from device_harness.parsers.lines import clean_lines
from toolkit.base.errors import EnvironmentFault

_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
_MILLISECONDS = re.compile(
    rf"(Model initialization|Warmup \(first\)|Warmup \(avg\)|Inference \((?:avg|min|max|std)\)): +{_NUMBER}"
    r"(?: ms)?(?: \((\d{1,9}) runs\))?",
    re.ASCII,
)
_FOOTPRINT = re.compile(rf"(Init footprint|Overall footprint|Peak memory usage): +{_NUMBER} MB", re.ASCII)
_SIGNATURE = re.compile(r"Signature name: +(\S+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """The results of one run of benchmark_model, in seconds and bytes (its "MB" taken as 2**20)."""

    signature: str
    init_s: float
    warmup_first_s: float | None
    warmup_average_s: float | None
    inference_s: float
    """The mean; the tool does not print the times of single inferences."""
    inference_min_s: float | None
    inference_max_s: float | None
    inference_stddev_s: float | None
    runs: int
    init_bytes: int | None
    overall_bytes: int | None
    peak_bytes: int | None


def parse_benchmark_model(text: str) -> ModelTimes:
    """Parse the last block of results; EnvironmentFault if there is none or it is truncated."""
    times: dict[str, float] = {}
    sizes: dict[str, int] = {}
    runs, signature = 0, ""
    for line in clean_lines(text):
        if (match := _SIGNATURE.fullmatch(line)) is not None:
            signature = match[1]
        elif (match := _MILLISECONDS.fullmatch(line)) is not None:
            times[match[1]] = round(float(match[2]) / 1e3, 9)
            runs = int(match[3] or runs)
        elif (match := _FOOTPRINT.fullmatch(line)) is not None:
            sizes[match[1]] = int(float(match[2]) * 2**20)
    for key in ("Model initialization", "Inference (avg)", "Inference (max)"):
        if key not in times:
            raise EnvironmentFault("benchmark_model", found=f"no line {key}", wanted="a whole result block")
    return ModelTimes(
        signature=signature,
        init_s=times["Model initialization"],
        warmup_first_s=times.get("Warmup (first)"),
        warmup_average_s=times.get("Warmup (avg)"),
        inference_s=times["Inference (avg)"],
        inference_min_s=times.get("Inference (min)"),
        inference_max_s=times["Inference (max)"],
        inference_stddev_s=times.get("Inference (std)"),
        runs=runs,
        init_bytes=sizes.get("Init footprint"),
        overall_bytes=sizes.get("Overall footprint"),
        peak_bytes=sizes.get("Peak memory usage"),
    )
