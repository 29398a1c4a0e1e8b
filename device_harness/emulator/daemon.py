"""The device's side of adb in asyncio: connections, authentication, services."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from device_harness.adb.faults import ProtocolFault
from device_harness.adb.payload import Buffer
from device_harness.adb.wire import (
    AUTH_PUBLIC_KEY,
    AUTH_SIGNATURE,
    AUTH_TOKEN,
    DELAYED_ACK,
    HEADER_BYTES,
    LEGACY_PAYLOAD_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION_SKIP_CHECKSUM,
    Banner,
    Header,
    pack_banner,
    pack_header,
    parse_banner,
    parse_header,
    require_checksum,
)
from device_harness.emulator.auth import TOKEN_BYTES, PublicKey, is_signed, parse_public_key
from device_harness.emulator.channel import WINDOW_BYTES, Channel, ChannelClosed
from device_harness.emulator.compression import available
from device_harness.emulator.forward import Forwards, parse_port, relay
from device_harness.emulator.pipe import Piped
from device_harness.emulator.shell import parse_shell_service, serve_shell
from device_harness.emulator.store import Store
from device_harness.emulator.sync import SyncServer
from device_harness.emulator.userland import Userland

_FEATURES = ("cmd", DELAYED_ACK, "fixed_push_mkdir", "ls_v2", "sendrecv_v2", "shell_v2", "stat_v2")
_SERVICES = ("reboot:", "reverse:", "tcp:")
_TICKS_PER_S = 20
_LEAST_PIPED_BYTES = 64 * 1024
"""For smaller messages, copying is as fast as a pipe."""


def features() -> frozenset[str]:
    """All features that the device offers; compressions of `sync:` only if their library is installed."""
    return frozenset((*_FEATURES, "sendrecv_v2_dry_run_send", *(f"sendrecv_v2_{name}" for name in available())))


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: everybody if `keys` is empty, else their owners, and with new keys only if `allows_new`."""

    keys: tuple[PublicKey, ...] | None = None
    allows_new: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What the device announces about itself; one without `shell_v2` behaves like Android 6."""

    banner: Banner
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    version: int = VERSION_SKIP_CHECKSUM


class _Cut(Exception):
    """Ends the connection because of a configured fault."""


class Connection:
    """The connection of one host. As in adbd, a malformed message ends it."""

    def __init__(
        self, sock: socket.socket, identity: Identity, access: Access, userland: Userland, store: Store
    ) -> None:
        self._socket = sock
        self._identity = identity
        self._access = access
        self._userland = userland
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._token = b""
        self._is_online = False
        self._counts_bytes = False
        self._sums = True
        self._max_payload = LEGACY_PAYLOAD_BYTES
        self._channels: dict[int, Channel] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._opening: dict[int, asyncio.Future[None]] = {}
        self._forwards = Forwards(self._open_to_host)
        self._last_id = 0
        self.wants_reboot = False

    async def run(self) -> None:
        """Serve the host until it disconnects, breaks the protocol, or a fault cuts the connection."""
        try:
            while True:
                header = parse_header(await self._receive(HEADER_BYTES))
                piped = await self._receive_piped(header)
                payload = await self._receive(header.length - piped)
                if self._sums:
                    require_checksum(header, payload)
                if len(payload) or not piped:
                    await self._handle(header, payload)
        except (OSError, ProtocolFault, _Cut):
            return
        finally:
            self._forwards.close()
            for channel in self._channels.values():
                channel.take_close()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._socket.close()

    async def _handle(self, header: Header, payload: Buffer) -> None:
        if self._store.faults.is_silent:
            return
        if header.command == "CNXN":
            await self._greet(header, payload)
        elif header.command == "AUTH":
            await self._authenticate(header, bytes(payload))
        elif not self._is_online:
            raise ProtocolFault("adb", found=header.command, wanted="CNXN first")
        elif header.command == "OPEN":
            await self._open(header, bytes(payload))
        elif header.command in ("WRTE", "OKAY", "CLSE"):
            self._route(header, payload)

    async def _greet(self, header: Header, payload: Buffer) -> None:
        self._counts_bytes = DELAYED_ACK in self._identity.banner.features & parse_banner(payload).features
        self._sums = min(header.arg0, self._identity.version) < VERSION_SKIP_CHECKSUM
        self._max_payload = max(1, min(header.arg1, self._identity.max_payload_bytes))
        if self._access.keys is None:
            await self._welcome()
        else:
            await self._challenge()

    async def _challenge(self) -> None:
        self._token = os.urandom(TOKEN_BYTES)
        await self._send("AUTH", AUTH_TOKEN, 0, self._token)

    async def _authenticate(self, header: Header, payload: bytes) -> None:
        keys = self._access.keys or ()
        if header.arg0 == AUTH_SIGNATURE and self._token:
            if any(is_signed(self._token, payload, key) for key in keys):
                await self._welcome()
            else:
                await self._challenge()
        elif header.arg0 == AUTH_PUBLIC_KEY and self._access.allows_new and parse_public_key(payload) is not None:
            await self._welcome()
        # Other keys would need a tap on the device's screen, which does not exist.

    async def _welcome(self) -> None:
        self._is_online = True
        banner = pack_banner(self._identity.banner)
        await self._send("CNXN", self._identity.version, self._identity.max_payload_bytes, banner)

    async def _open(self, header: Header, payload: bytes) -> None:
        service = payload.split(b"\0")[0].decode("utf-8", "surrogateescape")
        refused = (
            service.startswith(self._store.faults.refused_services) if self._store.faults.refused_services else False
        )
        request = parse_shell_service(service)
        if request is not None and request.is_v2 and "shell_v2" not in self._identity.banner.features:
            refused = True
        if refused or not (request or service == "sync:" or service.startswith(_SERVICES)):
            await self._send("CLSE", 0, header.arg0)
            return
        channel = self._new_channel(header.arg0, header.arg1)
        self._tasks[channel.local_id] = asyncio.ensure_future(self._serve(channel, service))

    def _new_channel(self, remote_id: int, window: int) -> Channel:
        self._last_id += 1
        counted = window if self._counts_bytes else None
        channel = Channel(self._send, self._last_id, remote_id, self._max_payload, window_bytes=counted)
        self._channels[channel.local_id] = channel
        return channel

    async def _open_to_host(self, service: str) -> Channel:
        """A stream to a service of the host, such as `tcp:6655`; ChannelClosed if it has none."""
        channel = self._new_channel(0, 0)
        opening = self._opening[channel.local_id] = self._loop.create_future()
        try:
            window = WINDOW_BYTES if self._counts_bytes else 0
            await self._send("OPEN", channel.local_id, window, service.encode() + b"\0")
            await opening
        except BaseException:
            self._channels.pop(channel.local_id, None)
            raise
        finally:
            self._opening.pop(channel.local_id, None)
        return channel

    async def _serve(self, channel: Channel, service: str) -> None:
        request = parse_shell_service(service)
        sock: socket.socket | None = None
        try:
            if service.startswith("tcp:"):
                sock = await self._forwards.connect(parse_port(service) or 0)
            await channel.accept()
            if request is not None:
                await serve_shell(channel, request, self._userland, self._store)
            elif service == "sync:":
                await SyncServer(channel, self._userland, self._store).serve()
            elif service.startswith("reverse:"):
                await self._forwards.serve(channel, service.removeprefix("reverse:"))
            elif sock is not None:
                await relay(channel, sock)
            else:
                self.wants_reboot = True
                self._socket.shutdown(socket.SHUT_RDWR)
            await channel.close()
        except (ChannelClosed, ProtocolFault):
            with suppress(OSError):
                await channel.close()
        except OSError:
            if sock is None and service.startswith("tcp:"):
                await self._send("CLSE", 0, channel.remote_id)
        finally:
            if sock is not None:
                sock.close()
            channel.end()
            self._channels.pop(channel.local_id, None)
            self._tasks.pop(channel.local_id, None)

    def _find(self, header: Header) -> Channel | None:
        """The channel of a message, in which the host names our id second; None for one that has just ended."""
        channel = self._channels.get(header.arg1)
        return channel if channel is not None and channel.remote_id == header.arg0 else None

    def _route(self, header: Header, payload: Buffer) -> None:
        opening = self._opening.get(header.arg1)
        if opening is not None and not opening.done():
            if header.command != "OKAY":
                opening.set_exception(ChannelClosed())
                return
            self._channels[header.arg1].remote_id = header.arg0
            opening.set_result(None)
        channel = self._find(header)
        if channel is None:
            return
        if header.command == "WRTE":
            channel.take(payload)
        elif header.command == "OKAY":
            channel.take_okay(payload)
        else:
            channel.take_close()
            if channel.local_id not in self._tasks:  # one that the device opened
                self._channels.pop(channel.local_id)

    async def _send(self, command: str, arg0: int, arg1: int, payload: Buffer = b"") -> None:
        header = pack_header(command, arg0, arg1, payload, summed=self._sums)
        async with self._writing:
            await self._send_all(header)
            if len(payload):
                await self._send_all(payload)

    async def _send_all(self, data: Buffer) -> None:
        rate = self._store.faults.bytes_per_s
        view = memoryview(data)
        step = max(1, rate // _TICKS_PER_S) if rate else len(view)
        for start in range(0, len(view), step):
            part = view[start : start + step]
            await self._loop.sock_sendall(self._socket, part)
            if rate:
                await asyncio.sleep(len(part) / rate)

    async def _receive(self, count: int) -> Buffer:
        """Read exactly `count` bytes."""
        data = bytearray(count)
        rest = memoryview(data)
        await self._take_in(count, lambda done, most: self._loop.sock_recv_into(self._socket, rest[done : done + most]))
        return data

    async def _receive_piped(self, header: Header) -> int:
        """Return how many bytes went into a pipe: as many as fit, of a large message without a checksum."""
        channel = self._find(header) if header.command == "WRTE" else None
        is_small = header.length < _LEAST_PIPED_BYTES
        if channel is None or is_small or self._sums or self._store.faults.is_silent:
            return 0
        pipe = channel.open_pipe()
        count = await self._take_in(header.length, lambda _, most: pipe.fill(self._socket, most))
        if count:
            channel.take(Piped(pipe, count))
        return count

    async def _take_in(self, count: int, take: Callable[[int, int], Awaitable[int | None]]) -> int:
        """Let `take(done, most)` take up to `count` bytes; return how many it took before it returned None.

        _Cut if the host has gone, and at the byte of a fault.
        """
        done = 0
        while done < count:
            rate = self._store.faults.bytes_per_s
            left = count - done
            most = self._store.receivable(min(left, max(1, rate // _TICKS_PER_S)) if rate else left)
            got = await take(done, most) if most else 0
            if got is None:
                break
            self._store.receive(got)
            done += got
            due = self._store.due_cut()
            self.wants_reboot |= due == "reboot"
            if due is not None or (most and not got):
                raise _Cut
            if rate:
                await asyncio.sleep(got / rate)
        return done


class Daemon:
    """Accepts connections of hosts, and ends them all in a reboot."""

    def __init__(self, identity: Identity, access: Access, userland: Userland, store: Store) -> None:
        self.store = store
        self.reboots = 0
        self.down_s = 0.5
        """The duration of a reboot, in seconds."""
        self._make: Callable[[socket.socket], Connection] = lambda sock: Connection(
            sock, identity, access, userland, store
        )
        self._userland = userland
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    async def serve(self, listeners: Callable[[], socket.socket]) -> None:
        """Accept connections until it is stopped; `listeners` creates a new listening socket after each reboot."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                reboot = asyncio.Event()
                with listeners() as listener:
                    accepting = loop.create_task(self._accept(listener, reboot))
                    try:
                        await reboot.wait()
                    finally:
                        accepting.cancel()
                await self._end_all()
                await asyncio.sleep(self.down_s)
                self.reboots += 1
        finally:
            await self._end_all()

    async def _accept(self, listener: socket.socket, reboot: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._make(sock)
            self._connections[connection] = loop.create_task(self._run(connection, reboot))

    async def _run(self, connection: Connection, reboot: asyncio.Event) -> None:
        try:
            await connection.run()
        finally:
            self._connections.pop(connection, None)
            if connection.wants_reboot:
                reboot.set()

    async def _end_all(self) -> None:
        tasks: Sequence[asyncio.Task[None]] = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._userland.end_programs()
