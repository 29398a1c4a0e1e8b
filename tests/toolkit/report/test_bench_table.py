from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import get_args

import pytest
from result_records import RECORDS, record_of

from toolkit.report.bench_table import bench_table
from toolkit.report.tables import FORMS, Form

HOSTILE = "Pixel|8\u202e <script>alert(1)</script>"


def test_markdown_is_llama_benchs_shape() -> None:
    record = record_of([10.0, 11.0, 12.0, 13.0], flags=("throttled",))
    assert bench_table([record], "md").splitlines() == [
        "| model                | size | quant | runner                  | backend | threads | start "
        "| device         |  test |        t/s |   n | notes     |",
        "|----------------------|------|-------|-------------------------|---------|---------|-------"
        "|----------------|------:|-----------:|----:|-----------|",
        "| gemma-3n-E2B-it-int4 | E2B  | int4  | litert_lm_advanced_main | cpu     | 4       | warm  "
        "| Example EX-100 | tg128 | 11.5 ± 1.3 |   4 | throttled |",
    ]


def test_percentiles_are_shown_of_many_iterations_alone() -> None:
    heading = bench_table([record_of([10.0 + i / 10 for i in range(20)])], "md").splitlines()[0]
    assert "p5" in heading and "p95" in heading
    assert "p5" not in bench_table([record_of([10.0, 11.0, 12.0])], "md")


def test_one_iteration_has_no_spread() -> None:
    assert "| 10.00 |" in bench_table([record_of([10.0])], "md")
    assert json.loads(bench_table([record_of([10.0])], "json"))[0]["sd"] is None


def test_tests_of_other_units_stand_in_a_table_of_their_own() -> None:
    rates, others = bench_table(RECORDS, "md").split("\n\n")
    assert "t/s" in rates and "ttft512" not in rates
    assert " 4.67 ± 0.06 s |" in others and "79.7 ± 3.5 µs" in others
    assert bench_table(RECORDS[5:7], "md").count("\n\n") == 0


def test_json_holds_every_test_of_every_record_and_every_iteration() -> None:
    rows = json.loads(bench_table(RECORDS, "json"))
    assert len(rows) == sum(len(record.tests) for record in RECORDS)
    first = rows[0]
    assert (first["test"], first["figure"], first["threads"]) == ("pp512", "prefill_tokens_per_s", 4)
    assert tuple(first["values"]) == RECORDS[0].values("pp512")
    assert first["n"] == 8 and first["p5"] < first["median"] < first["p95"]
    assert rows == [json.loads(line) for line in bench_table(RECORDS, "jsonl").splitlines()]


def test_csv_has_a_line_for_each_row_and_joins_notes() -> None:
    rows = list(csv.DictReader(bench_table(RECORDS, "csv").splitlines()))
    assert len(rows) == sum(len(record.tests) for record in RECORDS)
    assert rows[4]["notes"] == "throttled; drifted; gate timeout"
    empty = bench_table([record_of([], flags=("interrupted",))], "csv")
    assert "values" not in rows[0] and "values" not in empty


def test_flags_emulation_and_delegation_stand_beside_the_figures() -> None:
    assert bench_table(RECORDS[3:4], "md").count("emulated") > 3


@pytest.mark.parametrize("form", FORMS)
def test_a_record_without_a_whole_iteration_has_no_figures(form: Form) -> None:
    text = bench_table([record_of([], flags=("interrupted",))], form)
    assert "interrupted" in text
    assert "0.00" not in text and "NaN" not in text


@pytest.mark.parametrize("form", FORMS)
def test_no_records_are_an_empty_table(form: Form) -> None:
    assert len(bench_table([], form).splitlines()) == {"md": 2, "csv": 0, "json": 1, "jsonl": 0}[form]


@pytest.mark.parametrize("form", get_args(Form))
def test_a_devices_strings_cannot_break_a_table(form: Form) -> None:
    device = replace(RECORDS[0].device, model=HOSTILE, manufacturer=None)
    text = bench_table([record_of([1.0], device=device)], form)
    if form == "json":
        assert json.loads(text)[0]["device"] == HOSTILE
    elif form == "jsonl":
        assert json.loads(text)["device"] == HOSTILE
    elif form == "csv":
        (row,) = csv.DictReader(text.splitlines())
        assert row["device"] == HOSTILE.replace("\u202e", r"\u202e")
    else:
        header, _, line = text.splitlines()
        assert r"| Pixel\|8\u202e \<script>" in line
        assert line.count("|") == header.count("|") + 1


def test_outliers_are_notes_of_their_test_alone() -> None:
    slow = record_of([5.0, 10.0, 10.1, 9.9, 10.0])
    assert "slow first iteration" in bench_table([slow], "md")
    (row,) = json.loads(bench_table([slow], "json"))
    assert row["notes"] == ["slow first iteration"] and row["outliers"] == [1]
    (row,) = csv.DictReader(bench_table([slow], "csv").splitlines())
    assert row["outliers"] == "1"
    assert "notes" not in bench_table([record_of([10.0, 10.1, 9.9, 10.0, 10.2])], "md")


def test_what_rounding_leaves_is_no_spread() -> None:
    assert " 0.70 ± 0.00 " in bench_table([record_of([0.7] * 3)], "md")
    assert " 0.30 ± 0.00 " in bench_table([record_of([0.3, 0.1 + 0.2, 0.3])], "md")
