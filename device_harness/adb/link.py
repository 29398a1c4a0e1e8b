"""One adb connection, shared by any number of streams and threads.

The first thread that waits reads for all of them: it hands each message to the stream that it belongs to and wakes the
others, so that a sampler that runs during a push waits for one message, and not for the push's next pause.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from device_harness.adb.connection import STALL_S, service_name
from device_harness.adb.faults import ConnectionLost, DeviceFault, DeviceTimeout, ProtocolFault, ServiceRefused
from device_harness.adb.payload import Buffer, FilePayload, Payload
from device_harness.adb.port import Handshake, Port, Signer, read_rest
from device_harness.adb.wire import (
    MAX_PAYLOAD_BYTES,
    Banner,
    Header,
    pack_header,
    pack_taken,
    parse_taken,
)

MAX_INBOX_BYTES = 64 * MAX_PAYLOAD_BYTES
"""The maximum number of unread bytes from the device while we write to it."""


_MESSAGE_COST_BYTES = 64
"""The memory that a message takes in addition to its payload, which may be empty."""
WINDOW_BYTES = 16 * MAX_PAYLOAD_BYTES
"""How many bytes a device that counts them may have in flight to us."""


class Link:
    """A connection to a device: opens streams, and knows whether it is still alive.

    After any exception (or interrupt) that leaves a message half read or half written, the link is lost.
    """

    def __init__(self, name: str, port: Port) -> None:
        self.name = name
        self.banner = Banner("", {}, frozenset())
        self.max_payload_bytes = 0
        self.counts_bytes = False
        """Whether each OKAY tells how many bytes it acknowledges; otherwise it acknowledges one message."""
        self._port = port
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._reading = False
        self._sums = True
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._lost: str | None = "no connection yet"

    def connect(self, signers: Sequence[Signer], *, timeout: float, auth_timeout: float) -> None:
        """Connect; `auth_timeout`: seconds to wait for someone to allow the key on the device's screen."""
        shake = Handshake(self._port)
        self.banner, self.max_payload_bytes = shake.run(self.name, signers, timeout=timeout, auth_timeout=auth_timeout)
        self._sums = shake.sums
        self.counts_bytes = shake.counts_bytes
        self._lost = None

    def close(self) -> None:
        """End the connection, and every stream with it."""
        self._lose("the connection is closed")
        self._port.close()

    @property
    def available(self) -> bool:
        """Whether the connection is alive, as far as can be known without sending a message."""
        if self._lost is None and not self._reading and not self._port.is_alive():
            self._lose("the device has ended the connection")
        return self._lost is None

    def open(self, service: str, *, timeout: float) -> Stream:
        """Open a stream to a service such as `shell:ls`; ServiceRefused at once if the device has no such service."""
        with self._changed:
            self._last_id += 1
            stream = self._streams[self._last_id] = Stream(self, service, self._last_id)
        try:
            self.send("OPEN", stream.local_id, WINDOW_BYTES if self.counts_bytes else 0, service.encode() + b"\0")
            if not self.wait(lambda: stream.is_open or stream.is_closed, timeout):
                wanted = f"an answer within {timeout:g} s"
                raise DeviceTimeout(f"{self.name} {service_name(service)}", found="none", wanted=wanted)
        except BaseException:
            self.forget(stream)
            raise
        if not stream.is_open:
            what = f"{self.name} {service_name(service)}"
            raise ServiceRefused(what, found="the device refuses this service")
        return stream

    def send(self, command: str, arg0: int, arg1: int, payload: Payload = b"") -> None:
        """Send one complete message; other threads wait."""
        if self._sums and isinstance(payload, FilePayload):
            payload = payload.read()
        header = pack_header(command, arg0, arg1, payload, summed=self._sums)
        with self._writing:
            self._require()
            try:
                self._port.write([header, payload], STALL_S)
            except BaseException as error:
                self._lose(_reason(error))
                raise

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Read and distribute messages until `ready`; return False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not ready():
                self._require()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._reading:
                    self._changed.wait(left)
                else:
                    self._read_one(left)
        return True

    def forget(self, stream: Stream) -> None:
        """Discard all further messages for a stream."""
        with self._changed:
            self._streams.pop(stream.local_id, None)

    def _read_one(self, timeout: float) -> None:
        """Read one message for all threads; called with the condition held, which is released meanwhile."""
        self._reading = True
        self._changed.release()
        start = b""
        message: tuple[Header, Buffer] | None = None
        try:
            start = self._port.wait(timeout)
            message = read_rest(self._port, start, STALL_S) if start else None
        except BaseException as error:
            # After an interrupt between two messages the link can still be used.
            if start or isinstance(error, DeviceFault):
                self._lose(_reason(error))
            raise
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()
        if message is not None:
            self._hand_out(*message)

    def _hand_out(self, header: Header, payload: Buffer) -> None:
        stream = self._streams.get(header.arg1)
        if stream is None:
            # A stream that was closed here while the device was still opening it.
            if header.command == "OKAY":
                self.send("CLSE", header.arg1, header.arg0)
            return
        stream.take(header, payload)

    def _require(self) -> None:
        if self._lost is not None:
            raise ConnectionLost(self.name, found=self._lost, remedy="reconnect")

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = why


class Stream:
    """A stream to a service of the device; for one thread that reads and one that writes at a time."""

    def __init__(self, link: Link, service: str, local_id: int) -> None:
        self.local_id = local_id
        self.is_open = False
        self.is_closed = False
        """Whether the device has closed the stream; input that came before can still be read."""
        self._what = f"{link.name} {service_name(service)}"
        self._link = link
        self._remote_id = 0
        self._inbox: deque[Buffer] = deque()
        self._inbox_bytes = 0
        self._room = 0
        """How much may be sent now: in bytes, or in messages if the device does not count bytes."""
        self._owes_okay = False
        self._taken_bytes = 0
        """Bytes that were read here and are not acknowledged yet."""
        self._said_goodbye = False

    @property
    def has_input(self) -> bool:
        """Whether `read` would return at once."""
        return bool(self._inbox) or self.is_closed

    @property
    def max_write_bytes(self) -> int:
        """The maximum size of one `write`."""
        return self._link.max_payload_bytes

    def write(self, payload: Payload, *, timeout: float) -> None:
        """Send the payload once the device has room for it. A refusal shows only when its answer is read."""
        if not self.drain(timeout=timeout):
            raise ConnectionLost(self._what, found="the stream ended before the device had read all")
        with self._link._changed:
            self._room -= len(payload) if self._link.counts_bytes else 1
        self._link.send("WRTE", self.local_id, self._remote_id, payload)

    def drain(self, *, timeout: float) -> bool:
        """Wait until the device has room for more; return False if it has closed the stream instead."""
        while True:
            ready = self._link.wait(lambda: self._room > 0 or self.is_closed or self._owes_okay, timeout)
            if not ready:
                raise DeviceTimeout(self._what, found=f"the device has read nothing for {timeout:g} s")
            if self._owes_okay:
                # Otherwise a device that echoes its input would wait for us while we wait for it.
                self._acknowledge()
                continue
            return not self.is_closed

    def read(self, *, timeout: float) -> Buffer:
        """The bytes of one message; empty at the end of the stream."""
        if not self._link.wait(lambda: self.has_input, timeout):
            raise DeviceTimeout(self._what, found=f"no output for {timeout:g} s")
        if not self._inbox:
            return b""
        with self._link._changed:
            data = self._inbox.popleft()
            self._inbox_bytes -= len(data) + _MESSAGE_COST_BYTES
        if self._owes_okay:
            self._acknowledge()
        return data

    def close(self) -> None:
        """Close the stream; its command may continue on the device."""
        self._link.forget(self)
        if self.is_open and not self._said_goodbye and self._link.available:
            self._said_goodbye = True
            self._link.send("CLSE", self.local_id, self._remote_id)

    def take(self, header: Header, payload: Buffer) -> None:
        """Take a message from the device; called with the link's condition held."""
        if header.command == "OKAY":
            # Without counts, AOSP's adbd sends an OKAY after each part of a message that it could pass on.
            self._room = self._room + parse_taken(payload) if self._link.counts_bytes else 1
            self.is_open = True
            self._remote_id = header.arg0
        elif header.command == "CLSE":
            self.is_closed = True
        elif header.command == "WRTE":
            self._inbox.append(payload)
            self._inbox_bytes += len(payload) + _MESSAGE_COST_BYTES
            self._taken_bytes += len(payload)
            self._owes_okay = True
            if self._inbox_bytes > MAX_INBOX_BYTES:
                raise ProtocolFault(self._what, found=f"{self._inbox_bytes:,} unexpected bytes")

    def _acknowledge(self) -> None:
        with self._link._changed:
            if not self._owes_okay:
                return  # another thread has sent it
            self._owes_okay = False
            taken, self._taken_bytes = self._taken_bytes, 0
        if not self.is_closed:
            payload = pack_taken(taken) if self._link.counts_bytes else b""
            self._link.send("OKAY", self.local_id, self._remote_id, payload)


def _reason(error: BaseException) -> str:
    return error.found if isinstance(error, DeviceFault) else f"{type(error).__name__} in the middle of a message"
