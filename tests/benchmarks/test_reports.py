"""What bench_reports says of its runs."""

from __future__ import annotations

from benchmarks.bench_reports import rows
from benchmarks.measure import ChildUsage


def test_a_row_has_medians_of_time_and_memory_and_ratios_within_a_round() -> None:
    peer = [ChildUsage(9, 50_000_000, cpu) for cpu in (1.0, 2.0, 1.0)]
    report = [ChildUsage(9, peak * 1_000_000, cpu) for cpu, peak in ((3.0, 70), (4.0, 90), (5.0, 80))]
    found = rows("8 alike", {"json": peer, "report": report}, 1_650_000)
    assert found[1] == ["8 alike", "report", "4.0 (3.0 to 5.0)", "3.0 (2.0 to 5.0)", "80 (70 to 90)", "1.65"]
    assert found[0][3:] == ["1.0 (1.0 to 1.0)", "50 (50 to 50)", ""]
