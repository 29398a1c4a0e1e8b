"""One benchmark run of one configuration, as docs/formats/results.md specifies it; None is what was not measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.base.json_types import Matches, Range
from toolkit.results.figures import FigureName

FORMAT = "gemma-edge-results/2"

TestName = Annotated[str, Matches(re.compile(r"[A-Za-z0-9._:+-]{1,128}"), "1 to 128 of A-Z a-z 0-9 . _ : + -")]
ConditionName = Annotated[str, Matches(re.compile(r"[a-z][a-z0-9_]{0,63}"), "1 to 64 of a-z 0-9 _")]
Sha256 = Annotated[str, Matches(re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits")]
Time = Annotated[str, Matches(re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "YYYY-MM-DDTHH:MM:SSZ")]
Count = Annotated[int, Range(0, 2**63)]
Positive = Annotated[int, Range(1, 4096)]
Context = Annotated[int, Range(1, 2**31)]
Number = Annotated[float, Range(-1e18, 1e18)]
Amount = Annotated[float, Range(0, 1e18)]
Celsius = Annotated[float, Range(-273.15, 1000)]
Percent = Annotated[float, Range(0, 100)]
Status = Annotated[int, Range(0, 6)]

Figures = dict[FigureName, Number]
"""Figure name, which ends in its unit, to number."""

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
]
BatteryStatus = Literal["charging", "discharging", "full", "not charging", "unknown"]
PowerSource = Literal["ac", "usb", "wireless", "dock"]
ThermalSource = Literal["hal", "cached", "none"]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What was run."""

    name: str
    kind: ModelKind
    size: str | None
    """MatFormer size."""
    sha256: Sha256
    bytes: Count
    quantization: str | None


@dataclass(frozen=True, slots=True)
class BinaryRecord:
    """The runner's program, or a library beside it."""

    name: str
    sha256: Sha256
    bytes: Count
    version: str | None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """Where it ran."""

    kind: DeviceKind
    emulated: bool
    """Speeds are then the host's."""
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
    """How much of the graph the accelerator took: a silent fallback shows here."""

    delegated_nodes: Count | None
    nodes: Count | None
    source: str
    """What said so; or, where both are None, why nothing does."""

    @property
    def text(self) -> str | None:
        """None where the runner does not say."""
        return None if self.nodes is None else f"{self.delegated_nodes} of {self.nodes} nodes delegated"


@dataclass(frozen=True, slots=True)
class Iteration:
    """One measured repetition; times in seconds since the run began, or None where only its figures are known."""

    begin_s: Amount | None
    end_s: Amount | None
    gate_wait_s: Amount
    thermal_status: Status | None
    figures: Figures


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """Mappings of one parameter group, or of one kind of file."""

    mapped_bytes: Count
    rss_bytes: Count
    pss_bytes: Count


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """Of the runner's process; figures in bytes."""

    peak: Figures | None
    steady: Figures | None
    groups: dict[str, MappedMemory]
    major_faults_count: Count | None
    minor_faults_count: Count | None
    read_bytes: Count | None


@dataclass(frozen=True, slots=True)
class Samples:
    """Time series: columns of one length, among them `t_s`, ascending."""

    columns: dict[FigureName, tuple[Number | None, ...]]
    temperature_source: str | None


@dataclass(frozen=True, slots=True)
class DriftRecord:
    """Whether a figure went up or down over the iterations."""

    statistic: Literal["mann-kendall"]
    p_value: Annotated[float, Range(0, 1)]
    change_fraction: Number


@dataclass(frozen=True, slots=True)
class BatteryRecord:
    """The battery as the device sees it."""

    level_percent: Percent | None
    temperature_celsius: Celsius | None
    voltage_volts: Amount | None
    status: BatteryStatus
    powered_by: tuple[PowerSource, ...]


@dataclass(frozen=True, slots=True)
class TemperatureRecord:
    """One sensor; `status` is its own throttling status, 0 to 6."""

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
    """One CPU: `limit_hz` is what throttling has left of `maximum_hz`."""

    cpu: Count
    governor: str | None
    frequency_hz: Count | None
    limit_hz: Count | None
    maximum_hz: Count | None


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What of the device's state moves measurements."""

    battery: BatteryRecord | None
    thermal: ThermalRecord | None
    cpus: tuple[CpuRecord, ...]
    screen_on: bool | None
    airplane_mode: bool | None
    power_save: bool | None
    load_1min: Amount | None


@dataclass(frozen=True, slots=True)
class ScriptRecord:
    """What a script of benchmarks/ says beside its figures; `gemma-edge bench` says it in other fields."""

    commit: str
    """Of this repository, with a + if files of it were changed."""
    conditions: dict[ConditionName, str]
    """What tells one contender of the script from another, such as `recipe` and `page_cache`."""
    versions: dict[str, str]
    """Of packages and peers."""


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
    """Test name, such as pp512, to the figure of `iterations` that is its result."""
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
    """Of a script of benchmarks/; the one key that a line may lack."""

    @property
    def conditions(self) -> str:
        """Those of a script in one line, nothing for other runners."""
        found = self.script.conditions if self.script is not None else {}
        return ", ".join(f"{name} {value}" for name, value in found.items())

    def values(self, test: str) -> tuple[float, ...]:
        """A test's figure of each iteration that has it, in order."""
        figure = self.tests[test]
        return tuple(item.figures[figure] for item in self.iterations if figure in item.figures)
