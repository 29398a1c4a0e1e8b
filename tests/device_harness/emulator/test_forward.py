"""Streams from the emulated device's ports to its host."""

from __future__ import annotations

import asyncio
import gc

import pytest

from device_harness.emulator.channel import Channel, ChannelClosed
from device_harness.emulator.forward import Forwards


@pytest.mark.parametrize("fault", [ChannelClosed(), ConnectionResetError("the host has gone")])
def test_a_host_that_takes_no_stream_ends_the_program_s_connection_and_nothing_else(fault: Exception) -> None:
    reported: list[object] = []

    async def open_to_host(target: str) -> Channel:
        raise fault

    async def connect() -> bytes:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        forwards = Forwards(open_to_host)
        forwards._targets[5566] = "tcp:6655"
        with await forwards.connect(5566) as sock:
            received = await loop.sock_recv(sock, 1)
        await asyncio.sleep(0)
        gc.collect()  # a task that failed is reported at its end
        return received

    assert asyncio.run(connect()) == b"" and reported == []
