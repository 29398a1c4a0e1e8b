"""The page: everything a record says is on it, nothing in it can run, and nothing is loaded from elsewhere."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from jinja2 import UndefinedError
from result_records import FIXTURE, RECORDS, record_of

from toolkit.base.errors import ResultsError
from toolkit.report import page as page_module
from toolkit.report import results_page as results_page_module
from toolkit.report.page import Cell, plain_table, render_page
from toolkit.report.results_page import results_page
from toolkit.results.figures import FigureName
from toolkit.results.json_lines import dump_record, parse_record
from toolkit.results.record import (
    BenchRecord,
    ClusterRecord,
    Delegation,
    Figures,
    Flag,
    Iteration,
    TraceEnergy,
    TraceRecord,
)

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}]]>&\u202e$\\frac$ javascript:alert(3)"
TEMPLATES = Path(page_module.__file__).parent / "templates"
TAGS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "a",
        "span",
        "dl",
        "dt",
        "dd",
        "code",
        "figure",
        "figcaption",
        "main",
        "section",
        "br",
        "details",
        "summary",
        "svg",
        "line",
        "rect",
        "circle",
        "polyline",
        "text",
    ]
)


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.drawn = ""
        """The text within plots."""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data
        if "figure" in self._open:
            self.drawn += data


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    reader.close()
    assert not reader._open
    return reader


def page_of(*records: BenchRecord) -> Reader:
    return read(render_page(results_page(records)))


@pytest.fixture(scope="module")
def whole() -> Reader:
    return page_of(*RECORDS)


def test_every_result_is_in_the_summary(whole: Reader) -> None:
    for text in ("pp512", "111.2 ± 1.4 t/s", "110.1 to 111.3 t/s", "-34.0 % (p < 0.001)", "ttft512"):
        assert text in whole.text


def test_where_figures_come_from_is_there(whole: Reader) -> None:
    for record in RECORDS:
        known = (record.model.sha256, record.device.fingerprint, record.device.kernel, record.started_utc)
        for text in (*known, *(item.sha256 for item in record.binaries), *record.arguments[:1]):
            assert text is not None and text in whole.text
    assert "--benchmark_prefill_tokens=512" in whole.text


def test_flags_stand_on_top_beside_each_result_and_in_pictures(whole: Reader) -> None:
    assert "Emulated: runs #4, #5 were measured on an emulated device" in whole.text
    assert "Throttled: run #2; the device slowed down to stay cool." in whole.text
    assert whole.text.index("Throttled: run #2") < whole.text.index("Results")
    assert whole.text.count("gate timeout") >= 3
    drawn = whole.drawn
    assert "throttled, drifted, gate timeout" in drawn and "emulated" in drawn
    assert "1873 of 1901 nodes delegated" in drawn


def test_cold_is_held_against_warm_of_the_same_thing_only(whole: Reader) -> None:
    start = whole.text[whole.text.index("Cold and warm start") :]
    assert "#3/#1" in start and "5.06 x" in start and "4.86 to 5.31" in start
    assert "#5/#4" in start and "#3/#4" not in start


def test_memory_by_group_and_the_flash_probe_have_their_sections(whole: Reader) -> None:
    assert "1.48 GB of" in whole.text
    assert {"weight cache", "ple", "anonymous"} <= set(whole.drawn.split("\n"))
    probe = whole.text[whole.text.index("Reads from flash") :]
    assert "79.7 µs" in probe and "48.2 MB/s" in probe and "latency p99" in probe


def test_the_page_keeps_the_figures_of_one_read_apart_from_anothers() -> None:
    figures: Figures = {"row_pread_latency_p50_s": 88.4e-6, "row_pread_latency_p99_s": 354e-6}
    figures |= {"row_pread_random_latency_p50_s": 59e-6, "row_pread_random_latency_p99_s": 236e-6}
    tests: dict[str, FigureName] = {
        "ple_row:pread": "row_pread_latency_p50_s",
        "ple_row:pread_random": "row_pread_random_latency_p50_s",
    }
    iterations = (Iteration(0, 1, gate_wait_s=0, thermal_status=None, figures=figures),)
    record = replace(RECORDS[6], tests=tests, iterations=iterations)
    page = render_page(results_page([record])).decode()
    first, second = [line for line in page.splitlines() if "<td>ple_row:" in line]
    assert "88.4 µs" in first and "354 µs" in first and "59.0" not in first
    assert "59.0 µs" in second and "236 µs" in second
    assert "random latency" not in page and "Every iteration" not in page


def test_temperature_is_drawn_over_the_same_time_as_the_rates(whole: Reader) -> None:
    drawn = whole.drawn
    assert "°C" in drawn and "seconds since the run began" in drawn and "tg128" in drawn


def test_the_same_records_give_the_same_bytes() -> None:
    assert render_page(results_page(RECORDS[3:5])) == render_page(results_page(RECORDS[3:5]))


def test_nothing_is_loaded_and_nothing_can_run(whole: Reader) -> None:
    assert_harmless(whole)


def test_every_flag_has_a_meaning_on_the_page() -> None:
    flags = get_args(Flag)
    reader = page_of(record_of([1.0], flags=flags))
    for flag in flags:
        assert f"{flag.replace('_', ' ').capitalize()}: run #1; " in reader.text


def test_one_record_without_anything_optional_is_a_page() -> None:
    memory = replace(RECORDS[7].memory, peak=None, steady=None, groups={}, read_bytes=None)
    bare = record_of([], flags=("interrupted",), memory=memory, state_before=None, state_after=None, binaries=())
    reader = page_of(replace(bare, model=replace(bare.model, size=None, quantization=None), threads=None))
    assert "Interrupted: run #1" in reader.text and "tg128" in reader.text
    assert not reader.drawn
    for section in ("Memory", "Every iteration", "Cold and warm", "Reads from flash"):
        assert section not in reader.text
    assert "None" not in reader.text and "nan" not in reader.text


def test_a_record_with_one_iteration_claims_no_interval() -> None:
    reader = page_of(record_of([10.0]))
    assert "10.00 t/s" in reader.text and "±" not in reader.text.replace("median ± sd", "")
    assert "95 % interval" not in reader.text


def test_no_string_of_a_record_gets_out_of_its_place() -> None:
    records = [hostile(json.loads(line)) for line in FIXTURE.read_text().splitlines()]
    reader = page_of(*records)
    assert_harmless(reader)
    shown = HOSTILE.replace("\u202e", r"\u202e")
    assert reader.text.count(shown) > 100
    assert "49" not in reader.text.split(shown)[0][-4:]
    assert "\u202e" not in reader.text


ENERGY: dict[str, Any] = {
    "source": "odpm", "unavailable": "too short", "idle_watts": 0.812, "idle_s": 5.0,
    "rails_joules": {"S2M_VDD_CPUCL2": 12.5, "S1M_VDD_MIF": 30.0},
    "check": {"measured_joules": 40.0, "counted_joules": 4.0, "agrees": False},
}  # fmt: skip
CLUSTER: dict[str, Any] = {
    "name": "policy4", "governor": "sched_pixel", "frequency_hz": [],
    "cores": [{"cpu": cpu, "idle_fraction": 0.25, "process_s": 1.5 * (cpu - 4)} for cpu in (4, 5, 6)],
}  # fmt: skip


def test_energy_clusters_and_what_ended_a_run_are_beside_its_other_facts() -> None:
    times = RECORDS[0].samples.columns["t_s"]
    cluster = {**CLUSTER, "frequency_hz": [1.0e9, *[2.4e9] * (len(times) - 1)]}
    line = json.loads(dump_record(record_of([1.0])))
    record = parse_record(json.dumps({**line, "energy": ENERGY, "clusters": [cluster], "fault": "no route"}).encode())
    reader = page_of(record)
    for text in (
        "the power rails of the chip, by their meters", "unavailable: too short", "812 mW, over 5.00 s",
        "S1M_VDD_MIF 30.0 J, S2M_VDD_CPUCL2 12.5 J", "40.0 J measured DISAGREES with 4.00 J",
        "ended early by", "no route", "CPUs 4-6", "sched_pixel", "2.40 GHz", "25%", "5: 1.50 s, 6: 3.00 s",
    ):  # fmt: skip
        assert text in reader.text
    drawn = reader.drawn
    assert "CPUs 4-6" in drawn and "CPU frequency" not in drawn


def test_a_trace_is_linked_beside_the_results_from_wherever_the_page_is() -> None:
    trace = TraceRecord("20261129T1.perfetto-trace", "r.traces", "0" * 64, 2_000_000, None)
    page = render_page(results_page([record_of([1.0], trace=trace)], folders=['../odd "name"'])).decode()
    link = '<a href="../odd%20%22name%22/r.traces/20261129T1.perfetto-trace">20261129T1.perfetto-trace (2.00 MB)</a>'
    assert link in page
    none = TraceRecord(None, None, None, None, "the device has no perfetto")
    reader = page_of(record_of([1.0], trace=none))
    assert "unavailable: the device has no perfetto" in reader.text and ".perfetto-trace" not in reader.text


def test_joules_of_a_trace_stand_apart_from_those_of_the_iterations() -> None:
    figures: Figures = {"energy_joules": 12.5, "decode_joules_per_token": 0.25}
    energy = TraceEnergy(figures, {"GPU": 2.5, "CPU": 10.0}, None)
    trace = TraceRecord("a.perfetto-trace", "r.traces", "0" * 64, 5_000, None, energy)
    record = record_of([1.0])
    text = page_of(replace(record, trace=trace)).text
    assert "energy of the traced runthe process 12.5 J, a token of the answer 250 mJ" in text
    assert "power rails in the traceCPU 10.0 J, GPU 2.50 J" in text
    silent = replace(trace, energy=TraceEnergy({}, {}, "the trace has no power rails"))
    text = page_of(replace(record, trace=silent)).text
    assert "energy in the traceunavailable: the trace has no power rails" in text
    assert "energy of the traced run" not in text and "power rails in the trace" not in text
    assert "in the trace" not in page_of(replace(record, trace=replace(trace, energy=None))).text


def test_delegated_nodes_accepted_drafts_and_outliers_are_columns() -> None:
    plain = page_of(record_of([10.0, 10.1], delegation=None))
    assert not any(word in plain.text for word in ("delegated", "drafts accepted", "remarks"))
    record = record_of([5.0, 10.0, 10.1, 9.9, 10.0], delegation=Delegation(12, 34, "the log"))
    drafts = [replace(item, figures={**item.figures, "draft_acceptance_fraction": 0.625}) for item in record.iterations]
    reader = page_of(replace(record, iterations=tuple(drafts)))
    for text in ("12 of 34 nodes", "62%", "slow first iteration"):
        assert text in reader.text


def hostile(value: dict[str, Any]) -> BenchRecord:
    """The record with the hostile string in every place that the format lets hold it."""
    value |= copy.deepcopy({"fault": "x", "device_serial": "x", "energy": ENERGY, "clusters": [CLUSTER]})
    value["clusters"][0]["frequency_hz"] = [None] * len(value["samples"]["columns"]["t_s"])
    replaced = 0
    for holder, key in list(_places(value)):
        kept = holder[key]
        holder[key] = HOSTILE
        try:
            parse_record(json.dumps(value).encode(), "record")
            replaced += 1
        except ResultsError:
            holder[key] = kept
    groups = value["memory"]["groups"]
    value["memory"]["groups"] = {HOSTILE if name == "ple" else name: group for name, group in groups.items()}
    assert replaced > 10
    return parse_record(json.dumps(value).encode(), "record")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, str):
            yield value, key
        yield from _places(item)


def assert_harmless(reader: Reader) -> None:
    for tag, attributes in reader.tags:
        assert tag in TAGS
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert (attributes.get("href") or "#").startswith("#")
        assert "src" not in attributes and "xlink:href" not in attributes
    policy = [attributes["content"] for tag, attributes in reader.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_links_lead_to_sections_of_the_page(whole: Reader) -> None:
    keys = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(keys) == len(set(keys))
    links = {(attributes["href"] or "")[1:] for tag, attributes in whole.tags if tag == "a"}
    assert links and links <= set(keys)


def test_control_characters_of_any_text_are_shown() -> None:
    page = results_page([record_of([1.0])])
    table = plain_table(["a\x1b"], [[Cell("b\x1b<b>", flags=("c\x1b",))]])
    page = replace(page, introduction="d\x1b", warnings=("e\x1b",), starts=table)
    text = render_page(page).decode()
    assert r"b\x1b&lt;b&gt;" in text
    for letter in "acde":
        assert rf"{letter}\x1b" in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.name)
def test_no_template_lets_text_through_unescaped(path: Path) -> None:
    text = re.sub(r'xmlns="[^"]*"', "", path.read_text())
    assert not re.search(r"\|\s*safe\b|autoescape|<script|https?:", text)


def test_a_name_that_no_record_has_is_an_error() -> None:
    class Wrong:
        template = "results.html.jinja"

    with pytest.raises(UndefinedError, match="introduction"):
        render_page(Wrong())


def test_a_page_of_very_many_runs_shows_the_last_ones_and_says_so() -> None:
    records = [parse_record(line) for line in FIXTURE.read_bytes().splitlines()] * 1250
    page = results_page(records)
    assert page.introduction.startswith("10000 runs")
    assert page.warnings[0].startswith(f"Of 10,000 runs, the page shows the last {results_page_module.MAX_RUNS}")
    assert len(page.runs) == results_page_module.MAX_SECTIONS
    assert page.runs[-1].title.startswith("#10000 ")
    assert len(page.distributions) <= results_page_module.MAX_PLOTS
    assert sum(len(device.results.groups) for device in page.devices) <= results_page_module.MAX_RUNS


def test_links_lead_only_to_runs_that_have_a_section() -> None:
    reader = page_of(*RECORDS * 13)
    keys = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    links = {(attributes["href"] or "")[1:] for tag, attributes in reader.tags if tag == "a"}
    assert "run-104" in links and links <= keys
    assert "Of 104 runs" in reader.text and "#5 " in reader.text


def test_whatever_is_left_out_is_named() -> None:
    text = page_of(*[RECORDS[0], RECORDS[2]] * 5).text
    assert "Of 25 pairs of a cold and a warm run, the page shows the first 20;" in text
    models = [replace(RECORDS[0], model=replace(RECORDS[0].model, name=f"model-{i}")) for i in range(21)]
    reader = page_of(*models)
    assert "Of 21 cards, one for each model on each device, the page shows the last 20;" in reader.text
    assert sum(attributes.get("class") == "card" for _, attributes in reader.tags) == 20
    assert "Of " not in page_of(*RECORDS).text


def test_an_interval_has_the_digits_of_half_its_width() -> None:
    values = [10.0, 10.004, 9.996, 10.002, 9.998, 10.001, 9.999, 13.0]
    assert "9.9980 to 10.0040 t/s" in page_of(record_of(values)).text


def test_a_cluster_without_known_cores_has_its_own_name() -> None:
    cluster = ClusterRecord("policy4", None, (1e9,) * len(RECORDS[0].samples.columns["t_s"]), ())
    assert "policy4" in page_of(record_of([1.0], clusters=(cluster,))).drawn


@pytest.mark.parametrize("value", [5e-324, 1e18])
def test_values_at_the_ends_of_the_range_make_a_page(value: float) -> None:
    record = record_of([value] * 5)
    columns = {**record.samples.columns, "temperature_celsius": (value,) * len(record.samples.columns["t_s"])}
    assert "°C" in page_of(replace(record, samples=replace(record.samples, columns=columns))).drawn
    assert "tg128" in page_of(record_of([0.0, 0.0, 0.0, value, value])).text
