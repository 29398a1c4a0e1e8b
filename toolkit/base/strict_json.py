"""Reads untrusted JSON strictly, as records or key by key, with an error for any unknown key.

Errors name the given `file`; their place is the given `place` followed by the keys that lead to the value.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from toolkit.base.errors import ToolkitError, system_reason
from toolkit.base.json_types import (
    MISSING,
    Misfit,
    Reader,
    array_reader,
    kind_of,
    number_reader,
    reader_of,
    unknown_keys,
)

_MAX_INTEGER_DIGITS = 20
"""2**64 has 20 digits; the time of int() grows with the square of the number of digits."""

T = TypeVar("T")


def parse_json(data: bytes, file: str | None, fault: type[ToolkitError], place: str | None = None) -> object:
    """Parse JSON in UTF-8.

    Raises `fault` for duplicate keys, NaN, infinities, huge integers, lone surrogates and deep nesting.

    >>> parse_json(b'{"a": [1, 2.5]}', "doctest", ToolkitError)
    {'a': [1, 2.5]}
    """

    def refuse(found: str, wanted: str | None = None) -> NoReturn:
        raise fault(place, file=file, found=found, wanted=wanted)

    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > _MAX_INTEGER_DIGITS:
            refuse(f"an integer of {len(digits)} digits", f"at most {_MAX_INTEGER_DIGITS}")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            refuse(shorten(digits), "a finite number")
        return value

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(items)
        if len(value) < len(items):
            name = Counter(name for name, _ in items).most_common(1)[0][0]
            refuse(f"the key {shorten(name)} appears twice")
        return value

    def constant(name: str) -> NoReturn:
        refuse(name, "a finite number")

    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text, parse_int=integer, parse_float=real, parse_constant=constant, object_pairs_hook=pairs
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        refuse(f"not UTF-8 text ({error.reason if hasattr(error, 'reason') else error})")
    except RecursionError:
        refuse("nesting too deep to parse")
    except ValueError as error:
        refuse(f"not JSON ({shorten(str(error))})")
    return value


def read_json_file(path: Path, fault: type[ToolkitError], max_bytes: int = 16_000_000) -> object:
    """`parse_json` of a regular file (or a link to one) of at most `max_bytes`."""
    fd = open_regular(path, fault)
    with open(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise fault(file=path, found=f"over {max_bytes:,} bytes", remedy="give a smaller file")
    return parse_json(data, str(path), fault)


def read_record(
    value: object, kind: type[T], file: str | None, fault: type[ToolkitError], place: str | None = None
) -> T:
    """Read a JSON object with exactly the fields of the dataclass `kind` (see json_types.py).

    Raises `fault` for the first misfit.
    """
    faults: list[ToolkitError] = []
    record = collect_record(value, kind, file, fault, faults, place)
    if record is None:
        raise faults[0]
    return record


def collect_record(
    value: object,
    kind: type[T],
    file: str | None,
    fault: type[ToolkitError],
    faults: list[ToolkitError],
    place: str | None = None,
) -> T | None:
    """Like `read_record`, but append an error for each misfit to `faults`, and return None if there are any."""
    misfits: list[Misfit] = []
    record = reader_of(cast(Any, kind))(value, misfits)
    faults += (_error(item, file, fault, place) for item in misfits)
    return None if misfits else cast(T, record)


def without_format(
    value: object, name: str, file: str | None, fault: type[ToolkitError], place: str | None = None
) -> dict[str, object]:
    """The keys of a JSON object without `format`, which must have the value `name`; raises `fault` otherwise."""
    fields = JsonObject(value, file, fault, place)
    found = fields.value("format")
    if found != name:
        fields.refuse("format", found, name)
    return {key: fields.value(key) for key in fields.names() if key != "format"}


def open_regular(path: Path, fault: type[ToolkitError]) -> int:
    """Open a file and return a read-only descriptor; raise `fault` unless it is a regular file that can be read."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer, perhaps forever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise fault(file=path, found=system_reason(error)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise fault(file=path, found="not a regular file")
    return fd


def read_bounded(path: Path, fault: type[ToolkitError], limit: int) -> bytes:
    """The content of a file; raise `fault` unless it is a regular file of at most `limit` bytes that can be read."""
    with open(open_regular(path, fault), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise fault(file=path, found=f"over {limit:,} bytes", wanted="a file of normal size")
    return data


def shorten(value: object, limit: int = 80) -> str:
    """The `repr` of a value for an error's line, cut to `limit` characters."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class JsonObject:
    """A JSON object that is read key by key; each value is checked against its type and bounds.

    `finish` raises for keys that were never read, so that no setting is ignored silently.
    """

    __slots__ = ("_asked", "_fault", "_values", "file", "place")

    def __init__(self, value: object, file: str | None, fault: type[ToolkitError], place: str | None = None) -> None:
        if not isinstance(value, dict):
            raise fault(place, file=file, found=kind_of(value), wanted="an object")
        self.file = file
        self.place = place
        self._values: dict[str, object] = value
        self._fault = fault
        self._asked: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """The keys that are present, in order."""
        return tuple(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is present with a value other than null; it then counts as read."""
        self._asked.add(key)
        return self._values.get(key) is not None

    def value(self, key: str) -> object:
        """The raw value of a key; raises if the key is absent."""
        self._asked.add(key)
        if key not in self._values:
            self.refuse(key, MISSING)
        return self._values[key]

    def refuse(self, key: str, found: object, wanted: str | None = None) -> NoReturn:
        """Raise the error for a wrong value."""
        raise _error(Misfit([key], found, wanted), self.file, self._fault, self.place)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]; 5.0 and true are not integers."""
        return cast(int, self._read(key, number_reader(int, low, high)))

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self._read(key, array_reader(number_reader(int, low, high))))

    def number(self, key: str, low: float, high: float) -> float:
        """An integer or a real number in [low, high], as a float."""
        return float(cast(float, self._read(key, number_reader(float, low, high))))

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        found = self._read(key, array_reader(number_reader(float, low, high)))
        return tuple(map(float, cast("tuple[float, ...]", found)))

    def flag(self, key: str) -> bool:
        return cast(bool, self._read(key, reader_of(bool)))

    def string(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            self.refuse(key, value, "a string")
        return value

    def array(self, key: str) -> list[object]:
        value = self.value(key)
        if not isinstance(value, list):
            self.refuse(key, kind_of(value), "an array")
        return value

    def child(self, key: str) -> JsonObject:
        return JsonObject(self.value(key), self.file, self._fault, _join(self.place, key))

    def expect(self, key: str, *allowed: object) -> None:
        """Check that a key is absent or has one of the `allowed` values."""
        self._asked.add(key)
        if key in self._values:
            value = self._values[key]
            if not any(value == item and type(value) is type(item) for item in allowed):
                self.refuse(key, value, " or ".join(json.dumps(item) for item in allowed))

    def ignore(self, keys: Iterable[str]) -> None:
        """Accept keys that are known to have no effect here."""
        self._asked.update(keys)

    def finish(self) -> None:
        """Refuse keys that were neither read nor ignored."""
        unknown = [key for key in self._values if key not in self._asked]
        if unknown:
            raise self._fault(self.place, file=self.file, found=unknown_keys(unknown))

    def _read(self, key: str, read: Reader) -> object:
        misfits: list[Misfit] = []
        value = read(self.value(key), misfits)
        if misfits:
            misfits[0].path.append(key)
            raise _error(misfits[0], self.file, self._fault, self.place)
        return value


def _error(item: Misfit, file: str | None, fault: type[ToolkitError], place: str | None) -> ToolkitError:
    steps = (f"[{step}]" if isinstance(step, int) else f" {shorten(step)}" for step in reversed(item.path))
    path = "".join(steps).lstrip()
    where = _join(place, path) if path else place
    found = json.dumps(item.found) if item.found is None or isinstance(item.found, bool) else shorten(item.found)
    return fault(where, file=file, found=found, wanted=item.wanted)


def _join(place: str | None, key: str) -> str:
    return f"{place} {key}" if place else key
