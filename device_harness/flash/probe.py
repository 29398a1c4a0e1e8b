"""Times reads of PLE rows from flash on a device or this computer, with a small native program; see docs/probe.md."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from device_harness.adb.transport import DeviceFault, DeviceRefusal, Transport, quote, remote_path
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host, require_measurable
from device_harness.machines.machine import Machine, RunningCommand
from device_harness.machines.program import PlacedProgram, place_program
from device_harness.parsers.android import is_emulated, parse_properties
from device_harness.programs.build import FLASH_PROBE, NativeProgram, native_program, parse_architecture
from device_harness.push.program import place_small_program
from device_harness.push.push import DEFAULT_FOLDER
from toolkit.base.errors import BundleError, ResultsError, UsageError
from toolkit.base.files import Progress
from toolkit.base.json_types import Range
from toolkit.base.strict_json import open_regular, parse_json, read_record
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.ple_shards import is_shard_name

Access = Literal["pread", "pread_random", "mmap", "mmap_random", "pread_readahead", "mmap_willneed"]
Pattern = Literal["row", "batch"]
State = Literal["cold", "warm", "not_cold"]
Count = Annotated[int, Range(0, 2**63)]
Amount = Annotated[float, Range(0, 1e18)]

MOST_READS = 1 << 20
"""The program's maximum for each of: reads, rows of a batch, batches."""
MOST_TOKENS = 1 << 22
"""The program's maximum of listed token ids."""

_BAD_INPUT = 2
_MOST_BATCH_BYTES = 1 << 30
_MOST_TOKEN_BYTES = 16 * MOST_TOKENS
"""The largest file of token ids, which have at most eight digits."""
_QUICK_S = 20.0
_BASE_S = 120.0
_SLOWEST_ROW_S = 0.02
_WAYS = 20


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What to read: `reads` single rows and `batches` of `batch_rows`, each with every access method and state."""

    reads: int = 512
    batch_rows: int = 256
    batches: int = 8
    seed: int = 0
    """The seed of the token ids, which are drawn uniformly from the whole table."""
    tokens: tuple[int, ...] | None = None
    """Token ids to use instead, such as those of a text, which uses some rows often."""
    state: Literal["cold", "warm"] | None = None
    """The state of the page cache; None: cold, then warm."""

    def arguments(self) -> list[str]:
        """The program's options, without the tokens, which are passed in a file."""
        numbers = {"--seed": self.seed, "--reads": self.reads, "--batch": self.batch_rows, "--batches": self.batches}
        words = [word for name, value in numbers.items() for word in (name, str(value))]
        return [*words, *(["--state", self.state] if self.state is not None else [])]

    @property
    def timeout_s(self) -> float:
        rows = self.reads + self.batches * self.batch_rows
        return _BASE_S + _WAYS * rows * _SLOWEST_ROW_S


@dataclass(frozen=True, slots=True)
class TableFacts:
    """The program's description of the shards."""

    pid: Count
    shards: Count
    table_bytes: Count
    table_pages: Count
    page_bytes: Count
    row_bytes: Count
    rows: Count
    bits: Count
    seed: Count
    listed_tokens: Count
    measures: Count


@dataclass(frozen=True, slots=True)
class ReadMeasure:
    """Measurements of reads of one kind. A read is one row or a batch; its latency is from token ids to rows in memory.

    Percentiles are latencies that occurred (nearest rank). Faults are counted within reads, pages over all shards.
    `storage_read_bytes` is what the kernel read from storage for the process; None if it does not report that.
    """

    access: Access
    pattern: Pattern
    state: State
    """`not_cold`: a cold state was requested, but `resident_pages_before` pages could not be dropped."""
    reads: Count
    rows: Count
    latency_mean_us: Amount
    latency_p50_us: Amount
    latency_p90_us: Amount
    latency_p99_us: Amount
    latency_max_us: Amount
    row_bytes_read: Count
    read_s: Amount
    bandwidth_bytes_per_s: Amount
    minor_faults: Count
    major_faults: Count
    storage_read_bytes: Count | None
    resident_pages_before: Count
    resident_pages_after: Count


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one run of the program on one machine."""

    device: str
    emulated: bool
    program: NativeProgram
    table: TableFacts
    measures: tuple[ReadMeasure, ...]


def require_settings(settings: ProbeSettings, row_bytes: int) -> None:
    """UsageError for what the program would refuse; `row_bytes`: of each row of the table."""
    limits = {
        "--reads": (settings.reads, 1, MOST_READS),
        "--batch": (settings.batch_rows, 2, min(MOST_READS, _MOST_BATCH_BYTES // row_bytes)),
        "--batches": (settings.batches, 1, MOST_READS),
        "--seed": (settings.seed, 0, 2**64 - 1),
    }
    for option, (found, least, most) in limits.items():
        if not least <= found <= most:
            room = f", 1 GiB of rows of {row_bytes:,} bytes" if option == "--batch" and most < MOST_READS else ""
            raise UsageError(option, found=found, wanted=f"{least} to {most}{room}")
    if settings.tokens is not None and not 1 <= len(settings.tokens) <= MOST_TOKENS:
        raise UsageError("--tokens", found=f"{len(settings.tokens):,} ids", wanted=f"1 to {MOST_TOKENS:,}")
    if any(abs(token) >= 2**63 for token in settings.tokens or ()):
        raise UsageError("--tokens", found="a token id of more than 64 bits")


def shard_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of a bundle's shards in order; BundleError if it has none."""
    names = tuple(sorted(name for name in manifest.files if is_shard_name(name)))
    if not names:
        raise BundleError("bundle", found="no PLE shards")
    return names


def shard_groups(manifest: Manifest) -> tuple[str, ...]:
    """The groups to push for a probe: those with shards."""
    return tuple(group for group, record in manifest.groups.items() if any(map(is_shard_name, record.files)))


def read_token_file(path: Path) -> tuple[int, ...]:
    """Read token ids separated by white space; UsageError for anything else, and for a file larger than any list."""
    with open(open_regular(path, UsageError), "rb") as file:
        data = file.read(_MOST_TOKEN_BYTES + 1)
    if len(data) > _MOST_TOKEN_BYTES:
        raise UsageError(file=path, found=f"over {_MOST_TOKEN_BYTES:,} bytes", wanted="a list of token ids")
    try:
        words = data.decode("ascii").split()
        if not words:
            raise ValueError("an empty file")
        return tuple(int(word) for word in words)
    except ValueError as error:
        raise UsageError(file=path, found=str(error), wanted="token ids with white space between them") from error


def probe_host(
    shards: Sequence[Path],
    settings: ProbeSettings,
    *,
    scratch: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Probe files on this computer. `scratch`: a folder for temporary files."""
    require_measurable()
    host = Host()
    program = native_program(FLASH_PROBE, parse_architecture(os.uname().machine, "host"), say=say)
    tokens = scratch / "tokens"
    if settings.tokens is not None:
        tokens.write_text(_token_text(settings.tokens), encoding="ascii")
    command = probe_command(str(program.path), [str(path.resolve()) for path in shards], settings, str(tokens))
    table, measures = _run(host, command, settings, progress)
    return ProbeResult(host.serial, False, program, table, measures)


def probe_device(
    device: Transport,
    folder: str,
    shards: Sequence[str],
    settings: ProbeSettings,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Probe the shards in `folder` on a device. The program is copied to a folder that is removed afterwards."""
    machine = device.shell("uname -m", timeout=_QUICK_S).require(f"{device.serial} uname -m")
    program = native_program(FLASH_PROBE, parse_architecture(machine, device.serial), say=say)
    # A Linux board with adbd has no getprop.
    emulated = is_emulated(parse_properties(device.shell("getprop 2>/dev/null", timeout=_QUICK_S).stdout))
    # Each probe has its own copy, so that two of one device, from any computer, do not remove each other's program.
    scratch = remote_path(DEFAULT_FOLDER, f"{FLASH_PROBE}-{secrets.token_hex(8)}")
    tokens = remote_path(scratch, "tokens")
    try:
        placed = place_small_program(device, program.path, scratch)
        if settings.tokens is not None:
            device.push_bytes(_token_text(settings.tokens).encode(), tokens)
        paths = [remote_path(folder, name) for name in shards]
        table, measures = _run(AdbDevice(device), probe_command(placed, paths, settings, tokens), settings, progress)
    finally:
        _remove(device, scratch)
    return ProbeResult(device.serial, emulated, program, table, measures)


def place_probe(machine: Machine, say: Callable[[str], None] | None = None) -> PlacedProgram:
    """Build the probe, unless there is one for this architecture, and copy it to the machine."""
    answer = machine.shell("uname -m", timeout=_QUICK_S).require(f"{machine.serial} uname -m")
    architecture = parse_architecture(answer, machine.serial)
    return place_program(machine, native_program(FLASH_PROBE, architecture, say=say).path)


def probe_command(program: str, shards: Sequence[str], settings: ProbeSettings, tokens: str) -> str:
    """The command line of the probe for the machine's shell."""
    listed = ["--tokens", tokens] if settings.tokens is not None else []
    return " ".join(map(shlex.quote, [program, *settings.arguments(), *listed, *shards]))


def parse_probe(text: str, what: str) -> tuple[TableFacts, tuple[ReadMeasure, ...]]:
    """Parse the program's complete output, ignoring other lines from the device; ResultsError if it is incomplete."""
    lines = map(str.strip, text.split("\n"))
    return _complete([_parse_line(line, what) for line in lines if line.startswith("{")], what)


def _complete(records: Sequence[TableFacts | ReadMeasure], what: str) -> tuple[TableFacts, tuple[ReadMeasure, ...]]:
    tables = [record for record in records if isinstance(record, TableFacts)]
    measures = tuple(record for record in records if isinstance(record, ReadMeasure))
    if len(tables) != 1 or len(measures) != tables[0].measures:
        found = f"{len(tables)} tables and {len(measures)} kinds of read"
        wanted = f"1 and {tables[0].measures if tables else 'some'}"
        raise ResultsError(what, found=found, wanted=wanted, remedy="run it again")
    return tables[0], measures


def _parse_line(line: str, what: str) -> TableFacts | ReadMeasure:
    value = parse_json(line.encode(), None, ResultsError, what)
    fields = dict(cast("dict[str, object]", value))
    kind = fields.pop("record", None)
    if kind == "table":
        return read_record(fields, TableFacts, None, ResultsError, f"{what} table")
    return read_record(fields, ReadMeasure, None, ResultsError, f"{what} {kind}")


def _run(
    machine: Machine, command: str, settings: ProbeSettings, progress: Progress | None
) -> tuple[TableFacts, tuple[ReadMeasure, ...]]:
    what = f"{machine.serial} {FLASH_PROBE}"
    records: list[TableFacts | ReadMeasure] = []
    words: list[str] = []
    with machine.stream_shell(command, timeout=settings.timeout_s) as running:
        for line in _lines(running):
            if not line.startswith("{"):
                words.append(line)
                continue
            records.append(_parse_line(line, what))
            if progress is not None and isinstance(records[0], TableFacts):
                progress(len(records) - 1, records[0].measures)
        code = running.exit_code
    if code:
        found = words[-1] if words else f"exit code {code}"
        if code == _BAD_INPUT:
            remedy = "run gemma-edge check, and push or convert it again"
            raise BundleError(what, found=found, remedy=remedy)
        raise DeviceRefusal(what, found=found)
    return _complete(records, what)


def _lines(running: RunningCommand) -> Iterator[str]:
    """Yield the complete lines of both streams, stripped."""
    rest: dict[str, str] = {}
    for name, data in running:
        *lines, rest[name] = (rest.get(name, "") + data.decode("utf-8", "replace")).split("\n")
        yield from filter(None, map(str.strip, lines))
    yield from filter(None, map(str.strip, rest.values()))


def _token_text(tokens: Sequence[int]) -> str:
    return "\n".join(map(str, tokens)) + "\n"


def _remove(device: Transport, folder: str) -> None:
    """Remove the folder, and end the programs that still run from it, if the device can be reached.

    After a lost connection or an interrupt a program keeps running if `timeout` gave it a process group of its own.
    """
    name = folder.rsplit("/", 1)[1]
    # The brackets keep the pattern from being found in the command line of this very shell.
    pattern = shlex.quote(f"{name[:-1]}[{name[-1]}]/")
    ended = f'for p in /proc/[0-9]*; do grep -qs {pattern} "$p/cmdline" && kill -KILL "${{p#/proc/}}"; done'
    command = f"{{ {ended}; }} 2>/dev/null; rm -rf {quote(folder)}"
    try:
        if not device.available:
            device.reconnect(timeout=_QUICK_S)
        device.shell(command, timeout=_QUICK_S)
    except DeviceFault:
        return
