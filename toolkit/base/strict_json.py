"""JSON from strangers: parsed without Python's leniency, and read key by key with nothing left over."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from toolkit.base.errors import ToolkitError

_MAX_INTEGER_DIGITS = 20
"""2**64 has 20; int() is quadratic in what it is given."""


def parse_json(data: bytes, what: str, fault: type[ToolkitError]) -> object:
    """The value of UTF-8 JSON text.

    Raises `fault` for duplicate keys, NaN, infinities, huge integers, lone surrogates and deep nesting.

    >>> parse_json(b'{"a": [1, 2.5]}', "doctest", ToolkitError)
    {'a': [1, 2.5]}
    """

    def refuse(found: str, wanted: str) -> NoReturn:
        raise fault(what, found=found, wanted=wanted)

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
        value: dict[str, object] = {}
        for key, item in items:
            if key in value:
                refuse(f"the key {shorten(key)} twice", "each key once")
            value[key] = item
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
        refuse(f"bytes that are not UTF-8 ({error.reason if hasattr(error, 'reason') else error})", "UTF-8 text")
    except RecursionError:
        refuse("nesting too deep to parse", "a few levels")
    except ValueError as error:
        refuse(f"text that is not JSON ({shorten(str(error))})", "JSON")
    return value


def read_json_file(path: Path, fault: type[ToolkitError], max_bytes: int = 16_000_000) -> object:
    """`parse_json` of a regular file (or a link to one) of at most `max_bytes`."""
    fd = open_regular(path, fault)
    with open(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise fault(str(path), found=f"over {max_bytes:,} bytes", wanted="at most that")
    return parse_json(data, str(path), fault)


def open_regular(path: Path, fault: type[ToolkitError]) -> int:
    """A read-only descriptor; a directory, a pipe or a device is a `fault`, as is anything the system refuses."""
    try:
        # Without O_NONBLOCK a pipe under that name would wait for a writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise fault(str(path), found=reason, wanted="a readable file") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise fault(str(path), found="something else than a regular file", wanted="a file")
    return fd


def shorten(value: object, limit: int = 80) -> str:
    """`repr` for an error line, cut to `limit` characters."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class JsonObject:
    """An object read key by key, each value checked against its type and bounds.

    `finish` refuses keys that nobody asked for, so that no setting is passed over in silence.
    """

    __slots__ = ("_asked", "_fault", "_values", "what")

    def __init__(self, value: object, what: str, fault: type[ToolkitError]) -> None:
        if not isinstance(value, dict):
            raise fault(what, found=_kind(value), wanted="an object")
        self.what = what
        self._values: dict[str, object] = value
        self._fault = fault
        self._asked: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """The keys that are there, in order."""
        return tuple(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null; it counts as asked for."""
        self._asked.add(key)
        return self._values.get(key) is not None

    def value(self, key: str) -> object:
        """The raw value of a key that must be there."""
        self._asked.add(key)
        if key not in self._values:
            raise self._fault(self.what, found=f"no {key!r}", wanted="that key")
        return self._values[key]

    def refuse(self, key: str, found: object, wanted: str) -> NoReturn:
        """The error for a value that cannot be."""
        raise self._fault(f"{self.what} {key}", found=shorten(found), wanted=wanted)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]; 5.0 and true are not integers."""
        return self._integer(key, self.value(key), low, high)

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._integer(key, item, low, high) for item in self.array(key))

    def number(self, key: str, low: float, high: float) -> float:
        """An integer or a real in [low, high]."""
        return self._number(key, self.value(key), low, high)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self._number(key, item, low, high) for item in self.array(key))

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def string(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            self.refuse(key, value, "a string")
        return value

    def array(self, key: str) -> list[object]:
        value = self.value(key)
        if not isinstance(value, list):
            self.refuse(key, value, "an array")
        return value

    def child(self, key: str) -> JsonObject:
        return JsonObject(self.value(key), f"{self.what} {key}", self._fault)

    def expect(self, key: str, *allowed: object) -> None:
        """A key that may be absent, but else holds one of `allowed`."""
        self._asked.add(key)
        if key in self._values:
            value = self._values[key]
            if not any(value == item and type(value) is type(item) for item in allowed):
                self.refuse(key, value, " or ".join(json.dumps(item) for item in allowed))

    def ignore(self, keys: Iterable[str]) -> None:
        """Keys known to change nothing that is read here."""
        self._asked.update(keys)

    def finish(self) -> None:
        """Refuse keys that were neither read nor ignored."""
        unknown = [key for key in self._values if key not in self._asked]
        if unknown:
            names = ", ".join(shorten(key) for key in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise self._fault(self.what, found=f"unknown keys {names}{more}", wanted="only keys whose meaning is known")

    def _integer(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(key, value, f"an integer from {low} to {high}")
        return value

    def _number(self, key: str, value: object, low: float, high: float) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(key, value, f"a number from {low:g} to {high:g}")
        return float(value)


def _kind(value: object) -> str:
    """What a value is, in JSON's words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
