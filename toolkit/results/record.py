"""The record of one benchmark run (docs/formats/results.md); a value that was not measured is None."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.base.json_types import Matches, MayBeAbsent, Range
from toolkit.results.figures import FigureName

FORMAT = "gemma-edge-results/2"

TestName = Annotated[str, Matches(re.compile(r"[A-Za-z0-9._:+-]{1,128}"), "1 to 128 of A-Z a-z 0-9 . _ : + -")]
ConditionName = Annotated[str, Matches(re.compile(r"[a-z][a-z0-9_]{0,63}"), "1 to 64 of a-z 0-9 _")]
FileName = Annotated[
    str, Matches(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"), "1 to 128 of A-Z a-z 0-9 . _ -, not . _ - first")
]
Sha256 = Annotated[str, Matches(re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits")]
Time = Annotated[str, Matches(re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "YYYY-MM-DDTHH:MM:SSZ")]
Count = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[int, Range(1, 4096)]
Context = Annotated[int, Range(1, 2**31)]
Number = Annotated[float, Range(-1e18, 1e18)]
Amount = Annotated[float, Range(0, 1e18)]
Celsius = Annotated[float, Range(-273.15, 1000)]
Percent = Annotated[float, Range(0, 100)]
Status = Annotated[int, Range(0, 6)]

Figures = dict[FigureName, Number]
"""Values by figure name; the name ends in the unit."""

Backend = Literal["cpu", "gpu", "npu"]
Start = Literal["cold", "warm"]
ModelKind = Literal["bundle", "litertlm", "tflite", "gguf", "checkpoint", "weights"]
DeviceKind = Literal["adb", "host"]
Flag = Literal[
    "throttled",
    "drifted",
    "gate_timeout",
    "charging",
    "low_battery",
    "power_save",
    "screen_on",
    "interrupted",
    "reconnected",
    "sampler_failed",
    "energy_disagrees",
    "weights_in_memory",
]
BatteryStatus = Literal["charging", "discharging", "full", "not charging", "unknown"]
PowerSource = Literal["ac", "usb", "wireless", "dock"]
ThermalSource = Literal["hal", "cached", "none"]
EnergySource = Literal["odpm", "power_stats_hal", "battery_power", "battery_charge", "none"]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model that was run."""

    name: str
    kind: ModelKind
    size: str | None
    """The MatFormer size that was run."""
    sha256: Sha256
    bytes: Count
    quantization: str | None


@dataclass(frozen=True, slots=True)
class BinaryRecord:
    """The runner's program, or one of its libraries."""

    name: str
    sha256: Sha256
    bytes: Count
    version: str | None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """The machine that it ran on."""

    kind: DeviceKind
    emulated: bool
    """An emulated device: its speeds are those of the computer that ran the emulator."""
    manufacturer: str | None
    model: str | None
    fingerprint: str | None
    os_version: str | None
    kernel: str | None
    abi: str | None
    soc: str | None
    cpus: Positive
    memory_bytes: Count | None


@dataclass(frozen=True, slots=True)
class Delegation:
    """How many nodes of the graph ran on the accelerator; fewer than all is a silent fallback to the CPU."""

    delegated_nodes: Count | None
    nodes: Count | None
    source: str
    """Where the two numbers come from; if they are None, why they are missing."""

    @property
    def text(self) -> str | None:
        """`12 of 34 nodes delegated`; None if the runner does not say."""
        return None if self.nodes is None else f"{self.delegated_nodes} of {self.nodes} nodes delegated"


@dataclass(frozen=True, slots=True)
class Iteration:
    """One measured repetition; times in seconds since the start of the run, None if only its figures are known."""

    begin_s: Amount | None
    end_s: Amount | None
    gate_wait_s: Amount
    thermal_status: Status | None
    figures: Figures


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """The memory mappings of one parameter group, or of one kind of file."""

    mapped_bytes: Count
    rss_bytes: Count
    pss_bytes: Count


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """The memory of the runner's process."""

    peak: Figures | None
    steady: Figures | None
    groups: dict[str, MappedMemory]
    major_faults_count: Count | None
    minor_faults_count: Count | None
    read_bytes: Count | None


@dataclass(frozen=True, slots=True)
class Samples:
    """Time series: columns of equal length; the column `t_s` is the time of each sample, ascending."""

    columns: dict[FigureName, tuple[Number | None, ...]]
    temperature_source: str | None


@dataclass(frozen=True, slots=True)
class DriftRecord:
    """A test for a trend of a figure over the iterations."""

    statistic: Literal["mann-kendall"]
    p_value: Annotated[float, Range(0, 1)]
    change_fraction: Number


@dataclass(frozen=True, slots=True)
class BatteryRecord:
    """The battery, as the device reports it."""

    level_percent: Percent | None
    temperature_celsius: Celsius | None
    voltage_volts: Amount | None
    status: BatteryStatus
    powered_by: tuple[PowerSource, ...]


@dataclass(frozen=True, slots=True)
class TemperatureRecord:
    """One temperature sensor; `status` is its own throttling status, 0 to 6."""

    name: str
    kind: str
    celsius: Celsius
    status: Status


@dataclass(frozen=True, slots=True)
class ThermalRecord:
    """The device's throttling status, 0 to 6, and its sensors."""

    status: Status | None
    source: ThermalSource
    temperatures: tuple[TemperatureRecord, ...]


@dataclass(frozen=True, slots=True)
class CpuRecord:
    """One CPU core; `limit_hz` is below `maximum_hz` while it is throttled."""

    cpu: Count
    governor: str | None
    frequency_hz: Count | None
    limit_hz: Count | None
    maximum_hz: Count | None


@dataclass(frozen=True, slots=True)
class StateRecord:
    """The parts of the device's state that influence measurements."""

    battery: BatteryRecord | None
    thermal: ThermalRecord | None
    cpus: tuple[CpuRecord, ...]
    screen_on: bool | None
    airplane_mode: bool | None
    power_save: bool | None
    load_1min: Amount | None


@dataclass(frozen=True, slots=True)
class CoreRecord:
    """What one CPU did while the runner's processes ran."""

    cpu: Count
    idle_fraction: Annotated[float, Range(0, 1)] | None
    process_s: Amount
    """CPU time of the runner's processes on it."""


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """CPUs that share a frequency; `name` is the kernel's for their policy."""

    name: str
    governor: str | None
    frequency_hz: tuple[Number | None, ...]
    """One for each of the record's samples."""
    cores: tuple[CoreRecord, ...]


@dataclass(frozen=True, slots=True)
class EnergyCheck:
    """The energy of the same time, by the source and by the battery's own counter of charge or energy."""

    measured_joules: Amount
    counted_joules: Amount
    agrees: bool


@dataclass(frozen=True, slots=True)
class EnergyRecord:
    """Where the energy figures come from, and why some or all of them are missing."""

    source: EnergySource
    unavailable: str | None
    idle_watts: Amount | None
    """The power of the machine at rest, before the first iteration; the sampler ran then too."""
    idle_s: Amount | None
    """How long it was measured."""
    rails_joules: dict[str, Amount]
    """By power rail, during all iterations together."""
    check: EnergyCheck | None


@dataclass(frozen=True, slots=True)
class TraceEnergy:
    """What the power rails in a trace say about the traced run, which is slower than a measured run; or why they say
    nothing."""

    figures: Figures
    """`energy_joules` of the whole process, and those of prompt and answer if their times are known."""
    rails_joules: dict[str, Amount]
    """By power rail, while the process ran."""
    unavailable: str | None


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """The Perfetto trace of one more run, in a folder beside the results file; or why there is none."""

    file: FileName | None
    folder: FileName | None
    sha256: Sha256 | None
    bytes: Count | None
    unavailable: str | None
    energy: Annotated[TraceEnergy | None, MayBeAbsent()] = None


@dataclass(frozen=True, slots=True)
class ScriptRecord:
    """What a script in benchmarks/ records besides figures; `gemma-edge bench` uses other fields for this."""

    commit: str
    """The commit of this repository, followed by a + if its files had changed."""
    conditions: dict[ConditionName, str]
    """The settings that distinguish this run from the script's other runs, such as `recipe` and `page_cache`."""
    versions: dict[str, str]
    """The versions of packages, and of the other programs that the script compares with."""


@dataclass(frozen=True, slots=True)
class BenchRecord:
    """One line of a results file."""

    tool: str
    started_utc: Time
    seconds: Amount
    runner: str
    backend: Backend
    start: Start
    threads: Positive | None
    context: Context | None
    arguments: tuple[str, ...]
    tests: dict[TestName, FigureName]
    """The name of each test, such as pp512, and the figure of `iterations` that is its result."""
    model: ModelRecord
    binaries: tuple[BinaryRecord, ...]
    device: DeviceRecord
    delegation: Delegation | None
    iterations: tuple[Iteration, ...]
    memory: MemoryRecord
    samples: Samples
    drift: dict[TestName, DriftRecord]
    state_before: StateRecord | None
    state_after: StateRecord | None
    flags: tuple[Flag, ...]
    script: ScriptRecord | None = None
    """Only for scripts in benchmarks/. A line may omit this key and the keys below it."""
    energy: EnergyRecord | None = None
    clusters: tuple[ClusterRecord, ...] | None = None
    trace: TraceRecord | None = None
    """Only if one was asked for."""
    device_serial: str | None = None
    """Only if several devices were measured together, so that two devices of the same model can be told apart."""
    fault: str | None = None
    """The error that ended the run early."""
    samples_merged: Annotated[int, Range(2, 2**31)] | None = None
    """How many successive samples each value of `samples` and `clusters` stands for; None: one."""

    @property
    def conditions(self) -> str:
        """A script's conditions on one line; empty for other runners."""
        found = self.script.conditions if self.script is not None else {}
        return ", ".join(f"{name} {value}" for name, value in found.items())

    def values(self, test: str) -> tuple[float, ...]:
        """A test's value in each iteration that has one, in order."""
        figure = self.tests[test]
        return tuple(item.figures[figure] for item in self.iterations if figure in item.figures)

    def iterations_of(self, test: str) -> tuple[int, ...]:
        """The number of the iteration, from 1, of each of a test's `values`."""
        figure = self.tests[test]
        return tuple(number for number, item in enumerate(self.iterations, 1) if figure in item.figures)
