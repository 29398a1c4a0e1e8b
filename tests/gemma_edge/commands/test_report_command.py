from __future__ import annotations

import json
from pathlib import Path

import pytest
from result_records import FIXTURE

from gemma_edge.cli import main

LINES = FIXTURE.read_bytes().splitlines(keepends=True)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_report_of_several_files_is_written_and_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "a.jsonl", LINES[5]), write(tmp_path / "b.jsonl", LINES[4] + LINES[6])
    page = tmp_path / "report.html"
    assert main(["report", str(first), str(second), "-o", str(page), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value == {"report": str(page), "records": 3, "flagged_records": 2, "bytes": page.stat().st_size}
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "3 runs" in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["no records", "bench"]),
        (b"{}\n", ["line 1", "format"]),
        (LINES[0] + b"garbage\n", ["line 2"]),
        (LINES[0][:100], ["without a line end", "--skip-torn-line"]),
    ],
)
def test_results_that_are_none_end_in_one_error_and_no_page(
    data: bytes, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "r.jsonl", data)
    assert main(["report", str(results), "-o", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ["error: ", *words])
    assert not (tmp_path / "report.html").exists()


def test_a_torn_line_is_left_out_when_asked_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "r.jsonl", LINES[6] + LINES[0][:100])
    assert main(["report", str(results), "-o", str(tmp_path / "r.html"), "--skip-torn-line"]) == 0
    streams = capsys.readouterr()
    assert "100 bytes" in streams.err and "1 run" in streams.out


def test_a_file_that_is_named_twice_is_not_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "r.jsonl", LINES[6])
    assert main(["report", str(results), str(results), "-o", str(tmp_path / "r.html")]) == 2
    assert "twice" in capsys.readouterr().err


def test_a_missing_file_and_an_output_that_cannot_be_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "r.html")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    results = write(tmp_path / "r.jsonl", LINES[6])
    assert main(["report", str(results), "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "no directory" in capsys.readouterr().err
