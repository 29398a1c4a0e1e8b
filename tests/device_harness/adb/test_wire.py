"""Bytes to messages and back: what is well formed survives, what is not is one fault."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_harness.adb.faults import ProtocolFault
from device_harness.adb.wire import (
    COMMANDS,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Banner,
    Header,
    ShellPacket,
    ShellParser,
    checksum,
    pack_banner,
    pack_header,
    pack_shell,
    pack_sync,
    parse_banner,
    parse_header,
    parse_sync,
    require_checksum,
)

WORDS = st.integers(0, 2**32 - 1)


@given(st.sampled_from(COMMANDS), WORDS, WORDS, st.binary(max_size=600))
def test_a_header_reads_back_as_it_was_packed(command: str, arg0: int, arg1: int, payload: bytes) -> None:
    header = parse_header(pack_header(command, arg0, arg1, payload))
    assert header == Header(command, arg0, arg1, len(payload), sum(payload))
    require_checksum(header, payload)


def test_a_header_has_the_bytes_of_the_protocol_text() -> None:
    assert pack_header("OKAY", 1, 2, b"ab").hex() == "4f4b4159010000000200000002000000c3000000b0b4bea6"


@given(st.binary(max_size=64))
def test_any_bytes_are_a_header_or_a_protocol_fault(data: bytes) -> None:
    with contextlib.suppress(ProtocolFault):
        assert parse_header(data).command in COMMANDS


@pytest.mark.parametrize("length", [MAX_PAYLOAD_BYTES + 1, 2**32 - 1])
def test_a_message_longer_than_adb_allows_is_a_fault_before_anything_is_allocated(length: int) -> None:
    packed = bytearray(pack_header("WRTE", 1, 1))
    struct.pack_into("<I", packed, 12, length)
    with pytest.raises(ProtocolFault, match="announced"):
        parse_header(packed)


def test_a_wrong_magic_is_a_fault() -> None:
    packed = bytearray(pack_header("WRTE", 1, 1))
    packed[-1] ^= 1
    with pytest.raises(ProtocolFault, match="adb command"):
        parse_header(packed)


def test_a_changed_byte_breaks_the_checksum_and_zero_means_none() -> None:
    header = parse_header(pack_header("WRTE", 1, 1, b"abc"))
    with pytest.raises(ProtocolFault, match="checksum"):
        require_checksum(header, b"abd")
    require_checksum(parse_header(pack_header("WRTE", 1, 1, b"abc", summed=False)), b"abd")


def test_the_checksum_wraps_at_32_bits_and_takes_every_buffer() -> None:
    data = bytes(range(256)) * 16
    assert checksum(data) == checksum(bytearray(data)) == checksum(memoryview(data)) == sum(data)
    assert checksum(b"") == 0


NAMES = st.text("abcdefghijklmnopqrstuvwxyz._", min_size=1, max_size=12)


@given(st.dictionaries(NAMES.filter(lambda name: name != "features"), NAMES, max_size=4), st.frozensets(NAMES))
def test_a_banner_reads_back(properties: dict[str, str], features: frozenset[str]) -> None:
    banner = Banner("device", properties, features)
    assert parse_banner(pack_banner(banner)) == banner


@given(st.binary(max_size=200))
def test_any_bytes_are_a_banner(data: bytes) -> None:
    parse_banner(data)


def test_the_banner_of_an_old_device_has_no_features() -> None:
    assert parse_banner(b"device::\0") == Banner("device", {}, frozenset())


@given(
    st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 17), min_size=1, max_size=20),
)
def test_shell_packets_survive_any_cut(packets: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(pack_shell(id_, data) for id_, data in packets)
    parser = ShellParser()
    found: list[ShellPacket] = []
    while stream:
        cut = cuts[len(found) % len(cuts)]
        found += parser.feed(stream[:cut])
        stream = stream[cut:]
    assert [(packet.id, packet.data) for packet in found] == packets
    assert parser.feed(pack_shell(1, b"more")) == [ShellPacket(1, b"more")]


@given(st.binary(max_size=100))
def test_any_bytes_are_shell_packets_or_a_protocol_fault(data: bytes) -> None:
    parser = ShellParser()
    with contextlib.suppress(ProtocolFault):
        parser.feed(data)


def test_a_shell_packet_of_a_gigabyte_is_a_fault() -> None:
    with pytest.raises(ProtocolFault, match="shell v2"):
        ShellParser().feed(struct.pack("<BI", 1, 2**30))


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_a_sync_header(data: bytes) -> None:
    parse_sync(data)


def test_a_sync_header_reads_back() -> None:
    assert parse_sync(pack_sync("DATA", 65536)) == ("DATA", 65536)
    assert len(pack_header("CNXN", 0, 0)) == HEADER_BYTES
