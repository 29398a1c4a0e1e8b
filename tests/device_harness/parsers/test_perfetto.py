"""Power rails in Perfetto traces, written here field by field, whole, cut and mangled."""

from __future__ import annotations

import random

import pytest

from device_harness.parsers.perfetto import RailsReading, parse_power_rails
from toolkit.base.errors import EnvironmentFault

TPU = b"\x0a\x11\x08\x01\x12\x0dS10M_VDD_TPU\x00"  # index 1 and a name that ends in a byte 0
CPU = b"\x0a\x10\x12\x0eS2M_VDD_CPUCL2"  # index 0 is left out, as proto2 may
OTHERS = b"\x0a\x07\x40\x80\x80\x80\x80\x80\x20" + b"\x0a\x0a\x6a\x08linux ft"  # a timestamp; another source's data


def packet(rails: bytes) -> bytes:
    """TracePacket { timestamp, power_rails }, with lengths of at most 127 bytes."""
    data = b"\x41" + bytes(8) + b"\xc2\x02" + bytes([len(rails)]) + rails
    return b"\x0a" + bytes([len(data)]) + data


def energy(index: bytes, milliseconds: bytes, microwatt_seconds: bytes) -> bytes:
    data = index + b"\x10" + milliseconds + b"\x18" + microwatt_seconds
    return b"\x12" + bytes([len(data)]) + data


FIRST = packet(CPU + TPU)
SECOND = packet(energy(b"", b"\xe8\x07", b"\x80\x89\x7a") + energy(b"\x08\x01", b"\xe9\x07", b"\x64"))
THIRD = packet(energy(b"\x08\x00", b"\xd0\x0f", b"\x80\x92\xf4\x01") + energy(b"\x08\x07", b"\xd0\x0f", b"\x01"))
TRACE = OTHERS + FIRST + OTHERS + SECOND + THIRD
READINGS = (
    RailsReading(1.001, {"S2M_VDD_CPUCL2": 2.0, "S10M_VDD_TPU\0": 1e-4}),
    RailsReading(2.0, {"S2M_VDD_CPUCL2": 4.0}),
)


def test_readings_are_joules_by_the_names_of_rails_and_seconds_since_the_start() -> None:
    assert parse_power_rails(TRACE) == READINGS


def test_a_trace_without_rails_has_no_readings() -> None:
    assert parse_power_rails(b"") == parse_power_rails(OTHERS) == parse_power_rails(SECOND) == ()


def test_a_trace_that_was_cut_has_what_was_whole() -> None:
    for end in range(len(TRACE)):
        found = parse_power_rails(TRACE[:end])
        assert found == READINGS[: len(found)]
    assert len(parse_power_rails(TRACE[:-1])) == 1


@pytest.mark.parametrize(
    ("trace", "says"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 10, "over 64 bits"),
        (b"\x0a\x02\xc2\x02", "the end within a field"),
        (b"\x0a\x04\xc2\x02\x7f\x0a", "the end within a field"),
    ],
)
def test_what_is_no_trace_is_one_error(trace: bytes, says: str) -> None:
    with pytest.raises(EnvironmentFault, match=says):
        parse_power_rails(trace)


def test_a_mangled_trace_is_readings_or_one_error() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        data = bytearray(TRACE)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            found = parse_power_rails(bytes(data))
        except EnvironmentFault:
            continue
        assert all(reading.uptime_s >= 0 and min(reading.joules.values()) >= 0 for reading in found)
