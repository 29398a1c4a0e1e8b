"""Reads results files (docs/formats/results.md) strictly, with errors that name line and field; appends to them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import ResultsError, UsageError, system_reason
from toolkit.base.strict_json import open_regular, parse_json, read_record, without_format
from toolkit.results.figures import FigureName
from toolkit.results.record import FORMAT, BenchRecord, Delegation

MAX_LINE_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The records of a file, and the size of an incomplete last line that was skipped on request."""

    records: tuple[BenchRecord, ...]
    torn_bytes: int = 0


def read_results(path: Path | str, *, skip_torn_line: bool = False) -> ResultsFile:
    """Read all records of a file; ResultsError names the line and the field of the first fault.

    A crash can leave an incomplete last line. That is an error too, or with `skip_torn_line` it is skipped.
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
                raise _torn(path, place, len(line))
            found.append(parse_record(line, path, place))
    return ResultsFile(tuple(found))


def parse_record(line: bytes, file: Path | str | None = None, place: str | None = None) -> BenchRecord:
    """Parse one line, with or without its newline; ResultsError names the first field that is wrong."""
    name = None if file is None else str(file)
    fields = without_format(parse_json(line, name, ResultsError, place), FORMAT, name, ResultsError, place)
    fields.setdefault("script", None)
    record = read_record(fields, BenchRecord, name, ResultsError, place)
    for key, found, wanted in _contradictions(record):
        raise ResultsError(f"{place} {key}" if place else key, file=name, found=found, wanted=wanted)
    return record


def dump_record(record: BenchRecord) -> bytes:
    """Encode a record as one line; ResultsError for one that `parse_record` would reject."""
    value = {"format": FORMAT, **dataclasses.asdict(record)}
    if record.script is None:
        del value["script"]
    line = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ResultsError("record", found=f"{len(line):,} bytes", wanted=f"at most {MAX_LINE_BYTES:,}")
    parse_record(line)
    return line


class ResultsWriter:
    """Appends records to a file; each is completely on the disk before `append` returns."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def append(self, record: BenchRecord) -> None:
        line = dump_record(record)
        start = os.fstat(self._fd).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, start)
            raise


@contextmanager
def open_results(path: Path | str, *, drop_torn_line: bool = False) -> Iterator[ResultsWriter]:
    """Open a results file for appending, or create it, before anything is measured.

    UsageError if it cannot be written; ResultsError if its last line is incomplete, unless `drop_torn_line` is given,
    which removes that line.
    """
    place = Path(path)
    try:
        fd = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UsageError(file=path, found=system_reason(error), remedy="name a file that can be written") from error
    try:
        size = os.fstat(fd).st_size
        torn = size - _end_of_lines(fd, size)
        if torn and not drop_torn_line:
            raise _torn(path, "last line", torn)
        os.ftruncate(fd, size - torn)
        yield ResultsWriter(place, fd)
    finally:
        os.close(fd)


def _contradictions(record: BenchRecord) -> Iterator[tuple[str, object, str | None]]:
    """Key, value found and value wanted for each contradiction between fields."""
    if not record.tests:
        yield "tests", "none", "at least one"
    if len(set(record.flags)) < len(record.flags):
        yield "flags", ", ".join(record.flags), "each once"
    for name in sorted(set(record.drift) - set(record.tests)):
        yield "drift", name, " or ".join(record.tests)
    if record.delegation is not None:
        yield from _delegation_contradictions(record.delegation)
    for i, iteration in enumerate(record.iterations):
        begin_s, end_s = iteration.begin_s, iteration.end_s
        if (begin_s is None) != (end_s is None):
            yield f"iterations[{i}]", "one time", "begin_s and end_s, or null twice"
        elif begin_s is not None and end_s is not None and end_s < begin_s:
            yield f"iterations[{i}] end_s", end_s, "begin_s or later"
    yield from _column_contradictions(record.samples.columns)


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


def _torn(path: Path | str, place: str, count: int) -> ResultsError:
    found = f"{count:,} bytes without a line end, as a crash leaves them"
    return ResultsError(place, file=path, found=found, remedy="pass --skip-torn-line to go on without it")
