"""A stream's flow control, seen from the device."""

from __future__ import annotations

import asyncio

from device_harness.adb.payload import Buffer
from device_harness.adb.wire import pack_taken
from device_harness.emulator.channel import WINDOW_BYTES, Channel


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


def test_a_host_that_counts_bytes_is_sent_as_many_as_it_has_room_for() -> None:
    sent: list[tuple[str, bytes]] = []

    async def converse() -> None:
        async def send(command: str, local_id: int, remote_id: int, data: Buffer) -> None:
            sent.append((command, bytes(data)))

        channel = Channel(send, 1, 2, 4, window_bytes=8)
        await channel.accept()
        writing = asyncio.ensure_future(channel.write(b"0123456789ab"))
        await asyncio.sleep(0.01)
        assert sent[1:] == [("WRTE", b"0123"), ("WRTE", b"4567")]
        channel.take_okay(pack_taken(4))
        await writing
        channel.take(b"hello")
        assert await channel.read() == b"hello"

    asyncio.run(converse())
    assert sent[0] == ("OKAY", pack_taken(WINDOW_BYTES)) and sent[-2:] == [("WRTE", b"89ab"), ("OKAY", pack_taken(5))]


def test_a_host_that_counts_none_hears_an_okay_for_every_part_that_was_handed_on() -> None:
    sent: list[tuple[str, bytes]] = []

    async def converse() -> None:
        async def send(command: str, local_id: int, remote_id: int, data: Buffer) -> None:
            sent.append((command, bytes(data)))

        channel = Channel(send, 1, 2, 4)
        for part in (b"one", b"two"):
            channel.take(part)
            assert await channel.read() == part

    asyncio.run(converse())
    assert sent == [("OKAY", b""), ("OKAY", b"")]
