"""BenchmarkInfo as recorded, mangled, repeated and cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mangling import MANGLINGS, NAMES
from paths import FIXTURES

from device_harness.runners.litert_lm.parser import (
    BenchmarkInfo,
    Turn,
    parse_benchmark_info,
    parse_duration,
    parse_peak_memory,
)
from toolkit.base.errors import EnvironmentFault

DEVICE = FIXTURES / "device"
OLD = (DEVICE / "litert_lm_benchmarkinfo_old_2025-09.txt").read_text()
NEW = (DEVICE / "litert_lm_benchmarkinfo_v0.11.txt").read_text()
EXPECTED = {
    OLD: BenchmarkInfo(0.21203, None, (Turn(18, 0.09241119),), (Turn(115, 3.86435584),)),
    NEW: BenchmarkInfo(0.51205, None, (Turn(15, 0.372565677),), (Turn(3, 0.093549531),)),
}


@pytest.mark.parametrize("text", EXPECTED, ids=["2025-09", "v0.11"])
@pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as recorded", *NAMES])
def test_both_formats_are_read_however_they_come(text: str, mangle: Callable[[str], str]) -> None:
    assert parse_benchmark_info(mangle(text)) == (EXPECTED[text],)


def test_rates_are_tokens_over_time_and_not_the_rounded_print() -> None:
    assert parse_benchmark_info(OLD)[0].decode[0].tokens_per_s == pytest.approx(115 / 3.86435584)


@pytest.mark.parametrize("text", EXPECTED, ids=["2025-09", "v0.11"])
def test_a_cut_at_any_byte_is_an_error_or_the_whole_result(text: str) -> None:
    whole = 0
    for end in range(len(text)):
        try:
            found = parse_benchmark_info(text[:end])
        except EnvironmentFault:
            continue
        assert found == (EXPECTED[text],)
        whole += 1
    # All that may miss is what follows the last turn: its speed and lines of dashes.
    assert whole < 200


def test_a_block_printed_twice_counts_once_and_two_runs_count_twice() -> None:
    other = NEW.replace("93.549531ms", "94.549531ms").replace("32.07", "31.73")
    assert parse_benchmark_info(NEW + NEW) == (EXPECTED[NEW],)
    assert [info.decode[0].seconds for info in parse_benchmark_info(NEW + other + other)] == [0.093549531, 0.094549531]


def test_aggregates_are_left_out() -> None:
    aggregated = "Aggregated " + NEW.replace("512.05", "1.00")
    assert parse_benchmark_info(NEW + aggregated) == (EXPECTED[NEW],)
    with pytest.raises(EnvironmentFault, match="found none, wanted a block BenchmarkInfo"):
        parse_benchmark_info(aggregated)


def test_several_turns_are_kept_in_order() -> None:
    more = "    Decode Turn 2: Processed 30 tokens in 1m2.5s duration.\n      Decode Speed: 0.48 tokens/sec.\n"
    text = NEW.replace("Decode Turns (Total 1 turns)", "Decode Turns (Total 2 turns)") + more
    assert parse_benchmark_info(text)[0].decode == (Turn(3, 0.093549531), Turn(30, 62.5))


def test_time_to_first_token_is_read_where_it_is_printed() -> None:
    text = NEW.replace("  Prefill Turns", "  Time to first token: 0.41 s\n  Prefill Turns")
    assert parse_benchmark_info(text)[0].time_to_first_token_s == 0.41


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("372.565677ms", "372.565677us", "prefill of 40.26 tokens/s"),
        ("Processed 3 tokens", "Processed 0 tokens", "a decode of 0 tokens"),
        ("93.549531ms", "0s", "a decode of 3 tokens in 0"),
        ("Decode Turns (Total 1 turns)", "Decode Turns (Total 2 turns)", "1 turns of decode, wanted 2"),
        ("    - Init Total: 512.05 ms\n", "", "a block without its initialization"),
    ],
)
def test_a_block_that_contradicts_itself_is_an_error(old: str, new: str, wanted: str) -> None:
    assert old in NEW
    with pytest.raises(EnvironmentFault, match=wanted.replace("(", r"\(")):
        parse_benchmark_info(NEW.replace(old, new))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3.86435584s", 3.86435584), ("92.4ms", 0.0924), ("1m2.5s", 62.5), ("120us", 0.00012), ("1h1m1s", 3661.0)],
)
def test_durations_have_mixed_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_the_peak_is_the_last_that_was_printed() -> None:
    assert parse_peak_memory("Peak system ram usage: 10MB\nPeak private footprint: 12.5 MB\n") == 13_107_200
    assert parse_peak_memory(NEW) is None
