"""Reads results files (docs/formats/results.md) strictly, with errors that name line and field; appends to them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import ResultsError, UsageError, system_reason
from toolkit.base.files import disk_faults, require_room, scratch_beside, write_bytes
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.strict_json import open_regular, parse_json, read_record, without_format
from toolkit.results.figures import FigureName
from toolkit.results.record import FORMAT, BenchRecord, Delegation, TraceRecord
from toolkit.results.samples import merge_samples

_OPTIONAL = ("script", "energy", "clusters", "trace", "device_serial", "fault", "samples_merged")
"""The keys that a line may omit instead of null, because they were added to the format later."""
MAX_LINE_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 65536
_APPENDING = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
_BEGINNING = f'{{"format":"{FORMAT}"'.encode()
"""How every line begins."""


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The records of a file, and the size of an incomplete last line that was skipped on request."""

    records: tuple[BenchRecord, ...]
    torn_bytes: int = 0


def read_results(path: Path | str, *, skip_torn_line: bool = False) -> ResultsFile:
    """Read all records of a file; ResultsError names the line and the field of the first fault.

    A crash can leave an incomplete last line. This is an error too, unless `skip_torn_line` says to skip it.
    """
    found: list[BenchRecord] = []
    with open(open_regular(Path(path), ResultsError), "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"line {number}"
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE_BYTES:
                    raise ResultsError(place, file=path, found=f"over {MAX_LINE_BYTES:,} bytes")
                if skip_torn_line:
                    return ResultsFile(tuple(found), len(line))
                raise _torn(path, place, len(line), "pass --skip-torn-line to continue without it")
            found.append(parse_record(line, path, place))
    return ResultsFile(tuple(found))


def parse_record(line: bytes, file: Path | str | None = None, place: str | None = None) -> BenchRecord:
    """Parse one line, with or without its newline; ResultsError names the first field that is wrong."""
    name = None if file is None else str(file)
    fields = without_format(parse_json(line, name, ResultsError, place), FORMAT, name, ResultsError, place)
    for key in _OPTIONAL:
        fields.setdefault(key, None)
    record = read_record(fields, BenchRecord, name, ResultsError, place)
    for key, found, wanted in _contradictions(record):
        raise ResultsError(f"{place} {key}" if place else key, file=name, found=found, wanted=wanted)
    return record


def dump_record(record: BenchRecord) -> bytes:
    """Encode a record as one line; ResultsError for one that `parse_record` would reject.

    The samples of a run that is too long for one line are merged, as few of them as possible.
    """
    line = _encoded(record)
    merged, samples = 1, len(record.samples.columns.get("t_s", ()))
    while len(line) > MAX_LINE_BYTES and merged < samples:
        # As if the line had nothing but samples, so at first too few are merged rather than too many.
        merged = max(merged + 1, merged * len(line) // MAX_LINE_BYTES)
        line = _encoded(merge_samples(record, merged))
    if len(line) > MAX_LINE_BYTES:
        raise ResultsError("record", found=f"{len(line):,} bytes", wanted=f"at most {MAX_LINE_BYTES:,}")
    parse_record(line)
    return line


def _encoded(record: BenchRecord) -> bytes:
    value = {"format": FORMAT, **dataclasses.asdict(record)}
    for key in _OPTIONAL:
        if value[key] is None:
            del value[key]
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


class ResultsWriter:
    """Appends records to a file, which the first one creates; a record is on disk before `append` returns."""

    def __init__(self, output: Output, fd: int | None) -> None:
        """`fd`: the file, open for appending; None if it does not exist yet, or is to be replaced."""
        self._output = output
        self._fd = fd

    def append(self, record: BenchRecord) -> None:
        """Append a record. ResultsError if it could not be read back; EnvironmentFault, with nothing written, if the
        disk is full."""
        line = dump_record(record)
        with disk_faults(self._output.path):
            if self._fd is None:
                self._fd = self._make(line)
            else:
                _append(self._fd, line)

    def _make(self, line: bytes) -> int:
        """Write the file with its first line, atomically, and return it open for appending."""
        path = self._output.require()  # what is there may have changed since it was opened
        if not path.exists():
            with suppress(FileExistsError):  # another process that measures has created it
                return self._make_new(path, line)
        elif path.stat().st_size and RESULTS.stranger(path) is not None:
            write_bytes(path, line)
            return os.open(path, _APPENDING)
        fd = os.open(path, _APPENDING)
        _append(fd, line)
        return fd

    def _make_new(self, path: Path, line: bytes) -> int:
        fd = os.open(path, _APPENDING | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _append(fd, line)
        except BaseException:
            if not os.fstat(fd).st_size:
                path.unlink(missing_ok=True)
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


@contextmanager
def open_results(
    path: Path | str, *, drop_torn_line: bool = False, inputs: Sequence[Path] = (), force: bool = False
) -> Iterator[ResultsWriter]:
    """Open a results file for appending; if there is none, the first record creates it.

    Everything that can be known is checked before anything is measured: UsageError if the file is an input, cannot be
    written, or is not a results file and may not be replaced (`force`); EnvironmentFault if the disk has no room for
    the longest record; ResultsError if the last line is incomplete, unless `drop_torn_line` says to remove it.
    """
    output = Output(Path(path), RESULTS, tuple(inputs), force)
    target = output.require()
    require_room(target, MAX_LINE_BYTES)
    ours = target.exists() and RESULTS.stranger(target) is None
    try:
        if ours:
            fd = os.open(target, _APPENDING)
        else:
            fd = None
            with scratch_beside(target):  # fails if the directory cannot be written
                pass
    except OSError as error:
        raise UsageError(file=path, found=system_reason(error), remedy="choose a file that is writable") from error
    writer = ResultsWriter(output, fd)
    try:
        if fd is not None:
            _remove_torn_line(fd, path, drop_torn_line=drop_torn_line)
        yield writer
    finally:
        writer.close()


def _append(fd: int, line: bytes) -> None:
    start = os.fstat(fd).st_size
    written = 0
    try:
        while written < len(line):
            written += os.write(fd, line[written:])
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, start)
        raise


def _remove_torn_line(fd: int, path: Path | str, *, drop_torn_line: bool) -> None:
    size = os.fstat(fd).st_size
    torn = size - _end_of_lines(fd, size)
    if torn and not drop_torn_line:
        raise _torn(path, "last line", torn, "pass --drop-torn-line to remove it")
    if torn:
        os.ftruncate(fd, size - torn)


def _stranger(path: Path) -> str | None:
    """Says what a file is if its first line is not a record, or the beginning of one that a crash left; otherwise
    None."""
    with open(path, "rb") as file:
        line = file.readline(MAX_LINE_BYTES + 1)
    if not line.endswith(b"\n") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        return None
    try:
        parse_record(line)
    except ResultsError as error:
        return f"a file that is not gemma-edge bench results (line 1: {error})"
    return None


RESULTS = OutputKind("a results file", _stranger)


def _contradictions(record: BenchRecord) -> Iterator[tuple[str, object, str | None]]:
    """The key, the value found and the value wanted, for each contradiction between fields."""
    if not record.tests:
        yield "tests", "none", "at least one"
    if len(set(record.flags)) < len(record.flags):
        yield "flags", ", ".join(record.flags), "each flag once"
    for name in sorted(set(record.drift) - set(record.tests)):
        yield "drift", name, " or ".join(record.tests)
    if record.trace is not None:
        yield from _trace_contradictions(record.trace)
    if record.delegation is not None:
        yield from _delegation_contradictions(record.delegation)
    for i, iteration in enumerate(record.iterations):
        begin_s, end_s = iteration.begin_s, iteration.end_s
        if (begin_s is None) != (end_s is None):
            yield f"iterations[{i}]", "one time", "begin_s and end_s, or null twice"
        elif begin_s is not None and end_s is not None and end_s < begin_s:
            yield f"iterations[{i}] end_s", end_s, "begin_s or later"
    yield from _column_contradictions(record.samples.columns)
    count = len(record.samples.columns["t_s"]) if "t_s" in record.samples.columns else 0
    for i, cluster in enumerate(record.clusters or ()):
        if len(cluster.frequency_hz) != count:
            yield f"clusters[{i}] frequency_hz", len(cluster.frequency_hz), f"{count}, as many as samples"


def _trace_contradictions(trace: TraceRecord) -> Iterator[tuple[str, object, str]]:
    known = [value is not None for value in (trace.file, trace.folder, trace.sha256, trace.bytes)]
    if any(known) is not all(known) or any(known) is (trace.unavailable is not None):
        yield "trace", "a part of it", "file, folder, sha256 and bytes, or unavailable alone"
    if trace.energy is not None and trace.unavailable is not None:
        yield "trace", "energy", "none without a trace"


def _delegation_contradictions(delegation: Delegation) -> Iterator[tuple[str, object, str]]:
    part, nodes = delegation.delegated_nodes, delegation.nodes
    if (part is None) != (nodes is None):
        yield "delegation", f"{part} of {nodes}", "two numbers, or null twice"
    if part is not None and nodes is not None and part > nodes:
        yield "delegation", f"{part} of {nodes}", "no more than there are"


def _column_contradictions(columns: Mapping[FigureName, Sequence[float | None]]) -> Iterator[tuple[str, object, str]]:
    times = [time for time in columns.get("t_s", ()) if time is not None]
    if "t_s" not in columns or len(times) < len(columns["t_s"]) or times != sorted(times):
        yield "samples columns t_s", "none, or a gap or a step back", "ascending times"
    for name, column in columns.items():
        if len(column) != len(times):
            yield f"samples columns {name}", len(column), f"{len(times)}, as many as t_s"


def _end_of_lines(fd: int, size: int) -> int:
    """The offset at which the last complete line ends."""
    while size > 0:
        start = max(0, size - _BLOCK_BYTES)
        end = os.pread(fd, size - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        size = start
    return 0


def _torn(path: Path | str, place: str, count: int, remedy: str) -> ResultsError:
    found = f"{count:,} bytes without a line end, probably left by a crash"
    return ResultsError(place, file=path, found=found, remedy=remedy)
