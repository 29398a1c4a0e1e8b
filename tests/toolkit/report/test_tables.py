from __future__ import annotations

import csv
import json

import pytest

from toolkit.report.tables import FORMS, Rates, markdown, rates_table, workload_name

HOSTILE = "Pixel|8\x1b[31m\n<script>alert(1)</script>"
ROWS = [
    Rates({"bundle": "tiny", "device": "emulated"}, "pp512", [100.0, 110.0, 105.0], ["emulated", "drift"]),
    Rates({"bundle": "tiny", "device": "emulated"}, "tg128", [10.0, 11.0, 12.0, 13.0]),
]


def test_markdown_is_llama_benchs_shape() -> None:
    assert rates_table(ROWS, "md") == "\n".join(
        [
            "| bundle | device   |  test |           t/s |     p5 |    p95 |   n | notes           |",
            "|--------|----------|------:|--------------:|-------:|-------:|----:|-----------------|",
            "| tiny   | emulated | pp512 | 105.00 ± 5.00 | 100.50 | 109.50 |   3 | emulated, drift |",
            "| tiny   | emulated | tg128 |  11.50 ± 1.29 |  10.15 |  12.85 |   4 |                 |",
        ]
    )


def test_no_notes_no_column() -> None:
    assert "notes" not in rates_table(ROWS[1:], "md")


def test_csv_has_units_in_its_header_and_one_line_a_row() -> None:
    first, second = csv.DictReader(rates_table(ROWS, "csv").splitlines())
    assert (first["test"], first["tokens_per_s_median"], first["n"]) == ("pp512", "105.0", "3")
    assert (first["notes"], second["notes"]) == ("emulated; drift", "")


def test_json_and_json_lines_hold_the_same_rows_with_every_iteration() -> None:
    rows = json.loads(rates_table(ROWS, "json"))
    assert rows == [json.loads(line) for line in rates_table(ROWS, "jsonl").splitlines()]
    assert rows[0]["tokens_per_s"] == [100.0, 110.0, 105.0]
    assert rows[0]["notes"] == ["emulated", "drift"]


def test_no_rows_are_an_empty_table_in_each_form() -> None:
    assert [len(rates_table([], form).splitlines()) for form in FORMS] == [2, 0, 1, 0]


@pytest.mark.parametrize("form", FORMS)
def test_a_devices_strings_cannot_break_a_table_or_steer_a_terminal(form: str) -> None:
    text = rates_table([Rates({"device": HOSTILE}, "pp8", [1.0])], form)  # type: ignore[arg-type]
    assert "\x1b" not in text
    if form == "json":
        assert json.loads(text)[0]["device"] == HOSTILE
    elif form == "jsonl":
        assert json.loads(text)["device"] == HOSTILE
    elif form == "csv":
        (row,) = csv.DictReader(text.splitlines())
        assert row["device"].startswith("Pixel|8\ufffd")
    else:
        assert len(text.splitlines()) == 3
        assert text.splitlines()[2].count("|") == 2 + text.splitlines()[1].count("|") - 1
        assert "| Pixel\\|8" in text
        assert "\\<script>" in text


def test_workloads_are_named_as_llama_bench_names_them() -> None:
    assert [workload_name(512, 0), workload_name(0, 128), workload_name(16, 8)] == ["pp512", "tg128", "pp16+tg8"]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = markdown(["a"], [["long cell"], ["b"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
