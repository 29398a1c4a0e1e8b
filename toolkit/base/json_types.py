"""Readers that check JSON values against Python types; `read_record` and `JsonObject` are built on them.

A type is `str`, `bool`, `int`, `float`, `None`, a `Literal` of strings, `tuple[T, ...]`, `dict[str, T]` or
`Mapping[str, T]`, `T | None`, a frozen dataclass (an object with exactly its fields), several dataclasses that a field
`kind: Literal["..."]` tells apart, or one of these `Annotated` with rules. A field `Annotated` with `TypeBy` has the
type that another field of its dataclass chooses.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

MAX_TEXT_CHARACTERS = 4096
MAX_MISFITS = 1000
"""After this many misfits in one array or object, the rest is not read: an untrusted file may hold millions of them."""

MISSING = "missing"
"""The `found` text for an absent key."""

_TAG = "kind"
_TOO_MANY = f"over {MAX_MISFITS:,} faults; the others are not listed"
_MAX_KEY_CHARACTERS = 80
_MAX_CHOICES = 20
"""An error lists the allowed names only if there are at most this many."""
_PLAIN_TEXT = f"a text of at most {MAX_TEXT_CHARACTERS} characters, none of them control characters"


@dataclass(slots=True)
class Misfit:
    """A value that its type does not allow. `path`: the keys and indexes that lead to it, innermost first."""

    path: list[str | int]
    found: object
    wanted: str | None


Reader = Callable[[object, list[Misfit]], object]
"""Turns a JSON value into a typed one. For a value that does not fit, it appends a misfit and returns None."""


class Rule(Protocol):
    """A further condition on a value of the right type; `str(rule)` describes it, for use after "wanted"."""

    def admits(self, value: Any) -> bool: ...


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`."""

    low: float
    high: float

    def admits(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{_digits(self.low)} to {_digits(self.high)}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A text that `pattern` matches completely; `wanted` describes it."""

    pattern: re.Pattern[str]
    wanted: str

    def admits(self, value: str) -> bool:
        return self.pattern.fullmatch(value) is not None

    def __str__(self) -> str:
        return self.wanted


@dataclass(frozen=True, slots=True)
class Fits:
    """A value for which `test` is true; `wanted` describes it."""

    test: Callable[[Any], bool]
    wanted: str

    def admits(self, value: object) -> bool:
        return self.test(value)

    def __str__(self) -> str:
        return self.wanted


@dataclass(frozen=True, slots=True)
class AnyText:
    """A text of any length and with any characters, such as a message of a conversation."""

    def admits(self, value: str) -> bool:
        return True

    def __str__(self) -> str:
        return "a text"


@dataclass(frozen=True, slots=True)
class Ascending:
    """Numbers, each greater than the one before; at least one unless `empty`."""

    empty: bool = False

    def admits(self, values: Sequence[float]) -> bool:
        return bool(values or self.empty) and all(a < b for a, b in itertools.pairwise(values))

    def __str__(self) -> str:
        return "ascending numbers" + ("" if self.empty else ", at least one")


@dataclass(frozen=True, slots=True)
class TypeBy:
    """The type of a field: the one that `types` pairs with the value of the field named `field`."""

    field: str
    types: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class MayBeAbsent:
    """A field whose key may be missing, in which case it has its default value."""


@cache
def reader_of(hint: Any) -> Reader:
    """The reader for a type; TypeError if no JSON value has that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin in (UnionType, Union):
        return _union([part for part in arguments if part is not NoneType], nullable=NoneType in arguments)
    if origin is Literal:
        return _scalar((str,), _choices(arguments), (Fits(frozenset(arguments).__contains__, ""),))
    if origin is tuple and arguments[1:] == (...,):
        return array_reader(reader_of(arguments[0]))
    if origin in (dict, Mapping):
        return _mapping(reader_of(arguments[0]), reader_of(arguments[1]))
    if dataclasses.is_dataclass(hint):
        return _record(hint)
    return _annotated(hint, ())


def number_reader(kind: type[float], low: float, high: float) -> Reader:
    """A reader for an int, or for a float (which may be written as an integer), in [low, high]."""
    return _annotated(kind, (Range(low, high),))


def unknown_keys(names: Sequence[str]) -> str:
    """The `found` text for unknown keys; it names the first five."""
    listed = ", ".join(name if name.isprintable() and len(name) <= _MAX_KEY_CHARACTERS else "..." for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"unknown key{'s' if len(names) > 1 else ''} {listed}{more}"


def kind_of(value: object) -> str:
    """The kind of a value, in JSON's terms."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _annotated(kind: Any, rules: tuple[Any, ...]) -> Reader:
    """The reader for a scalar type and its rules. True is never accepted as 1, nor a float as an int."""
    texts = " and ".join(map(str, rules))
    if kind is bool:
        return _scalar((bool,), texts or "true or false", rules)
    if kind in (None, NoneType):
        return _scalar((NoneType,), "null", rules)
    if kind is int:
        return _scalar((int,), _number_words("an integer", rules, texts), rules)
    if kind is float:
        return _scalar((int, float), _number_words("a number", rules, texts), rules)
    if kind is str:
        free = any(isinstance(rule, AnyText) for rule in rules)
        return _scalar((str,), texts or _PLAIN_TEXT, rules if free else (Fits(_is_text, ""), *rules))
    if not rules:
        raise TypeError(f"no JSON value has the type {kind!r}")
    return _ruled(reader_of(kind), rules, texts)


def _choices(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) <= _MAX_CHOICES else f"one of the {len(names)} known names"


def _number_words(name: str, rules: Sequence[Rule], texts: str) -> str:
    return f"{name} from {texts}" if rules and isinstance(rules[0], Range) else texts or name


def _digits(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _is_text(value: str) -> bool:
    return len(value) <= MAX_TEXT_CHARACTERS and (value.isprintable() or all(c >= " " or c == "\t" for c in value))


def _scalar(kinds: tuple[type, ...], wanted: str, rules: Sequence[Rule]) -> Reader:
    tests = tuple(rule.admits for rule in rules)

    def read(value: object, misfits: list[Misfit]) -> object:
        if type(value) not in kinds:
            return _refuse(misfits, value, wanted)
        # A loop instead of `all`, whose generator would double the time.
        for test in tests:
            if not test(value):
                return _refuse(misfits, value, wanted)
        return value

    return read


def _ruled(read_value: Reader, rules: Sequence[Rule], wanted: str) -> Reader:
    def read(value: object, misfits: list[Misfit]) -> object:
        before = len(misfits)
        found = read_value(value, misfits)
        if len(misfits) == before and not all(rule.admits(found) for rule in rules):
            return _refuse(misfits, value, wanted)
        return found

    return read


def _union(kinds: Sequence[Any], *, nullable: bool) -> Reader:
    read_value = reader_of(kinds[0]) if len(kinds) == 1 else _tagged(kinds)

    def read(value: object, misfits: list[Misfit]) -> object:
        return None if value is None else read_value(value, misfits)

    return read if nullable else read_value


def _tagged(kinds: Sequence[Any]) -> Reader:
    readers = {get_args(get_type_hints(kind)[_TAG])[0]: reader_of(kind) for kind in kinds}
    read_tag = _scalar((str,), " or ".join(readers), (Fits(readers.__contains__, ""),))

    def read(value: object, misfits: list[Misfit]) -> object:
        if not isinstance(value, dict):
            return _refuse(misfits, kind_of(value), "an object")
        if _TAG not in value:
            return _refuse(misfits, MISSING, None, _TAG)
        before = len(misfits)
        tag = read_tag(value[_TAG], misfits)
        if len(misfits) > before:
            _lead(misfits, before, _TAG)
            return None
        return readers[tag](value, misfits)

    return read


def array_reader(read_item: Reader) -> Reader:
    """A reader for an array, which it returns as a tuple."""

    def read(value: object, misfits: list[Misfit]) -> object:
        if not isinstance(value, list):
            return _refuse(misfits, kind_of(value), "an array")
        items = []
        first = before = len(misfits)
        for i, item in enumerate(value):
            items.append(read_item(item, misfits))
            if len(misfits) > before:
                _lead(misfits, before, i)
                before = len(misfits)
                if before >= first + MAX_MISFITS:
                    return _refuse(misfits, _TOO_MANY, None)
        return tuple(items)

    return read


def _mapping(read_key: Reader, read_item: Reader) -> Reader:
    def read(value: object, misfits: list[Misfit]) -> object:
        if not isinstance(value, dict):
            return _refuse(misfits, kind_of(value), "an object")
        items = {}
        first = len(misfits)
        for key, item in value.items():
            before = len(misfits)
            if read_key(key, misfits) is None:
                _lead(misfits, before, "key")
            else:
                items[key] = read_item(item, misfits)
                _lead(misfits, before, key)
            if len(misfits) >= first + MAX_MISFITS:
                return _refuse(misfits, _TOO_MANY, None)
        return items

    return read


def _record(kind: Any) -> Reader:
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    choosers = {name: _chooser(rule) for name in names if (rule := _type_by(hints[name])) is not None}
    optional = {name for name in names if MayBeAbsent() in getattr(hints[name], "__metadata__", ())}
    hints |= {name: get_args(hints[name])[0] for name in optional}
    fixed = {name: reader_of(hints[name]) for name in names if name not in choosers}

    def read(value: object, misfits: list[Misfit]) -> object:
        if not isinstance(value, dict):
            return _refuse(misfits, kind_of(value), "an object")
        first = len(misfits)
        readers = fixed | {name: choose(value) for name, choose in choosers.items()} if choosers else fixed
        fields = {}
        for name, read_field in readers.items():
            before = len(misfits)
            if name not in value:
                if name not in optional:
                    _refuse(misfits, MISSING, None, name)
                continue
            fields[name] = read_field(value[name], misfits)
            if len(misfits) > before:
                _lead(misfits, before, name)
        if len(value) > len(fields) and (unknown := [name for name in value if name not in readers]):
            _refuse(misfits, unknown_keys(unknown), None)
        return kind(**fields) if len(misfits) == first else None

    return read


def _type_by(hint: Any) -> TypeBy | None:
    return next((rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, TypeBy)), None)


def _chooser(rule: TypeBy) -> Callable[[dict[str, object]], Reader]:
    """Chooses the reader of a field. If the choosing value is wrong (a misfit of its own), anything is accepted."""
    readers = {tag: reader_of(kind) for tag, kind in rule.types}

    def choose(value: dict[str, object]) -> Reader:
        tag = value.get(rule.field)
        return readers.get(tag, _ignore) if isinstance(tag, str) else _ignore

    return choose


def _ignore(value: object, misfits: list[Misfit]) -> object:
    return None


def _refuse(misfits: list[Misfit], found: object, wanted: str | None, *path: str) -> object:
    misfits.append(Misfit([*path], found, wanted))
    return None


def _lead(misfits: list[Misfit], first: int, step: str | int) -> None:
    """Append `step` to the path of each misfit from index `first` on."""
    for item in itertools.islice(misfits, first, None):
        item.path.append(step)
