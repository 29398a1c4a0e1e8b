"""Benchmark records as one table, a row for each iteration, for DuckDB, pandas or a spreadsheet (docs/results.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

from toolkit.results.figures import FigureName
from toolkit.results.labels import device_name
from toolkit.results.quantities import unit
from toolkit.results.record import BenchRecord, Delegation, EnergyRecord, Iteration, ScriptRecord

Cell: TypeAlias = "str | int | float | bool | None"
CellType = Literal["text", "integer", "number", "truth"]


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its name, which ends in its unit, its type and meaning, and its value for an iteration of a record."""

    name: str
    type: CellType
    meaning: str
    value: Callable[[BenchRecord, Iteration], Cell]

    @property
    def unit(self) -> str:
        """The unit in which the name ends; empty for texts and for numbers without a unit."""
        return unit(self.name) if self.type in ("integer", "number") else ""


@dataclass(frozen=True, slots=True)
class IterationTable:
    """The columns, and the rows in the order of the records."""

    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]


def iteration_table(records: Sequence[BenchRecord]) -> IterationTable:
    """A row for each iteration of each record; the first two columns number records and iterations from 1.

    Every figure that any iteration has is a column of its name.
    """
    figures = sorted({name for record in records for item in record.iterations for name in item.figures})
    columns = (*COLUMNS, *map(_figure_column, figures))
    rows = [
        (number, place, *(column.value(record, item) for column in columns))
        for number, record in enumerate(records, 1)
        for place, item in enumerate(record.iterations, 1)
    ]
    return IterationTable((*_NUMBERS, *columns), tuple(rows))


def _unused(record: BenchRecord, item: Iteration) -> Cell:
    """The first two columns are filled by `iteration_table`."""
    raise AssertionError


def _figure_column(name: FigureName) -> TableColumn:
    is_whole = name.endswith(("_bytes", "_count"))

    def value(record: BenchRecord, item: Iteration) -> Cell:
        found = item.figures.get(name)
        return found if found is None or not is_whole else round(found)

    return TableColumn(name, "integer" if is_whole else "number", "a figure of the iteration", value)


def _sampled(name: FigureName, choose: Callable[[Iterable[float]], float]) -> Callable[[BenchRecord, Iteration], Cell]:
    """A column's value from the samples within an iteration; None if there are none."""

    def value(record: BenchRecord, item: Iteration) -> Cell:
        columns = record.samples.columns
        if item.begin_s is None or item.end_s is None or name not in columns:
            return None
        pairs = zip(columns["t_s"], columns[name], strict=True)
        found = [each for time, each in pairs if each is not None and item.begin_s <= (time or 0.0) <= item.end_s]
        return choose(found) if found else None

    return value


def _part(part: ScriptRecord | Delegation | EnergyRecord | None, name: str) -> Cell:
    """A field of a part of the record; None if the record does not have the part."""
    found: Cell = None if part is None else getattr(part, name)
    return found


def _governors(record: BenchRecord) -> str | None:
    names = dict.fromkeys(cluster.governor for cluster in record.clusters or () if cluster.governor)
    if not names and record.state_before is not None:
        names = dict.fromkeys(cpu.governor for cpu in record.state_before.cpus if cpu.governor)
    return ", ".join(names) or None


_NUMBERS = (
    TableColumn("record", "integer", "number of the record among all that were read, from 1", _unused),
    TableColumn("iteration", "integer", "number of the iteration within its record, from 1", _unused),
)

COLUMNS: tuple[TableColumn, ...] = (
    TableColumn("started_utc", "text", "when the run began", lambda record, _: record.started_utc),
    TableColumn("tool", "text", "program and version that measured", lambda record, _: record.tool),
    TableColumn("runner", "text", "program that ran the model", lambda record, _: record.runner),
    TableColumn("conditions", "text", "a script's conditions, else empty", lambda record, _: record.conditions or None),
    TableColumn("commit", "text", "a script's commit", lambda record, _: _part(record.script, "commit")),
    TableColumn("backend", "text", "cpu, gpu or npu", lambda record, _: record.backend),
    TableColumn("start", "text", "cold or warm", lambda record, _: record.start),
    TableColumn("threads", "integer", "threads that the runner was told to use", lambda record, _: record.threads),
    TableColumn("context", "integer", "positions of the caches", lambda record, _: record.context),
    TableColumn("model", "text", "name of the model", lambda record, _: record.model.name),
    TableColumn("model_kind", "text", "bundle, litertlm, ...", lambda record, _: record.model.kind),
    TableColumn("model_size", "text", "MatFormer size", lambda record, _: record.model.size),
    TableColumn("quantization", "text", "recipe of the weights", lambda record, _: record.model.quantization),
    TableColumn("model_sha256", "text", "hash of the model", lambda record, _: record.model.sha256),
    TableColumn("model_bytes", "integer", "size of all its files", lambda record, _: record.model.bytes),
    TableColumn("device", "text", "manufacturer, model and serial number", lambda record, _: device_name(record)),
    TableColumn("device_serial", "text", "serial number, if recorded", lambda record, _: record.device_serial),
    TableColumn("is_emulated", "truth", "whether it is an emulated device", lambda record, _: record.device.emulated),
    TableColumn("build", "text", "fingerprint of the device's build", lambda record, _: record.device.fingerprint),
    TableColumn("os_version", "text", "version of the system", lambda record, _: record.device.os_version),
    TableColumn("soc", "text", "its chip", lambda record, _: record.device.soc),
    TableColumn("cpus_count", "integer", "number of CPUs", lambda record, _: record.device.cpus),
    TableColumn("memory_bytes", "integer", "memory of the device", lambda record, _: record.device.memory_bytes),
    TableColumn("governor", "text", "governors of its CPUs", lambda record, _: _governors(record)),
    TableColumn(
        "delegated_nodes_count", "integer", "nodes of the graph that a delegate took",
        lambda record, _: _part(record.delegation, "delegated_nodes"),
    ),
    TableColumn(
        "nodes_count", "integer", "nodes of the graph", lambda record, _: _part(record.delegation, "nodes")
    ),
    TableColumn("flags", "text", "doubts about the run, separated by ;", lambda record, _: "; ".join(record.flags)),
    TableColumn(
        "energy_source", "text", "where energy comes from", lambda record, _: _part(record.energy, "source")
    ),
    TableColumn(
        "idle_watts", "number", "power at rest", lambda record, _: _part(record.energy, "idle_watts")
    ),
    TableColumn("begin_s", "number", "begin, since the run began", lambda _, item: item.begin_s),
    TableColumn("end_s", "number", "end, since the run began", lambda _, item: item.end_s),
    TableColumn("gate_wait_s", "number", "wait for a cool device before it", lambda _, item: item.gate_wait_s),
    TableColumn("thermal_status", "integer", "throttling after it, 0 to 6", lambda _, item: item.thermal_status),
    TableColumn(
        "median_temperature_celsius", "number", "of the samples within it", _sampled("temperature_celsius", median)
    ),
    TableColumn(
        "median_cpu_frequency_hz", "number", "of the fastest cluster, within it", _sampled("cpu_frequency_hz", median)
    ),
    TableColumn(
        "most_rss_and_swap_bytes", "number", "most memory of the samples within it", _sampled("rss_and_swap_bytes", max)
    ),
)  # fmt: skip
"""The columns that every table has."""
