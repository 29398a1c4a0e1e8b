"""`sync:` of the emulated device: version 1, and version 2 of stat and list.

Source: AOSP `SYNC.TXT` and `file_sync_protocol.h`.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

from device_harness.adb.payload import Buffer
from device_harness.adb.wire import SYNC_DATA_BYTES, SYNC_PATH_BYTES, pack_sync, parse_sync
from device_harness.emulator.channel import Channel
from device_harness.emulator.pipe import Piped, at_hand
from device_harness.emulator.store import Store
from device_harness.emulator.userland import Userland

_STAT_V1 = struct.Struct("<4s3I")
_STAT_V2 = struct.Struct("<4sI2Q4IQ3q")
_WORD = 0xFFFFFFFF
_MESSAGE_BYTES = 15 * SYNC_DATA_BYTES
"""With their headers, these blocks stay within a message of 1 MiB."""


class SyncServer:
    """Serves one `sync:` stream until QUIT or the host's goodbye."""

    def __init__(self, channel: Channel, userland: Userland, store: Store) -> None:
        self._channel = channel
        self._userland = userland
        self._store = store

    async def serve(self) -> None:
        """Requests one after the other; a malformed one ends the stream."""
        while True:
            id_, length = await self._header()
            if id_ == "QUIT":
                return
            if length > SYNC_PATH_BYTES:
                await self._fail(f"path too long: {length}")
                return
            path = (await self._channel.read_exactly(length)).decode("utf-8", "surrogateescape")
            if id_ == "SEND":
                await self._receive_file(path)
            elif id_ == "RECV":
                await self._send_file(path)
            elif id_ == "STAT":
                await self._channel.write(_packed_v1(self._status(path, follow=False)[1]))
            elif id_ in ("STA2", "LST2"):
                await self._channel.write(_packed_v2(id_, *self._status(path, follow=id_ == "STA2")))
            elif id_ in ("LIST", "LIS2"):
                await self._list(path, is_v2=id_ == "LIS2")
            else:
                await self._fail(f"unknown command {id_}")
                return

    async def _header(self) -> tuple[str, int]:
        return parse_sync(await self._channel.read_exactly(8))

    async def _receive_file(self, request: str) -> None:
        """SEND: what was written before a failure stays, as on a real device."""
        path, _, mode = request.rpartition(",")
        try:
            target = self._open_for_write(path, int(mode) if mode.isdigit() else 0)
        except OSError as error:
            await self._refuse(f"couldn't create file: {error.strerror}")
            return
        room, written = self._store.room(), 0
        with os.fdopen(target, "wb", buffering=0) as file:
            while True:
                id_, value = await self._header()
                if id_ == "DONE":
                    os.utime(file.fileno(), (value, value))
                    await self._channel.write(pack_sync("OKAY", 0))
                    return
                if id_ != "DATA" or value > SYNC_DATA_BYTES:
                    await self._fail(f"invalid data message: {id_} {value}")
                    return
                left = value
                while left:
                    block = await self._channel.read_some(left)
                    left -= len(block)
                    try:
                        stored = self._store.admit(block, room, written)
                        written += len(stored)
                        _write_all(file.fileno(), stored)
                    except OSError as error:
                        at_hand(block)
                        await self._channel_skip(left)
                        await self._refuse(f"couldn't write file: {error.strerror}")
                        return

    def _open_for_write(self, path: str, mode: int) -> int:
        target = self._userland.local(path)
        if not self._userland.is_writable(target):
            raise PermissionError(13, "Permission denied")
        if mode and not stat.S_ISREG(mode):
            raise PermissionError(95, "Operation not supported")
        if path.endswith("/") or target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._make_folders(target.parent)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # As adbd does, which shares what the owner may do with everybody.
        owner = (mode & 0o700 or 0o600) >> 6
        os.fchmod(fd, owner * 0o111)
        return fd

    def _make_folders(self, folder: Path) -> None:
        """Those that are missing, with the mode that adbd gives them."""
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            made.chmod(0o775)

    async def _refuse(self, reason: str) -> None:
        """FAIL, then take the rest of the file off the wire: old hosts listen only at its end."""
        await self._fail(reason)
        while True:
            id_, value = await self._header()
            if id_ != "DATA" or value > SYNC_DATA_BYTES:
                return
            await self._channel_skip(value)

    async def _channel_skip(self, count: int) -> None:
        while count:
            count -= len(await self._channel.read_some(count))

    async def _send_file(self, path: str) -> None:
        """RECV: a small file goes in one message with its end, else its host would wait for a delayed OKAY."""
        done = pack_sync("DONE", 0)
        try:
            with open(self._userland.local(path), "rb", buffering=0) as file:
                data = file.read(_MESSAGE_BYTES)
                while data:
                    more = file.read(_MESSAGE_BYTES)
                    blocks = [data[at : at + SYNC_DATA_BYTES] for at in range(0, len(data), SYNC_DATA_BYTES)]
                    message = b"".join(pack_sync("DATA", len(block)) + block for block in blocks)
                    await self._channel.write(message if more else message + done)
                    if not more:
                        return
                    data = more
        except OSError as error:
            await self._fail(f"open failed: {error.strerror}")
            return
        await self._channel.write(done)

    async def _list(self, path: str, *, is_v2: bool) -> None:
        message = bytearray()
        try:
            names = sorted(os.listdir(self._userland.local(path)))
        except OSError:
            names = []
        for name in [".", "..", *names] if names else []:
            error, status = self._status(path if name in (".", "..") else f"{path}/{name}", follow=False)
            raw = os.fsencode(name)
            if is_v2:
                message += b"DNT2" + _packed_v2("DNT2", error, status)[4:] + struct.pack("<I", len(raw)) + raw
            elif status is not None:
                message += b"DENT" + _packed_v1(status)[4:] + struct.pack("<I", len(raw)) + raw
        await self._channel.write(message + b"DONE" + bytes(72 if is_v2 else 16))

    def _status(self, path: str, *, follow: bool) -> tuple[int, os.stat_result | None]:
        """errno and status of a path; a link itself unless `follow`."""
        try:
            return 0, os.lstat(self._userland.local(path, follow=follow or path.endswith("/")))
        except OSError as error:
            return error.errno or 5, None

    async def _fail(self, reason: str) -> None:
        text = reason.encode()
        await self._channel.write(pack_sync("FAIL", len(text)) + text)


def _packed_v1(status: os.stat_result | None) -> bytes:
    if status is None:
        return _STAT_V1.pack(b"STAT", 0, 0, 0)
    return _STAT_V1.pack(b"STAT", status.st_mode, status.st_size & _WORD, int(status.st_mtime) & _WORD)


def _packed_v2(id_: str, error: int, status: os.stat_result | None) -> bytes:
    if status is None:
        return _STAT_V2.pack(id_.encode(), error, *[0] * 10)
    times = (int(status.st_atime), int(status.st_mtime), int(status.st_ctime))
    who = (status.st_mode, status.st_nlink & _WORD, status.st_uid, status.st_gid)
    return _STAT_V2.pack(id_.encode(), 0, status.st_dev, status.st_ino, *who, status.st_size, *times)


def _write_all(fd: int, data: Buffer | Piped) -> None:
    if isinstance(data, Piped):
        data.write(fd)
        return
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
