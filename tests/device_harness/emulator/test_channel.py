"""A stream's flow control, seen from the device."""

from __future__ import annotations

import asyncio

from device_harness.adb.payload import Buffer
from device_harness.emulator.channel import Channel


def test_two_writers_take_turns_with_whole_writes_and_wait_for_each_okay() -> None:
    sent: list[bytes] = []
    unanswered: list[int] = []

    async def converse() -> None:
        async def send(command: str, local_id: int, remote_id: int, data: Buffer) -> None:
            if command == "WRTE":
                sent.append(bytes(data))
                unanswered.append(len(sent))
                assert len(unanswered) == 1, "a message before the last one's OKAY"
                asyncio.get_running_loop().call_later(0.001, answer)

        def answer() -> None:
            unanswered.clear()
            channel.take_okay()

        channel = Channel(send, 1, 2, 4)
        await channel.accept()
        await asyncio.gather(*(channel.write(bytes([letter]) * 11) for letter in b"abc"))

    asyncio.run(converse())
    assert b"".join(sent) == b"a" * 11 + b"b" * 11 + b"c" * 11
