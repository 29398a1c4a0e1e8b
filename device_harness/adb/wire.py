"""The bytes of adb: messages, shell v2 packets, sync requests. Pure functions; sockets are elsewhere.

Source: AOSP `packages/modules/adb/protocol.txt`, `SYNC.TXT`, `shell_protocol.h`. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from device_harness.adb.faults import ProtocolFault
from device_harness.adb.payload import Buffer, FilePayload, Payload

HEADER_BYTES = 24
MAX_PAYLOAD_BYTES = 1024 * 1024
"""MAX_PAYLOAD of AOSP's adb.h; older devices announce less."""
LEGACY_PAYLOAD_BYTES = 4096
VERSION = 0x01000000
VERSION_SKIP_CHECKSUM = 0x01000001
"""From this version on (of both sides), checksums are 0 and not verified."""

COMMANDS = ("SYNC", "CNXN", "OPEN", "OKAY", "CLSE", "WRTE", "AUTH", "STLS")
AUTH_TOKEN, AUTH_SIGNATURE, AUTH_PUBLIC_KEY = 1, 2, 3
TOKEN_BYTES = 20
"""TOKEN_SIZE of AOSP's adb.h: what a device asks us to sign."""

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN, WINDOW_SIZE = range(6)
"""Ids of shell v2 packets."""
SHELL_HEADER_BYTES = 5

DELAYED_ACK = "delayed_ack"
"""The feature by which each OKAY tells how many bytes were taken; OPEN and its OKAY tell how many may be in flight."""

SYNC_DATA_BYTES = 64 * 1024
"""SYNC_DATA_MAX: the maximum payload of one DATA."""
SYNC_PATH_BYTES = 1024

_SHORT_BYTES = 4096

_HEADER = struct.Struct("<6I")
_SHELL = struct.Struct("<BI")
_SYNC = struct.Struct("<4sI")
_TAKEN = struct.Struct("<i")
_WORDS = {int.from_bytes(name.encode(), "little"): name for name in COMMANDS}
_NUMBERS = {name: word for word, name in _WORDS.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """The 24 bytes before a message's payload of `length` bytes."""

    command: str
    arg0: int
    arg1: int
    length: int
    checksum: int


def checksum(payload: Buffer) -> int:
    """The sum of all bytes, modulo 2**32.

    >>> checksum(b"\\x01\\x02\\xff")
    258
    """
    if len(payload) <= _SHORT_BYTES:
        return sum(payload)
    # Imported here because devices from Android 9 on need no checksums.
    import numpy as np

    return int(np.frombuffer(payload, np.uint8).sum(dtype=np.uint32))


def pack_header(command: str, arg0: int, arg1: int, payload: Payload = b"", *, summed: bool = True) -> bytes:
    """Pack a message's header; if not `summed`, the checksum is 0, as agreed from VERSION_SKIP_CHECKSUM on."""
    word = _NUMBERS[command]
    total = 0
    if summed:
        total = checksum(payload.read() if isinstance(payload, FilePayload) else payload)
    return _HEADER.pack(word, arg0, arg1, len(payload), total, word ^ 0xFFFFFFFF)


def parse_header(data: Buffer) -> Header:
    """Parse a message's header; ProtocolFault if it is invalid or its payload too large."""
    if len(data) != HEADER_BYTES:
        raise ProtocolFault("adb message", found=f"{len(data)} bytes", wanted=f"a header of {HEADER_BYTES}")
    word, arg0, arg1, length, summed, magic = _HEADER.unpack(data)
    if word not in _WORDS or magic != word ^ 0xFFFFFFFF:
        raise ProtocolFault("adb message", found=f"bytes {bytes(data[:8]).hex()}", wanted="an adb command")
    if length > MAX_PAYLOAD_BYTES:
        wanted = f"at most {MAX_PAYLOAD_BYTES}"
        raise ProtocolFault(f"adb message {_WORDS[word]}", found=f"{length} bytes announced", wanted=wanted)
    return Header(_WORDS[word], arg0, arg1, length, summed)


def require_checksum(header: Header, payload: Buffer) -> None:
    """ProtocolFault if a payload's checksum is wrong; 0 comes from a peer that sends no checksums."""
    if header.checksum and checksum(payload) != header.checksum:
        found, wanted = f"checksum {checksum(payload)}", f"{header.checksum}"
        raise ProtocolFault(f"adb message {header.command}", found=found, wanted=wanted, remedy="try another cable")


def pack_taken(count: int) -> bytes:
    """The payload of an OKAY between peers with `DELAYED_ACK`."""
    return _TAKEN.pack(count)


def parse_taken(payload: Buffer) -> int:
    """The inverse of `pack_taken`; ProtocolFault if the payload is invalid.

    >>> parse_taken(pack_taken(65536))
    65536
    """
    if len(payload) != _TAKEN.size:
        raise ProtocolFault(
            "adb message OKAY", found=f"{len(payload)} bytes", wanted=f"{_TAKEN.size}: how many it took"
        )
    return int(_TAKEN.unpack(payload)[0])


@dataclass(frozen=True, slots=True)
class Banner:
    """What a side announces in CNXN: its state (`device`, `host`, `recovery`, ...), properties and features."""

    state: str
    properties: Mapping[str, str]
    features: frozenset[str]


def parse_banner(data: Buffer) -> Banner:
    """Parse a banner leniently: the oldest devices send only `device::`.

    >>> banner = parse_banner(b"device::ro.product.model=Pixel 9;features=shell_v2,cmd\\0")
    >>> banner.state, banner.properties["ro.product.model"], sorted(banner.features)
    ('device', 'Pixel 9', ['cmd', 'shell_v2'])
    """
    text = bytes(data).split(b"\0")[0].decode("utf-8", "replace")
    state, _, rest = text.partition(":")
    fields = rest.partition(":")[2].split(";")
    pairs = dict(field.split("=", 1) for field in fields if "=" in field)
    features = frozenset(name for name in pairs.pop("features", "").split(",") if name)
    return Banner(state, pairs, features)


def pack_banner(banner: Banner) -> bytes:
    """Format a banner: the inverse of `parse_banner`."""
    fields = [f"{name}={value}" for name, value in banner.properties.items()]
    return f"{banner.state}::{';'.join([*fields, 'features=' + ','.join(sorted(banner.features))])}".encode()


@dataclass(frozen=True, slots=True)
class ShellPacket:
    id: int
    data: bytes


def pack_shell_header(id_: int, length: int) -> bytes:
    """The header of a shell v2 packet; its `length` bytes follow in as many messages as they need."""
    return _SHELL.pack(id_, length)


def parse_shell_header(data: Buffer) -> tuple[int, int]:
    """The inverse of `pack_shell_header`; ProtocolFault for an unknown id."""
    id_, length = _SHELL.unpack(data)
    if id_ > WINDOW_SIZE:
        raise ProtocolFault("shell v2 packet", found=f"id {id_}", wanted="ids 0 to 5")
    return id_, length


def pack_shell(id_: int, data: Buffer = b"") -> bytes:
    """Pack one packet of shell v2.

    >>> pack_shell(STDOUT, b"hi").hex()
    '01020000006869'
    """
    return _SHELL.pack(id_, len(data)) + bytes(data)


class ShellParser:
    """Splits a stream, received in any pieces, into shell v2 packets."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: Buffer) -> list[ShellPacket]:
        """Return the packets that `data` completes; ProtocolFault for an unknown id or a length out of bounds."""
        self._rest += data
        packets = []
        start = 0
        while len(self._rest) - start >= _SHELL.size:
            id_, length = _SHELL.unpack_from(self._rest, start)
            if id_ > WINDOW_SIZE or length > MAX_PAYLOAD_BYTES:
                raise ProtocolFault("shell v2 packet", found=f"id {id_}, {length} bytes", wanted="ids 0 to 5")
            end = start + _SHELL.size + length
            if len(self._rest) < end:
                break
            packets.append(ShellPacket(id_, bytes(self._rest[start + _SHELL.size : end])))
            start = end
        del self._rest[:start]
        return packets


def pack_sync(id_: str, value: int) -> bytes:
    """Pack a sync header: an id of four letters and a number (a length, or a time in DONE).

    >>> pack_sync("DATA", 65536)
    b'DATA\\x00\\x00\\x01\\x00'
    """
    return _SYNC.pack(id_.encode(), value)


def parse_sync(data: Buffer) -> tuple[str, int]:
    """Unpack a sync header; bytes of the id that are not ASCII are escaped."""
    id_, value = _SYNC.unpack(data)
    return id_.decode("ascii", "backslashreplace"), value
