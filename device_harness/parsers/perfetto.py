"""Reads power rails from a Perfetto trace, by the part of protobuf's wire format that this needs.

Numbers of fields: google/perfetto, protos/perfetto/trace/trace_packet.proto and power/power_rails.proto. Encoding:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.base.errors import EnvironmentFault

_PACKET = 1
_POWER_RAILS = 40
_DESCRIPTOR, _ENERGY = 1, 2
_INDEX, _NAME = 1, 2
_TIMESTAMP_MS, _MICROWATT_SECONDS = 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_NAME = 80


@dataclass(frozen=True, slots=True)
class RailsReading:
    """The joules that each power rail has used since the device started, at `uptime_s` since then."""

    uptime_s: float
    joules: dict[str, float]


def parse_power_rails(trace: bytes) -> tuple[RailsReading, ...]:
    """The readings of all rails in a trace, in its order; empty if it has none. EnvironmentFault for a broken trace.

    Of a trace that was cut off, as when its file reached its limit, the complete packets are read.
    """
    names: dict[int, str] = {}
    found: list[RailsReading] = []
    for field, packet in _fields(trace, may_end_early=True):
        if field != _PACKET or isinstance(packet, int):
            continue
        for part, rails in _fields(packet):
            if part == _POWER_RAILS and not isinstance(rails, int):
                found += _readings(rails, names)
    return tuple(found)


def _readings(rails: memoryview, names: dict[int, str]) -> Iterator[RailsReading]:
    """At most one reading of a message; `names` gets those of rails that it describes."""
    milliseconds, joules = 0, dict[str, float]()
    for field, value in _fields(rails):
        if isinstance(value, int):
            continue
        inner = dict(_fields(value))
        index = inner.get(_INDEX, 0)
        if not isinstance(index, int):
            continue
        name, energy, time = inner.get(_NAME), inner.get(_MICROWATT_SECONDS), inner.get(_TIMESTAMP_MS)
        if field == _DESCRIPTOR and isinstance(name, memoryview):
            names[index] = bytes(name[:_MAX_NAME]).decode("utf-8", "replace")
        elif field == _ENERGY and isinstance(energy, int) and isinstance(time, int) and index in names:
            joules[names[index]] = energy / 1e6
            milliseconds = max(milliseconds, time)
    if joules:
        yield RailsReading(milliseconds / 1e3, joules)


def _fields(data: bytes | memoryview, *, may_end_early: bool = False) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: numbers as they are, messages and texts as their bytes."""
    view, place = memoryview(data), 0
    while place < len(view):
        try:
            key, place = _varint(view, place)
            kind, size = key & 7, 0
            if kind == _VARINT:
                value, place = _varint(view, place)
                yield key >> 3, value
                continue
            if kind == _BYTES:
                size, place = _varint(view, place)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise EnvironmentFault("trace", found=f"a field of wire type {kind}", wanted="Perfetto's format")
            if place + size > len(view):
                raise _EndError
        except _EndError as error:
            if may_end_early:
                return
            raise EnvironmentFault("trace", found="the end within a field", wanted="Perfetto's format") from error
        part = view[place : place + size]
        place += size
        yield key >> 3, part if kind == _BYTES else int.from_bytes(part, "little")


class _EndError(Exception):
    pass


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """A number of at most 64 bits, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(view):
            raise _EndError
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise EnvironmentFault("trace", found="a number of over 64 bits", wanted="Perfetto's format")
