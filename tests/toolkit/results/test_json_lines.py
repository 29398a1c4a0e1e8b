"""Results files: what is written is read, and each fault is one error that names line and field."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from paths import FIXTURES, REPOSITORY

from toolkit.base.errors import EnvironmentFault, ResultsError, UsageError
from toolkit.results import json_lines
from toolkit.results.figures import FigureName
from toolkit.results.json_lines import dump_record, open_results, parse_record, read_results
from toolkit.results.record import BenchRecord, ClusterRecord, Samples

FIXTURE = FIXTURES / "results.jsonl"
LINES = FIXTURE.read_bytes().splitlines(keepends=True)


def test_records_are_written_as_they_were_read() -> None:
    assert b"".join(map(dump_record, read_results(FIXTURE).records)) == FIXTURE.read_bytes()


def test_the_specification_shows_a_record_of_the_fixture() -> None:
    text = (REPOSITORY / "docs/formats/results.md").read_text()
    shown = json.loads(text.split("```json\n")[1].split("```")[0])
    assert shown in [json.loads(line) for line in LINES]


def test_the_values_of_a_test_are_its_figure_of_each_iteration() -> None:
    record = read_results(FIXTURE).records[0]
    assert record.values("tg128") == tuple(item.figures["decode_tokens_per_s"] for item in record.iterations)
    assert len(record.values("tg128")) == 8


def test_all_nodes_may_be_delegated() -> None:
    value = json.loads(LINES[0])
    value["delegation"] = {"delegated_nodes": 7, "nodes": 7, "source": "a log"}
    delegation = parse_record(json.dumps(value).encode(), "line").delegation
    assert delegation is not None and delegation.text == "7 of 7 nodes delegated"


def test_records_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    records = read_results(FIXTURE).records[:3]
    for record in records:
        with open_results(path) as writer:
            writer.append(record)
    assert read_results(path).records == records


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    record = read_results(FIXTURE).records[0]
    broken: BenchRecord = dataclasses.replace(record, tests={"tg128": cast(FigureName, "tokens")})
    with open_results(path) as writer, pytest.raises(ResultsError, match=r"tests tg128: found tokens"):
        writer.append(broken)
    assert not path.exists()


def record_of_samples(count: int) -> BenchRecord:
    """A record of a long run: its memory peaks once, and every tenth sample has a temperature."""
    columns: dict[FigureName, tuple[float | None, ...]] = {
        "t_s": tuple(0.2 * i for i in range(count)),
        "rss_bytes": tuple(9_000_000 if i == count // 2 + 1 else 1_000_000 + i for i in range(count)),
        "temperature_celsius": tuple(30 + i / count if i % 10 == 1 else None for i in range(count)),
    }
    record = read_results(FIXTURE).records[0]
    cores = ClusterRecord("policy0", None, tuple(1_800_000_000 + i for i in range(count)), ())
    return dataclasses.replace(record, samples=Samples(columns, "SKIN"), clusters=(cores,))


def test_samples_that_do_not_fit_on_a_line_are_merged_and_peaks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of_samples(3000)
    whole = len(dump_record(record))
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", whole // 2)
    line = dump_record(record)
    merged = parse_record(line)
    assert merged.samples_merged == 3 and whole // 4 < len(line) <= whole // 2
    assert dump_record(merged) == line
    assert dataclasses.replace(merged, samples=record.samples, clusters=record.clusters, samples_merged=None) == record
    columns, all_columns = merged.samples.columns, record.samples.columns
    assert columns["t_s"] == all_columns["t_s"][::3]
    assert columns["rss_bytes"][500:502] == (9_000_000, 1_001_505)
    assert max(each for each in columns["temperature_celsius"] if each is not None) == 30 + 2991 / 3000
    assert sum(each is not None for each in columns["temperature_celsius"]) == 300
    assert merged.clusters is not None and merged.clusters[0].frequency_hz[:2] == (1_800_000_002, 1_800_000_005)


def test_a_record_that_is_too_long_without_its_samples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of_samples(20)
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    with pytest.raises(ResultsError, match="wanted at most 1,000"):
        dump_record(record)


@pytest.mark.parametrize("kept", [1, 500, len(LINES[1]) - 1])
def test_a_torn_last_line_is_an_error_unless_it_may_be_skipped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(LINES[0] + LINES[1][:kept])
    with pytest.raises(ResultsError, match=rf"line 2: {kept:,} bytes without a line end.*--skip-torn-line"):
        read_results(path)
    found = read_results(path, skip_torn_line=True)
    assert (len(found.records), found.torn_bytes) == (1, kept)


def test_nothing_is_appended_behind_a_torn_line_unless_it_may_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    torn = LINES[0] + b'{"format":'
    path.write_bytes(torn)
    with pytest.raises(ResultsError, match=r"10 bytes without a line end.*--drop-torn-line"), open_results(path):
        pass
    assert path.read_bytes() == torn
    with open_results(path, drop_torn_line=True) as writer:
        writer.append(parse_record(LINES[1], "line"))
    assert path.read_bytes() == LINES[0] + LINES[1]


def test_a_long_torn_line_is_removed_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(LINES[0] + b"x" * 200_000)
    with open_results(path, drop_torn_line=True):
        pass
    assert path.read_bytes() == LINES[0]


@pytest.mark.parametrize(
    ("place", "words"), [("no/such/folder/results.jsonl", "there is no directory"), (".", "wanted the name of a file")]
)
def test_a_place_that_cannot_be_written_is_found_before_anything_is_measured(
    tmp_path: Path, place: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words), open_results(tmp_path / place):
        pass


def test_a_file_is_made_with_its_first_record_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_results(path) as writer:
        assert list(tmp_path.iterdir()) == []
        writer.append(parse_record(LINES[0]))
    assert path.read_bytes() == LINES[0]
    with open_results(path):
        pass
    assert path.read_bytes() == LINES[0]


def test_two_processes_that_make_one_file_both_append_to_it(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_results(path) as first, open_results(path) as second:
        second.append(parse_record(LINES[1]))
        first.append(parse_record(LINES[0]))
        second.append(parse_record(LINES[2]))
    assert path.read_bytes() == LINES[1] + LINES[0] + LINES[2]


@pytest.mark.parametrize("content", [b"notes\n", b"{}\n", LINES[0].replace(b"results/2", b"results/1")])
def test_a_file_of_another_kind_is_replaced_only_when_told_to_and_with_the_first_record(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not gemma-edge bench results.*--force"), open_results(path):
        pass
    with open_results(path, force=True):
        pass
    assert path.read_bytes() == content
    with open_results(path, force=True) as writer:
        writer.append(parse_record(LINES[0]))
        writer.append(parse_record(LINES[1]))
    assert path.read_bytes() == LINES[0] + LINES[1]


def test_a_disk_without_room_for_a_record_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: usage(2**30, 2**30 - 1000, 1000))
    path = tmp_path / "results.jsonl"
    with pytest.raises(EnvironmentFault, match="found 1,000 bytes of free disk space"), open_results(path):
        pass


def test_a_record_that_no_longer_fits_leaves_no_trace_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    script = """
import resource, sys
from toolkit.results.json_lines import open_results, parse_record
lines = sys.stdin.buffer.readlines()
with open_results(sys.argv[1]) as writer:
    writer.append(parse_record(lines[0]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines[0]) + 100,) * 2)
    writer.append(parse_record(lines[1]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], input=b"".join(LINES[:2]), capture_output=True)
    assert b"EnvironmentFault" in done.stderr and f"{path}: file too large".encode() in done.stderr
    assert path.read_bytes() == LINES[0]


FAULTS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("an unknown key", lambda r: r.update(colour=1), "unknown key colour"),
    ("a missing key", lambda r: r.pop("tests"), "line 2 tests: missing"),
    ("a missing nested key", lambda r: r["device"].pop("emulated"), "device emulated: missing"),
    ("another format", lambda r: r.update(format="gemma-edge-results/1"), "format: found gemma-edge-results/1"),
    ("a flag as a number", lambda r: r["device"].update(emulated=1), "device emulated: found 1, wanted true or false"),
    ("true as a number", lambda r: r["model"].update(bytes=True), "model bytes: found true, wanted an integer"),
    ("a fraction as a count", lambda r: r["model"].update(bytes=1.5), "model bytes: found 1.5, wanted an integer"),
    ("a negative count", lambda r: r["model"].update(bytes=-1), "model bytes: found -1"),
    ("a null that may not be", lambda r: r.update(runner=None), "runner: found null, wanted a text"),
    ("a control character", lambda r: r["device"].update(model="a\x1b[2J"), "device model: found"),
    ("a long text", lambda r: r.update(runner="x" * 5000), "runner: found xxx"),
    ("a short hash", lambda r: r["model"].update(sha256="ab"), "model sha256: found ab, wanted 64 hexadecimal"),
    ("an unknown backend", lambda r: r.update(backend="dsp"), "backend: found dsp, wanted cpu or gpu or npu"),
    ("a list for a choice", lambda r: r.update(backend=["cpu"]), "backend: found"),
    ("an unknown flag", lambda r: r.update(flags=["slow"]), "flags[0]: found slow"),
    ("a flag twice", lambda r: r.update(flags=["drifted", "drifted"]), "flags: found drifted, drifted"),
    ("a local time", lambda r: r.update(started_utc="2026-11-25 15:00"), "started_utc: found 2026-11-25 15:00"),
    ("no tests", lambda r: r.update(tests={}, drift={}), "tests: found none"),
    ("a test of no figure", lambda r: r["tests"].update(pp512="speed"), "tests pp512: found speed"),
    ("a test with a bad name", lambda r: r["tests"].update({"<b>": "init_s"}), "tests key: found <b>"),
    ("a figure without a unit", lambda r: r["iterations"][1]["figures"].update(rate=1), "iterations[1] figures key"),
    ("a text as a figure", lambda r: r["iterations"][1]["figures"].update(init_s="1"), "iterations[1] figures init_s"),
    ("an end before the begin", lambda r: r["iterations"][0].update(end_s=0), "iterations[0] end_s: found 0"),
    ("an unknown status", lambda r: r["iterations"][0].update(thermal_status=7), "iterations[0] thermal_status"),
    ("columns of two lengths", lambda r: r["samples"]["columns"]["rss_bytes"].pop(), "samples columns rss_bytes"),
    ("no times", lambda r: r["samples"]["columns"].pop("t_s"), "samples columns t_s"),
    ("a step back in time", lambda r: r["samples"]["columns"]["t_s"].reverse(), "samples columns t_s"),
    ("a drift of no test", lambda r: r["drift"].update(pp1=r["drift"]["pp512"]), "drift: found pp1"),
    ("another statistic", lambda r: r["drift"]["pp512"].update(statistic="t"), "drift pp512 statistic"),
    ("delegation beyond all", lambda r: r["delegation"].update(delegated_nodes=3, nodes=2), "found 3 of 2"),
    ("delegation of nothing", lambda r: r["delegation"].update(delegated_nodes=3), "found 3 of None"),
    ("delegation from nowhere", lambda r: r["delegation"].pop("source"), "delegation source: missing"),
    ("no room for a token", lambda r: r.update(context=0), "context: found 0"),
    ("an array for an object", lambda r: r.update(model=[]), "model: found an array, wanted an object"),
    ("an object for an array", lambda r: r.update(iterations={}), "iterations: found an object, wanted an array"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "wanted"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_each_fault_names_line_and_field(tmp_path: Path, breaks: Callable[[Any], object], wanted: str) -> None:
    record = copy.deepcopy(json.loads(LINES[0]))
    breaks(record)
    path = tmp_path / "results.jsonl"
    path.write_bytes(LINES[1] + json.dumps(record).encode() + b"\n")
    with pytest.raises(ResultsError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}, line 2")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"nonsense\n", b'{"format":1,"format":1}\n', b"\xff\n", b'{"seconds":NaN}\n', b"[" * 9000]
)
def test_a_line_that_is_no_record_is_one_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(LINES[0] + line)
    with pytest.raises(ResultsError, match="line 2"):
        read_results(path)
