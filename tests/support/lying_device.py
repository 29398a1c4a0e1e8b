"""A device on 127.0.0.1 that says whatever a test wants: for each message that it gets, the bytes of a function."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from device_harness.adb.wire import HEADER_BYTES, Header, pack_header, parse_header

Lie = Callable[[Header, bytes], Iterable[bytes]]
"""From a message of the host to what the device sends then, piece by piece."""

BANNER = b"device::ro.product.model=Liar;features=shell_v2,cmd"


def message(command: str, arg0: int = 1, arg1: int = 1, payload: bytes = b"") -> bytes:
    return pack_header(command, arg0, arg1, payload) + payload


CONNECTED = message("CNXN", 0x01000001, 1 << 20, BANNER)
V1_CONNECTED = message("CNXN", 0x01000001, 1 << 20, b"device::")


def says(*pieces: bytes) -> Lie:
    """The same answer to the first message, whatever it is; nothing to the others."""
    return lambda header, _: pieces if header.command == "CNXN" else ()


def serves(output: Callable[[], Iterable[bytes]], connected: bytes = CONNECTED) -> Lie:
    """A device that connects, opens every service, and then writes `output` to it, one message for each."""

    def answer(header: Header, _: bytes) -> Iterator[bytes]:
        if header.command == "CNXN":
            yield connected
        elif header.command == "OPEN":
            yield message("OKAY", 7, header.arg0)
            for data in output():
                yield message("WRTE", 7, header.arg0, data)

    return answer


@contextmanager
def lying_device(lie: Lie) -> Iterator[str]:
    """Yield its HOST:PORT. Every connection has a thread, which ends with the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, lie), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, lie: Lie) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_talk, args=(connection, lie), daemon=True).start()


def _talk(connection: socket.socket, lie: Lie) -> None:
    with connection, contextlib.suppress(OSError), connection.makefile("rb") as source:
        while len(start := source.read(HEADER_BYTES)) == HEADER_BYTES:
            header = parse_header(start)
            for piece in lie(header, source.read(header.length)):
                connection.sendall(piece)
