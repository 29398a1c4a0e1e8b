"""The history of rates: commits in order, machines and conditions apart, a verdict only where there are values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from result_records import record_of

from benchmarks import history
from benchmarks.measure import RESULTS
from toolkit.results.json_lines import open_results
from toolkit.results.record import BenchRecord, ScriptRecord

FAST, SLOW = [20.0, 20.1, 19.9, 20.0, 20.2], [10.0, 10.1, 9.9, 10.0, 10.2]


def measured(commit: str, values: list[float], *, cpu: str = "one", **conditions: str) -> BenchRecord:
    record = record_of(values, script=ScriptRecord(commit, {"system": "gemma-edge", **conditions}, {}))
    return dataclasses.replace(record, device=dataclasses.replace(record.device, model=cpu))


def histories(folder: Path, *records: BenchRecord) -> list[history.History]:
    with open_results(folder / "decode.jsonl") as writer:
        for record in records:
            writer.append(record)
    return history.histories(folder)


def test_commits_are_in_the_order_in_which_they_were_measured(tmp_path: Path) -> None:
    (found,) = histories(tmp_path, measured("c" * 12, SLOW), measured("a" * 12, FAST), measured("c" * 12, SLOW))
    assert [(item.commit[0], len(item.values)) for item in found.commits] == [("c", 10), ("a", 5)]
    table = history.history_table([found]).splitlines()
    assert "cccccccc" in table[2] and "aaaaaaaa" in table[3] and "+100.0% (higher)" in table[3]


def test_other_machines_and_conditions_are_other_histories(tmp_path: Path) -> None:
    found = histories(
        tmp_path,
        measured("a", SLOW),
        measured("b", FAST, cpu="two"),
        measured("b", FAST, recipe="int4"),
        measured("c", FAST, recipe="int4"),
    )
    assert [[item.commit for item in each.commits] for each in found] == [["b", "c"]]
    assert "no difference shown" in history.history_table(found)


def test_runs_with_other_threads_are_another_history(tmp_path: Path) -> None:
    one, other = measured("a", SLOW), dataclasses.replace(measured("b", FAST), threads=1)
    assert one.threads != 1 and histories(tmp_path, one, other) == []


def test_few_values_have_a_change_and_no_verdict(tmp_path: Path) -> None:
    found = histories(tmp_path, measured("a", [10.0]), measured("b", [12.0]))
    line = history.history_table(found).splitlines()[-1]
    assert "+20.0%" in line and "(" not in line


def test_the_plot_is_of_ours_alone(tmp_path: Path) -> None:
    found = histories(
        tmp_path, *(measured(commit, FAST, system=name) for name in ("gemma-edge", "peer") for commit in ("a", "b+"))
    )
    plot = history.history_plot(found, "decode", "decode_tokens_per_s")
    assert plot is not None and [label.splitlines()[-1] for label in plot.rows] == ["a", "b+"]
    assert len(found) == 2 and history.history_plot(found, "decode", "init_s") is None


@pytest.mark.slow
def test_the_records_of_this_repository_have_a_history_and_give_the_same_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "history.svg"
    history.main(["--plot", str(target)])
    printed = capsys.readouterr().out
    assert printed.startswith("| script") and "bd2bc284" in printed and "litert-torch" in printed
    assert target.read_bytes() == (RESULTS / "history.svg").read_bytes()
    kept = [json.loads(line) for line in (RESULTS / "2026-11/decode.jsonl").read_text().splitlines()]
    assert f"{kept[0]['decode_tokens_per_s']['median']:.2f} t/s" in printed
