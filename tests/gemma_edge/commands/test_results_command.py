"""`gemma-edge results export`: the table, read back by DuckDB, pyarrow and Python's csv."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import FIXTURES
from result_records import FIXTURE, RECORDS, record_of

from gemma_edge.cli import main
from toolkit.results.iteration_table import COLUMNS, iteration_table
from toolkit.results.json_lines import dump_record
from toolkit.results.record import EnergyRecord
from toolkit.results.table_files import csv_bytes, parquet_bytes

DOCS = FIXTURES.parents[1] / "docs/results.md"
ITERATIONS = sum(len(record.iterations) for record in RECORDS)
needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


def test_a_row_is_an_iteration_and_csv_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "table.csv"
    assert main(["results", "export", str(FIXTURE), "-o", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert told["rows"] == len(rows) == ITERATIONS and told["columns"] == len(rows[0])
    first = RECORDS[0]
    assert [row["iteration"] for row in rows[:2]] == ["1", "2"] and rows[0]["record"] == "1"
    for row, item in zip(rows, first.iterations, strict=False):
        assert float(row["decode_tokens_per_s"]) == item.figures["decode_tokens_per_s"]
        assert (row["model"], row["is_emulated"], row["flags"]) == (first.model.name, "false", "")
    assert {row["device"] for row in rows} == {"Example EX-100", "gemma-edge emulated device"}
    assert rows[-1]["inference_s"] == "", "what was not measured is empty, not 0"


def test_samples_are_summed_up_within_their_iteration() -> None:
    table = iteration_table(RECORDS[:1])
    place = [column.name for column in table.columns].index("most_rss_and_swap_bytes")
    record = RECORDS[0]
    item, columns = record.iterations[1], record.samples.columns
    inside = [
        value
        for time, value in zip(columns["t_s"], columns.get("rss_and_swap_bytes", columns["t_s"]), strict=True)
        if time is not None and (item.begin_s or 0) <= time <= (item.end_s or 0) and value is not None
    ]
    expected = max(inside) if "rss_and_swap_bytes" in columns and inside else None
    assert table.rows[1][place] == expected


@needs_pyarrow
def test_parquet_has_types_units_and_the_same_values(tmp_path: Path) -> None:
    import pyarrow.parquet

    target = tmp_path / "table.parquet"
    assert main(["results", "export", str(FIXTURE), "-o", str(target)]) == 0
    read = pyarrow.parquet.read_table(target)
    table = iteration_table(RECORDS)
    assert [tuple(row.values()) for row in read.to_pylist()] == list(table.rows)
    field = read.schema.field("decode_tokens_per_s")
    assert str(field.type) == "double" and field.metadata[b"unit"] == b"t/s"
    assert str(read.schema.field("is_emulated").type) == "bool"
    assert parquet_bytes(table) == parquet_bytes(table) == target.read_bytes(), "same results, same bytes"


@needs_pyarrow
def test_a_count_that_no_table_holds_is_refused_where_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, target = tmp_path / "r.jsonl", tmp_path / "t.parquet"
    for count, code in ((2**63 - 1, 0), (2**63, 2)):
        value = json.loads(dump_record(RECORDS[0]))
        value["model"]["bytes"] = count
        results.write_text(json.dumps(value) + "\n")
        assert main(["results", "export", str(results), "-o", str(target)]) == code
    assert "line 1 model bytes: found 9223372036854775808" in capsys.readouterr().err


@needs_pyarrow
def test_the_question_in_the_docs_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    energy = EnergyRecord("odpm", None, 0.5, 5.0, {}, None)
    better, worse = (
        record_of([joules] * 3, figure="decode_joules_per_token", backend=backend, energy=energy)
        for joules, backend in ((0.5, "gpu"), (2.0, "cpu"))
    )
    hot = record_of([0.1], figure="decode_joules_per_token", flags=("throttled",), energy=energy)
    results = tmp_path / "results.jsonl"
    results.write_bytes(b"".join(map(dump_record, (worse, better, hot, *RECORDS))))
    monkeypatch.chdir(tmp_path)
    assert main(["results", "export", "results.jsonl", "-o", "results.parquet"]) == 0
    question = re.search(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert question is not None
    # Rates are unknown in these records, and DuckDB must still have the column.
    found = duckdb.sql(question[1]).fetchall()
    assert [(row[3], row[4], row[6]) for row in found] == [("gpu", 2.0, 3), ("cpu", 0.5, 3)]


def test_the_docs_have_every_column_with_its_type_and_unit() -> None:
    text = DOCS.read_text()
    for column in COLUMNS:
        assert f"| `{column.name}` | {column.type} | {column.unit or '-'} | {column.meaning} |" in text


def test_another_ending_a_stranger_s_file_and_an_input_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(target: Path | str, wanted: str, *options: str) -> None:
        assert main(["results", "export", str(FIXTURE), "-o", str(target), *options]) == 2
        assert wanted in capsys.readouterr().err

    fails(tmp_path / "x.xlsx", "found the ending .xlsx, wanted .csv or .parquet")
    for name in ("mine.csv", "mine.parquet"):
        (tmp_path / name).write_text("my own,table\n")
        fails(tmp_path / name, "a file that is not a table of gemma-edge results")
        assert (tmp_path / name).read_text() == "my own,table\n"
    copy = tmp_path / "copy.csv"
    copy.write_bytes(FIXTURE.read_bytes())
    assert main(["results", "export", str(copy), "-o", str(copy)]) == 2
    assert copy.read_bytes() == FIXTURE.read_bytes()
    assert main(["results", "export", str(FIXTURE), "-o", str(tmp_path / "mine.csv"), "--force"]) == 0
    assert main(["results", "export", str(FIXTURE), "-o", str(tmp_path / "mine.csv")]) == 0, "ours is replaced"


def test_without_pyarrow_parquet_names_the_extra_and_csv_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["results", "export", str(FIXTURE), "-o", str(tmp_path / "x.parquet")]) == 3
    assert "pip install 'gemma-edge[parquet]', or write a .csv" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()
    assert main(["results", "export", str(FIXTURE), "-o", str(tmp_path / "x.csv")]) == 0


def test_a_device_s_name_stays_in_its_cell() -> None:
    record = record_of([1.0])
    odd = replace(record, device=replace(record.device, model='a,"b"\u202e\tc'))
    (row,) = csv.DictReader(csv_bytes(iteration_table([odd])).decode().splitlines())
    assert row["device"] == f'{record.device.manufacturer} a,"b"\\u202e\\tc'


def test_a_text_that_a_spreadsheet_would_compute_is_a_text_there() -> None:
    record = record_of([1.0])
    for name in ("=1+1", "+1", "-1", "@SUM(A1)"):
        odd = replace(record, model=replace(record.model, name=name))
        (row,) = csv.DictReader(csv_bytes(iteration_table([odd])).decode().splitlines())
        assert row["model"] == f"'{name}"
