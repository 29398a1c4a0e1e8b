"""Parses the output of the flash probe into figures."""

from __future__ import annotations

from device_harness.flash.probe import ReadMeasure, parse_probe
from device_harness.programs.build import FLASH_PROBE
from device_harness.runners.interface import Reading
from toolkit.base.errors import EnvironmentFault, ResultsError
from toolkit.results.figures import known_figures
from toolkit.results.record import Figures


def read_probe(output: str) -> Reading:
    """Parse the output; EnvironmentFault if it is incomplete, or if pages could not be dropped for cold reads."""
    try:
        _, measures = parse_probe(output, FLASH_PROBE)
    except ResultsError as error:
        raise EnvironmentFault(FLASH_PROBE, found=error.found, wanted=error.wanted, remedy=error.remedy) from error
    figures: Figures = {}
    for measure in measures:
        if measure.state == "not_cold":
            found = f"{measure.resident_pages_before:,} pages that stay in memory"
            remedy = "run it without --cold, or move the bundle to a file system that can be emptied"
            raise EnvironmentFault(f"{FLASH_PROBE} cold start", found=found, wanted="none", remedy=remedy)
        figures |= _figures(measure)
    return Reading(figures)


def _figures(measure: ReadMeasure) -> Figures:
    values: dict[str, float] = {
        "latency_p50_s": measure.latency_p50_us / 1e6,
        "latency_p99_s": measure.latency_p99_us / 1e6,
        "bandwidth_bytes_per_s": measure.bandwidth_bytes_per_s,
        "minor_faults_count": measure.minor_faults,
        "major_faults_count": measure.major_faults,
        "resident_after_count": measure.resident_pages_after,
    }
    if measure.storage_read_bytes is not None:
        values["storage_read_bytes"] = measure.storage_read_bytes
    return known_figures(
        {f"{measure.pattern}_{measure.access}_{name}": value for name, value in values.items()}, FLASH_PROBE
    )
