from __future__ import annotations

import csv
import json

import pytest

from toolkit.report.tables import FORMS, Column, Form, markdown, render

COLUMNS = [Column("name", lambda row: str(row["name"])), Column("n", lambda row: str(row["n"]), numeric=True)]
ROWS = [
    {"name": "a|b\x1b[31m", "n": 1, "outliers": [1, 2], "notes": ["x", "y"]},
    {"name": "c", "n": 20, "outliers": []},
]


def test_markdown_shows_columns_and_nothing_else() -> None:
    assert render(ROWS, COLUMNS, "md").splitlines() == [
        "| name         |   n |",
        "|--------------|----:|",
        "| a\\|b\\x1b[31m |   1 |",
        "| c            |  20 |",
    ]


def test_csv_joins_lists() -> None:
    first, second = csv.DictReader(render(ROWS, COLUMNS, "csv").splitlines())
    assert first == {"name": "a|b\\x1b[31m", "n": "1", "outliers": "1; 2", "notes": "x; y"}
    assert second == {"name": "c", "n": "20", "outliers": "", "notes": ""}


def test_csv_has_no_formulas_of_strangers() -> None:
    row = {"device": "=HYPERLINK(1)", "model": "@a", "notes": ["+b", "-c"], "change": -1.5}
    (found,) = csv.DictReader(render([row], [], "csv").splitlines())
    assert found == {"device": "'=HYPERLINK(1)", "model": "'@a", "notes": "'+b; -c", "change": "-1.5"}


def test_json_and_json_lines_hold_the_rows_as_they_are() -> None:
    assert json.loads(render(ROWS, COLUMNS, "json")) == ROWS
    assert [json.loads(line) for line in render(ROWS, COLUMNS, "jsonl").splitlines()] == ROWS


@pytest.mark.parametrize("form", FORMS)
def test_no_form_lets_a_control_character_through(form: Form) -> None:
    assert "\x1b" not in render(ROWS, COLUMNS, form)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = markdown(["a"], [["long cell"], ["b"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
