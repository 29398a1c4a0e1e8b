"""Reads and appends results files (docs/formats/results.md): strict, one error that names line and field."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import ResultsError, UsageError
from toolkit.base.strict_json import open_regular, parse_json, shorten
from toolkit.results.record import FORMAT, BenchRecord, Delegation
from toolkit.results.rules import read_dataclass

MAX_LINE_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The records of a file, and the bytes of a torn last line that were passed over on request."""

    records: tuple[BenchRecord, ...]
    torn_bytes: int = 0


def read_results(path: Path | str, *, skip_torn_line: bool = False) -> ResultsFile:
    """All records; ResultsError names the line and the field of the first fault.

    A last line without its end is what a crash leaves: an error too, or with ``skip_torn_line`` counted and left out.
    """
    found: list[BenchRecord] = []
    with open(open_regular(Path(path), ResultsError), "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            what = f"{path} line {number}"
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE_BYTES:
                    raise ResultsError(what, found=f"over {MAX_LINE_BYTES:,} bytes", wanted="at most that")
                if skip_torn_line:
                    return ResultsFile(tuple(found), len(line))
                raise _torn(what, len(line))
            found.append(parse_record(line, what))
    return ResultsFile(tuple(found))


def parse_record(line: bytes, what: str) -> BenchRecord:
    """One line, with or without its end."""
    value = parse_json(line, what, ResultsError)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise ResultsError(f"{what} format", found=shorten(found), wanted=FORMAT)
    record = read_dataclass({key: item for key, item in value.items() if key != "format"}, BenchRecord, what)
    _require_sense(record, what)
    return record


def dump_record(record: BenchRecord) -> bytes:
    """A record's line. One that could not be read back is an error."""
    value = {"format": FORMAT, **dataclasses.asdict(record)}
    line = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ResultsError("record", found=f"{len(line):,} bytes", wanted=f"at most {MAX_LINE_BYTES:,}")
    parse_record(line, "record")
    return line


class ResultsWriter:
    """Appends records to a file, each whole and on the disk before ``append`` returns."""

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
    """A file to append to, made if it is not there; ResultsError now, before anything is measured, if it cannot be.

    ``drop_torn_line`` removes what a crash left of the last line.
    """
    place = Path(path)
    try:
        fd = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UsageError(str(path), found=error.strerror, wanted="a file that can be written") from error
    try:
        size = os.fstat(fd).st_size
        torn = size - _end_of_lines(fd, size)
        if torn and not drop_torn_line:
            raise _torn(f"{path}, last line", torn)
        os.ftruncate(fd, size - torn)
        yield ResultsWriter(place, fd)
    finally:
        os.close(fd)


def _require_sense(record: BenchRecord, what: str) -> None:
    """What no field shows alone."""
    if not record.tests:
        raise ResultsError(f"{what} tests", found="none", wanted="at least one")
    if len(set(record.flags)) < len(record.flags):
        raise ResultsError(f"{what} flags", found=", ".join(record.flags), wanted="each once")
    strangers = sorted(set(record.drift) - set(record.tests))
    if strangers:
        raise ResultsError(f"{what} drift", found=strangers[0], wanted=" or ".join(record.tests))
    if record.delegation is not None:
        _require_part(record.delegation, f"{what} delegation")
    for i, iteration in enumerate(record.iterations):
        if iteration.end_s < iteration.begin_s:
            raise ResultsError(f"{what} iterations {i} end_s", found=iteration.end_s, wanted="begin_s or later")
    _require_columns(record.samples.columns, f"{what} samples columns")


def _require_part(delegation: Delegation, what: str) -> None:
    part, nodes = delegation.delegated_nodes, delegation.nodes
    if (part is None) != (nodes is None):
        raise ResultsError(what, found=f"{part} of {nodes}", wanted="two numbers, or null twice")
    if part is not None and nodes is not None and part > nodes:
        raise ResultsError(what, found=f"{part} of {nodes}", wanted="no more than there are")


def _require_columns(columns: Mapping[str, Sequence[float | None]], what: str) -> None:
    times = [time for time in columns.get("t_s", ()) if time is not None]
    if "t_s" not in columns or len(times) < len(columns["t_s"]) or times != sorted(times):
        raise ResultsError(f"{what} t_s", found="none, or a gap or a step back", wanted="ascending times")
    for name, column in columns.items():
        if len(column) != len(times):
            raise ResultsError(f"{what} {name}", found=len(column), wanted=f"{len(times)}, as many as t_s")


def _end_of_lines(fd: int, size: int) -> int:
    """Where the last whole line ends."""
    while size > 0:
        start = max(0, size - _BLOCK_BYTES)
        end = os.pread(fd, size - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        size = start
    return 0


def _torn(what: str, count: int) -> ResultsError:
    found = f"{count:,} bytes without a line end, as a crash leaves them"
    return ResultsError(what, found=found, wanted="whole lines", remedy="pass --skip-torn-line to go on without it")
