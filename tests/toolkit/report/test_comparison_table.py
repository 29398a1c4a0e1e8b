from __future__ import annotations

import json

import pytest
from result_records import RECORDS, record_of

from toolkit.report.comparison_table import comparison_json, comparison_table
from toolkit.results.comparison import compare_results

BASE = [10.0, 10.2, 9.9, 10.1, 10.0]
FASTER = [12.0, 12.1, 11.8, 12.2, 12.0]


def test_the_table_and_json_say_the_same() -> None:
    found = compare_results([record_of(BASE)], [record_of(FASTER)])
    (row,) = comparison_table(found).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["tg128", "10.00 ± 0.11 t/s", "12.00 ± 0.15 t/s", "+20.0%"]
    assert cells[6:8] == ["faster", "5, 5"]
    test = json.loads(json.dumps(comparison_json(found)))["tests"][0]
    assert test["ratio"] == pytest.approx(1.2) and test["verdict"] == "faster"
    assert test["ratio_low"] < 1.2 < test["ratio_high"]


def test_one_iteration_has_no_spread() -> None:
    (row,) = comparison_table(compare_results([record_of([16.18])], [record_of(BASE)])).splitlines()[2:]
    assert "| 16.18 t/s | 10.00 ± 0.11 t/s |" in row


def test_a_base_of_zero_has_dashes_for_its_change() -> None:
    found = compare_results([record_of([0.0] * 5)], [record_of(BASE)])
    cells = [cell.strip() for cell in comparison_table(found).splitlines()[2].strip("|").split("|")]
    assert cells[4:7] == ["-", "-", "base not above 0"]
    test = json.loads(json.dumps(comparison_json(found)))["tests"][0]
    assert (test["ratio"], test["ratio_low"], test["verdict"]) == (None, None, "base not above 0")


def test_what_differs_and_what_one_side_lacks_stands_below_the_table() -> None:
    text = comparison_table(compare_results([*RECORDS[1:3], record_of(BASE)], [record_of(FASTER, tool="b\x1b[31m")]))
    _, below = text.split("\n\n")
    assert "differs: tool: gemma-edge 0.1.0 against b\\x1b[31m" in below
    assert "only in the base: gemma-3n-E2B-it-int4 E2B litert_lm_advanced_main cpu 4 threads cold" in below
