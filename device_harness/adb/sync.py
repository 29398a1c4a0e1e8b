"""Transfers files over `sync:` version 1, which every Android has; a refusal has the device's own message."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import BinaryIO

from device_harness.adb.connection import Connection, Stream
from device_harness.adb.faults import ConnectionLost, DeviceRefusal, ProtocolFault
from device_harness.adb.wire import SYNC_DATA_BYTES, SYNC_PATH_BYTES, pack_sync, parse_sync
from toolkit.base.files import Progress

MAX_PULL_BYTES = 64 * 1024 * 1024
"""The largest file that is read into memory: a manifest or one of our programs."""
_HEADER_BYTES = 8


class SyncSession:
    """A `sync:` stream; a context manager."""

    def __init__(self, link: Connection, *, stall_timeout: float) -> None:
        """`stall_timeout`: the maximum number of seconds without progress."""
        self._what = f"{link.name} sync"
        self._timeout = stall_timeout
        self._stream: Stream = link.open("sync:", timeout=stall_timeout)
        self._inbox = bytearray()
        self._message = memoryview(bytearray(self._stream.max_write_bytes))

    def __enter__(self) -> SyncSession:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def send(self, source: BinaryIO, size: int, path: str, mode: int, progress: Progress | None) -> None:
        """Write `size` bytes of `source` to a new file; after a failure, the caller must remove what is left of it.

        The next message is read and checksummed while the device takes the previous one.
        """
        self._what += f" {path}"
        request = f"{path},{mode | 0o100000}".encode()
        _require_short(path)
        self._write(pack_sync("SEND", len(request)) + request)
        done = 0
        while done < size:
            message, count = self._next_message(source, size - done)
            if not count:
                raise ProtocolFault(path, found=f"a source that ends at {done:,}", wanted=f"{size:,} bytes")
            self._write(message)
            done += count
            if progress is not None:
                progress(done, size)
        self._write(pack_sync("DONE", int(time.time()) & 0xFFFFFFFF))
        self._await_okay()

    def receive(self, path: str) -> bytes:
        """Read a whole file of at most MAX_PULL_BYTES from the device."""
        content = bytearray()
        self.receive_into(path, content.extend, most_bytes=MAX_PULL_BYTES)
        return bytes(content)

    def receive_into(self, path: str, write: Callable[[bytes], object], *, most_bytes: int) -> int:
        """Read a file from the device block by block; return its size, at most `most_bytes`."""
        self._what += f" {path}"
        self._request("RECV", path)
        size = 0
        while True:
            id_, value = parse_sync(self._take(_HEADER_BYTES))
            if id_ == "DONE":
                return size
            if id_ == "FAIL":
                raise self._refusal(value)
            if id_ != "DATA" or value > SYNC_DATA_BYTES:
                raise ProtocolFault(self._what, found=f"{id_} {value}", wanted="DATA, DONE or FAIL")
            size += value
            if size > most_bytes:
                raise ProtocolFault(self._what, found=f"over {most_bytes:,} bytes", wanted="a small file")
            write(self._take(value))

    def _next_message(self, source: BinaryIO, left: int) -> tuple[memoryview, int]:
        """Fill the message buffer with DATA blocks; return the message, and how many of the file's bytes are in it."""
        message = self._message
        filled = count = 0
        # The small messages of an old device have room for one small block.
        block_bytes = min(SYNC_DATA_BYTES, len(message) - _HEADER_BYTES)
        while left and filled + _HEADER_BYTES < len(message):
            room = min(block_bytes, left, len(message) - filled - _HEADER_BYTES)
            block = message[filled + _HEADER_BYTES : filled + _HEADER_BYTES + room]
            got = _fill(source, block)
            if not got:
                break
            message[filled : filled + _HEADER_BYTES] = pack_sync("DATA", got)
            filled, count, left = filled + _HEADER_BYTES + got, count + got, left - got
        return message[:filled], count

    def _write(self, message: bytes | memoryview) -> None:
        """Wait for the device to take the message; raise its error if it refuses, whether or not it reads on."""
        if not self._stream.drain(timeout=self._timeout) or self._stream.has_input:
            self._await_okay()
            raise ProtocolFault(self._what, found="OKAY before the end")
        self._stream.write(message, timeout=self._timeout)

    def _request(self, id_: str, path: str) -> None:
        _require_short(path)
        name = path.encode()
        self._write(pack_sync(id_, len(name)) + name)

    def _await_okay(self) -> None:
        id_, value = parse_sync(self._take(_HEADER_BYTES))
        if id_ == "FAIL":
            raise self._refusal(value)
        if id_ != "OKAY":
            raise ProtocolFault(self._what, found=f"{id_} {value}", wanted="OKAY or FAIL")

    def _refusal(self, length: int) -> DeviceRefusal:
        if length > SYNC_DATA_BYTES:
            raise ProtocolFault(self._what, found=f"a reason of {length} bytes", wanted="a short one")
        reason = bytes(self._take(length)).decode("utf-8", "replace")
        return DeviceRefusal(self._what, found=f"the device refuses it: {reason!r}")

    def _take(self, size: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        while len(self._inbox) < size:
            data = self._stream.read(timeout=max(0.0, deadline - time.monotonic()))
            if not data:
                raise ConnectionLost(self._what, found="the stream ended without an answer", remedy="reconnect")
            self._inbox += data
        taken = bytes(self._inbox[:size])
        del self._inbox[:size]
        return taken


def size_of(source: BinaryIO) -> int:
    """The size in bytes of an open regular file."""
    return os.fstat(source.fileno()).st_size


def _fill(source: BinaryIO, block: memoryview) -> int:
    got = 0
    while got < len(block):
        count = source.readinto(block[got:])  # type: ignore[attr-defined]
        if not count:
            break
        got += count
    return got


def _require_short(path: str) -> None:
    if len(path.encode()) > SYNC_PATH_BYTES:
        raise DeviceRefusal(path[:80], found=f"{len(path.encode())} bytes", wanted=f"at most {SYNC_PATH_BYTES}")
