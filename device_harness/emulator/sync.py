"""`sync:` of the emulated device: version 1, and version 2 of stat, list, send and receive.

Source: AOSP `SYNC.TXT` and `file_sync_protocol.h`.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from device_harness.adb.payload import Buffer
from device_harness.adb.wire import SYNC_DATA_BYTES, SYNC_PATH_BYTES, pack_sync, parse_sync
from device_harness.emulator.channel import Channel
from device_harness.emulator.compression import (
    DRY_RUN,
    FLAGS,
    CompressedDataError,
    Decompressor,
    Method,
    available,
    compressor,
)
from device_harness.emulator.pipe import Piped, at_hand
from device_harness.emulator.store import Store
from device_harness.emulator.userland import Userland

_STAT_V1 = struct.Struct("<4s3I")
_STAT_V2 = struct.Struct("<4sI2Q4IQ3q")
_SEND_V2 = struct.Struct("<4s2I")
_RECEIVE_V2 = struct.Struct("<4sI")
_WORD = 0xFFFFFFFF
_MESSAGE_BYTES = 15 * SYNC_DATA_BYTES
"""With their headers, these blocks stay within a message of 1 MiB."""


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A file that is sent or received; `mode` is 0 where the host gives none."""

    path: str
    mode: int = 0
    method: Method | None = None
    is_dry: bool = False


class SyncServer:
    """Serves one `sync:` stream until QUIT, or until the host closes it."""

    def __init__(self, channel: Channel, userland: Userland, store: Store) -> None:
        self._channel = channel
        self._userland = userland
        self._store = store

    async def serve(self) -> None:
        """Serve requests one after the other; a malformed one ends the stream."""
        while True:
            id_, length = await self._header()
            if id_ == "QUIT":
                return
            if length > SYNC_PATH_BYTES:
                await self._fail(f"path too long: {length}")
                return
            path = (await self._channel.read_exactly(length)).decode("utf-8", "surrogateescape")
            if id_ == "SEND":
                name, _, mode = path.rpartition(",")
                await self._receive(_Transfer(name, int(mode) if mode.isdigit() else 0))
            elif id_ == "RECV":
                await self._send_file(_Transfer(path))
            elif id_ in ("SND2", "RCV2"):
                if not await self._transfer_v2(id_, path):
                    return
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

    async def _transfer_v2(self, id_: str, path: str) -> bool:
        """SND2 or RCV2, whose settings follow the path; False after a mistake in them, which ends the stream."""
        if id_ == "SND2":
            again, mode, flags = _SEND_V2.unpack(await self._channel.read_exactly(_SEND_V2.size))
        else:
            again, flags = _RECEIVE_V2.unpack(await self._channel.read_exactly(_RECEIVE_V2.size))
            mode = 0
        methods = [method for flag, method in FLAGS.items() if flags & flag]
        is_dry = id_ == "SND2" and bool(flags & DRY_RUN)
        unknown = flags & ~sum(FLAGS) & ~(DRY_RUN if is_dry else 0)
        if again != id_.encode() or unknown or len(methods) > 1 or not set(methods) <= set(available()):
            await self._fail(f"{id_} with unknown settings: {again!r}, flags {flags:#x}")
            return False
        transfer = _Transfer(path, mode, methods[0] if methods else None, is_dry)
        await (self._receive(transfer) if id_ == "SND2" else self._send_file(transfer))
        return True

    async def _receive(self, transfer: _Transfer) -> None:
        """Take a file or a link; what was written before a failure stays, as on a real device."""
        try:
            target = self._open_target(transfer)
        except OSError as error:
            await self._refuse(f"couldn't create file: {error.strerror}")
            return
        try:
            await self._receive_data(transfer, target)
        finally:
            if target is not None:
                os.close(target)

    def _open_target(self, transfer: _Transfer) -> int | None:
        """The new file; None for a link, which is made at its end, and for a dry run."""
        if not transfer.is_dry and not stat.S_ISLNK(transfer.mode):
            return self._open_for_write(transfer.path, transfer.mode)
        if not transfer.is_dry:
            self._require_place(transfer.path, self._userland.local(transfer.path, follow=False))
        return None

    async def _receive_data(self, transfer: _Transfer, target: int | None) -> None:
        decompressor = Decompressor(transfer.method) if transfer.method else None
        room, written, link = self._store.room(), 0, bytearray()
        while True:
            id_, value = await self._header()
            if id_ == "DONE":
                await self._finish(transfer, target, decompressor, bytes(link), value)
                return
            if id_ != "DATA" or value > SYNC_DATA_BYTES:
                await self._fail(f"invalid data message: {id_} {value}")
                return
            left = value
            while left:
                block = await self._channel.read_some(left)
                left -= len(block)
                try:
                    for piece in _pieces(block, decompressor):
                        if target is None:
                            data = at_hand(piece)
                            if not transfer.is_dry:
                                link += data
                                _require_short_link(link)
                            continue
                        stored = self._store.admit(piece, room, written)
                        written += len(stored)
                        _write_all(target, stored)
                except (OSError, CompressedDataError) as error:
                    if isinstance(block, Piped):
                        at_hand(block)
                    await self._channel_skip(left)
                    reason = error.strerror if isinstance(error, OSError) else error
                    await self._refuse(f"couldn't write file: {reason}")
                    return

    async def _finish(
        self, transfer: _Transfer, target: int | None, decompressor: Decompressor | None, link: bytes, seconds: int
    ) -> None:
        try:
            if decompressor is not None:
                decompressor.require_end()
            if target is not None:
                os.utime(target, (seconds, seconds))
            elif not transfer.is_dry:
                self._make_link(transfer.path, os.fsdecode(link.rstrip(b"\0")))
        except (OSError, CompressedDataError) as error:
            await self._fail(f"couldn't write file: {error.strerror if isinstance(error, OSError) else error}")
            return
        await self._channel.write(pack_sync("OKAY", 0))

    def _make_link(self, path: str, target: str) -> None:
        place = self._userland.local(path, follow=False)
        self._make_folders(place.parent)
        with suppress(FileNotFoundError):
            place.unlink()
        place.symlink_to(target)

    def _require_place(self, path: str, target: Path) -> None:
        if not self._userland.is_writable(target):
            raise PermissionError(errno.EACCES, "Permission denied")
        if path.endswith("/") or (target.is_dir() and not target.is_symlink()):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _open_for_write(self, path: str, mode: int) -> int:
        target = self._userland.local(path)
        self._require_place(path, target)
        if mode and not stat.S_ISREG(mode):
            raise PermissionError(errno.EOPNOTSUPP, "Operation not supported")
        self._make_folders(target.parent)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # As adbd does, which gives everybody the owner's permissions.
        owner = (mode & 0o700 or 0o600) >> 6
        os.fchmod(fd, owner * 0o111)
        return fd

    def _make_folders(self, folder: Path) -> None:
        """Make the folders that are missing, with the mode that adbd gives them."""
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            made.chmod(0o775)

    async def _refuse(self, reason: str) -> None:
        """Send FAIL, then read the rest of the file: old hosts listen only at its end."""
        await self._fail(reason)
        while True:
            id_, value = await self._header()
            if id_ != "DATA" or value > SYNC_DATA_BYTES:
                return
            await self._channel_skip(value)

    async def _channel_skip(self, count: int) -> None:
        while count:
            count -= len(await self._channel.read_some(count))

    async def _send_file(self, transfer: _Transfer) -> None:
        """Answer RECV. A small file and its end go in one message, or else the host would wait for a delayed OKAY."""
        done = pack_sync("DONE", 0)
        try:
            with open(self._userland.local(transfer.path), "rb", buffering=0) as file:
                if not os.fstat(file.fileno()).st_mode & stat.S_IRUSR:  # as root we could read it
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                parts = _parts(file.read, transfer.method)
                part = next(parts, b"")
                while part:
                    following = next(parts, b"")
                    blocks = [part[at : at + SYNC_DATA_BYTES] for at in range(0, len(part), SYNC_DATA_BYTES)]
                    message = b"".join(pack_sync("DATA", len(block)) + block for block in blocks)
                    await self._channel.write(message if following else message + done)
                    if not following:
                        return
                    part = following
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


def _pieces(block: memoryview | Piped, decompressor: Decompressor | None) -> Iterable[Buffer | Piped]:
    """The bytes of the file in a block that was received."""
    return (block,) if decompressor is None else decompressor.pieces(bytes(at_hand(block)))


def _parts(read: Callable[[int], bytes | None], method: Method | None) -> Iterator[bytes]:
    """The file as it is sent, compressed if `method` says so, in parts that fit a message."""
    packer = compressor(method) if method is not None else None
    while data := read(_MESSAGE_BYTES):
        if packed := packer.compress(data) if packer is not None else data:
            yield from (packed[at : at + _MESSAGE_BYTES] for at in range(0, len(packed), _MESSAGE_BYTES))
    if packer is not None and (rest := packer.finish()):
        yield rest


def _require_short_link(link: bytearray) -> None:
    if len(link) > SYNC_DATA_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _write_all(fd: int, data: Buffer | Piped) -> None:
    if isinstance(data, Piped):
        data.write(fd)
        return
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
