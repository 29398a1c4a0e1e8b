from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from result_records import record_of

from gemma_edge.cli import main
from toolkit.results.json_lines import dump_record
from toolkit.results.record import BenchRecord

SLOW, FAST = [10.0, 10.2, 9.9, 10.1, 10.0], [12.0, 12.1, 11.8, 12.2, 12.0]


def write(path: Path, *records: BenchRecord) -> str:
    path.write_bytes(b"".join(map(dump_record, records)))
    return str(path)


def test_a_difference_is_shown_and_is_no_failure_without_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write(tmp_path / "a", record_of(FAST)), write(tmp_path / "b", record_of(SLOW))
    assert main(["compare", base, new]) == 0
    assert "slower" in capsys.readouterr().out
    assert main(["compare", base, new, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tests"][0]["verdict"] == "slower"


@pytest.mark.parametrize(("limit", "code"), [("10%", 1), ("16.5", 1), ("20%", 0)])
def test_a_regression_beyond_the_limit_is_exit_code_1(
    limit: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write(tmp_path / "a", record_of(FAST)), write(tmp_path / "b", record_of(SLOW))
    assert main(["compare", base, new, "--max-regression", limit, "--json"]) == code
    streams = capsys.readouterr()
    assert len(json.loads(streams.out)["regressed"]) == code
    assert ("worse by 16.7%" in streams.err) == bool(code)
    assert main(["compare", new, base, "--max-regression", limit]) == 0


@pytest.mark.parametrize(
    ("new", "arguments", "words"),
    [
        (record_of(SLOW[:3]), ["--max-regression", "5%"], "5 and 3 values"),
        (record_of(SLOW, start="cold"), [], "no configuration is in both"),
        (record_of(SLOW), ["--max-regression", "lots"], "a percentage"),
        (record_of(SLOW), ["--across", "moon"], "device, model or both"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(
    new: BenchRecord, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(tmp_path / "a", record_of(FAST))
    assert main(["compare", base, write(tmp_path / "b", new), *arguments]) == 2
    streams = capsys.readouterr()
    assert words in streams.err and not streams.out and len(streams.err.splitlines()) == 1


def test_across_both_is_across_each_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = record_of(SLOW, device=replace(record_of(SLOW).device, fingerprint="other/build", model="other"))
    base, new = write(tmp_path / "a", record_of(FAST)), write(tmp_path / "b", other)
    assert main(["compare", base, new]) == 2
    capsys.readouterr()
    assert main(["compare", base, new, "--across", "both", "--json"]) == 0
    both = capsys.readouterr().out
    assert main(["compare", base, new, "--across", "device,model", "--json"]) == 0
    assert capsys.readouterr().out == both != ""


@pytest.mark.parametrize(
    ("base", "new", "words"),
    [
        ([record_of(FAST), record_of(FAST, start="cold")], record_of(FAST), "no new results of gemma-3n"),
        ([record_of(FAST)], record_of([]), "no new results of tg128 of gemma-3n"),
        ([record_of([])], record_of(FAST), "no test with values in both"),
        ([record_of([0.0] * 5)], record_of(FAST), "a median of 0 in the base of tg128 of gemma-3n"),
    ],
    ids=["configuration", "test", "nothing", "zero"],
)
def test_a_gate_stays_shut_when_something_cannot_be_judged(
    base: list[BenchRecord], new: BenchRecord, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / "a", *base), write(tmp_path / "b", new)]
    assert main(["compare", *files]) == 0
    assert main(["compare", *files, "--max-regression", "5%"]) == 2
    assert words in capsys.readouterr().err


def test_a_median_that_stays_zero_is_no_regression(tmp_path: Path) -> None:
    files = [write(tmp_path / name, record_of([0.0] * 5)) for name in "ab"]
    assert main(["compare", *files, "--max-regression", "5%"]) == 0
