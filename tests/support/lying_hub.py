"""A Hub that lies: it changes what the stand-in says about a repository, or how it sends a file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from hub_server import HubServer, send

Info = dict[str, Any]
Request = BaseHTTPRequestHandler
HTML = b"<!doctype html><title>Log in</title>" + b"x" * 4000
NOTHING: Mapping[str, str] = {}
MOST_SENT_BYTES = 400_000_000
"""An answer without an end stops here, so that a client that takes it all fails and does not fill the disk."""


class LyingHub(HubServer):
    """Lies with one of these; None: as the stand-in."""

    def __init__(self) -> None:
        super().__init__()
        self.info: Callable[[Info], object] | None = None
        """What is said about a repository instead of this: JSON, bytes, or a function that answers the request."""
        self.small: Callable[[Request, bytes], None] | None = None
        """Sends config.json."""
        self.large: Callable[[Request, bytes, int, int], None] | None = None
        """Sends the bytes [start, end) of a large file."""

    def _info(self, request: Request, path: str) -> None:
        if self.info is None:
            return super()._info(request, path)
        value = self.info(self.info_of(path))
        if callable(value):
            value(request)
        else:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            send(request, 200, data, {"Content-Type": "application/json"})

    def _resolve(self, request: Request, name: str, revision: str, file: str) -> None:
        if self.small is None or file != "config.json":
            return super()._resolve(request, name, revision, file)
        self.small(request, self.repositories[name][self.revisions[revision]][file])

    def _storage(self, request: Request, path: str) -> None:
        if self.large is None:
            return super()._storage(request, path)
        owner, model, commit, file = path.removeprefix("/storage/").split("/", 3)
        first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        self.large(request, self.repositories[f"{owner}/{model}"][commit][file], int(first), int(last) + 1)


# --- answers ---------------------------------------------------------------------------------------------------------


def endless(piece: bytes, status: int = 200, headers: Mapping[str, str] = NOTHING) -> Callable[[Request], None]:
    """An answer that does not end, in chunks of unknown number."""

    def answer(request: Request) -> None:
        _chunks(request, status, itertools.repeat(piece, MOST_SENT_BYTES // len(piece)), headers)

    return answer


def _chunks(request: Request, status: int, pieces: Iterable[bytes], headers: Mapping[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.close_connection = True
    try:
        for piece in pieces if request.command == "GET" else ():
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n")
    except OSError:
        """The client has heard enough."""


def endless_headers(request: Request) -> None:
    request.close_connection = True
    try:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(MOST_SENT_BYTES // 1000):
            request.wfile.write(b"X-More: " + b"a" * 1000 + b"\r\n")
    except OSError:
        """The client has heard enough."""


def redirected(location: str) -> Callable[[Request], None]:
    """To a place, or to the same one again."""
    return lambda request: send(request, 302, b"", {"Location": location or request.path})


def sent(data: bytes, status: int = 200, headers: Mapping[str, str] = NOTHING) -> Callable[[Request], None]:
    return lambda request: send(request, status, data, dict(headers))
