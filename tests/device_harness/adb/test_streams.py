"""A stream that one thread reads while another writes to it."""

from __future__ import annotations

import select
import socket
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_harness.adb.link import Link, Stream
from device_harness.adb.server import ServerLink, ServerStream
from device_harness.adb.sockets import await_events


def test_input_that_a_write_has_taken_reaches_the_thread_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    stream = ServerStream(cast(ServerLink, None), "device shell", here)
    taken = threading.Event()

    def take_first(sock: socket.socket, events: int, timeout: float) -> int:
        if events == select.POLLIN and not taken.is_set():
            taken.set()
            there.sendall(b"answer")
            stream.write(b"stop", timeout=1)
        return await_events(sock, events, timeout)

    monkeypatch.setattr("device_harness.adb.server.await_events", take_first)
    with here, there:
        assert stream.read(timeout=2) == b"answer" and taken.is_set() and there.recv(9) == b"stop"


def test_a_message_is_acknowledged_once_whichever_thread_is_first() -> None:
    sent: list[str] = []
    link: Any = SimpleNamespace(
        name="device", counts_bytes=False, _changed=threading.Condition(), send=lambda command, *_: sent.append(command)
    )
    stream = Stream(cast(Link, link), "shell:x", 1)
    message: Any = SimpleNamespace(command="WRTE", arg0=7)
    stream.take(message, b"answer")
    for _ in range(2):
        stream._acknowledge()
    assert sent == ["OKAY"]
