"""Values from JSON by the types of frozen dataclasses: strict, one error that names the field.

A field's type is str, bool, int, float, a ``Literal`` of strings, ``tuple[T, ...]``, ``dict[str, T]``, ``T | None``, a
dataclass, or one of these ``Annotated`` with a rule.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from toolkit.base.errors import ResultsError
from toolkit.base.strict_json import JsonObject, shorten

MAX_TEXT_CHARACTERS = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``low`` to ``high``."""

    low: float
    high: float

    def admits(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A text that ``pattern`` matches from end to end; ``wanted`` says what that is."""

    pattern: re.Pattern[str]
    wanted: str

    def admits(self, value: object) -> bool:
        return isinstance(value, str) and self.pattern.fullmatch(value) is not None

    def __str__(self) -> str:
        return self.wanted


def read_dataclass(value: object, kind: type[T], what: str) -> T:
    """A dataclass of a JSON object with exactly its fields; ResultsError names the first that is wrong."""
    table = JsonObject(value, what, ResultsError)
    fields = {
        name: _read(table.value(name), hint, f"{what} {name}") for name, hint in _hints(cast(Hashable, kind)).items()
    }
    table.finish()
    return kind(**fields)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _read(value: object, hint: Any, what: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _read(value, arguments[0], what)
        for rule in arguments[1:]:
            if not rule.admits(found):
                _refuse(what, value, str(rule))
        return found
    if origin in (UnionType, Union):
        return None if value is None else _read(value, next(part for part in arguments if part is not NoneType), what)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            _refuse(what, value, " or ".join(map(str, arguments)))
        return value
    if origin is tuple:
        return tuple(_read(item, arguments[0], f"{what} {i}") for i, item in enumerate(_array(value, what)))
    if origin is dict:
        table = JsonObject(value, what, ResultsError)
        return {
            cast(str, _read(key, arguments[0], f"{what} key")): _read(table.value(key), arguments[1], f"{what} {key}")
            for key in table.names()
        }
    if dataclasses.is_dataclass(hint):
        return read_dataclass(value, cast(type[object], hint), what)
    return _read_plain(value, hint, what)


def _read_plain(value: object, kind: type[object], what: str) -> object:
    """JSON has one kind of number, and Python takes true for 1: neither may pass for the other."""
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str) and _is_text(value):
        return value
    names = {bool: "true or false", int: "an integer", float: "a number"}
    _refuse(what, value, names.get(kind, f"a text of at most {MAX_TEXT_CHARACTERS} characters, none of them control"))


def _is_text(value: str) -> bool:
    return len(value) <= MAX_TEXT_CHARACTERS and all(character >= " " or character == "\t" for character in value)


def _array(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        _refuse(what, value, "an array")
    return value


def _refuse(what: str, value: object, wanted: str) -> NoReturn:
    raise ResultsError(what, found=shorten(value), wanted=wanted)
