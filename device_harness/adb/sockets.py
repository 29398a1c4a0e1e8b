"""Sends bytes and parts of files over a non-blocking socket."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence

from device_harness.adb.payload import Buffer, FilePayload, Payload, part_of

_MORE = getattr(socket, "MSG_MORE", 0)
"""Tells the kernel that more follows at once. Only Linux has it; elsewhere one more packet is sent."""


def send_some(sock: socket.socket, payloads: Sequence[Payload]) -> list[Payload]:
    """Send a file, or all buffers before the first file; return what is left of all, without empty payloads.

    BlockingIOError if the socket takes nothing now; BundleError if a file has become shorter.
    """
    rest = [payload for payload in payloads if len(payload)]
    if not rest:
        return rest
    count = _send(sock, rest)
    while rest and count >= len(rest[0]):
        count -= len(rest.pop(0))
    if count:
        rest[0] = part_of(rest[0], count, len(rest[0]))
    return rest


def await_events(sock: socket.socket, events: int, timeout: float) -> int:
    """Wait for events of `select.poll`, such as POLLIN; return those that came within `timeout` seconds."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(max(0.0, timeout) * 1000)
    return found[0][1] if found else 0


def _send(sock: socket.socket, payloads: Sequence[Payload]) -> int:
    first = payloads[0]
    if isinstance(first, FilePayload):
        count = os.sendfile(sock.fileno(), first.fd, first.offset, first.size)
        if not count:
            raise first.shrunk(first.offset)
        return count
    buffers: list[Buffer] = []
    for payload in payloads:
        if isinstance(payload, FilePayload):
            break
        buffers.append(payload)
    # Send a header in one packet with the first bytes of its file.
    return sock.sendmsg(buffers, [], _MORE if len(buffers) < len(payloads) else 0)
