"""A stand-in for the storage that Google's programs are downloaded from: a server on 127.0.0.1 that can misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class BucketServer:
    """Objects by name; `requests` lists what was asked for, with the byte it was asked from."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, int]] = []
        self.cut_at: dict[str, int] = {}
        """Once for each name: the connection ends at that byte of the file."""
        self.redirects: dict[str, str] = {}
        self.lists_md5 = True
        self.knows_ranges = True
        self.is_static = False
        """Plain files: the list is always of everything."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> BucketServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, folder: Path, prefix: str) -> None:
        """All files of a local folder."""
        for path in folder.iterdir():
            if path.is_file():
                self.objects[prefix + path.name] = path.read_bytes()

    def downloads(self) -> list[str]:
        """Names of the files that were asked for, not of lists."""
        return [name.rpartition("/")[2] for name, _ in self.requests if "/storage/v1/" not in name]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        path = unquote(parts.path)
        start = 0
        if self.knows_ranges and (wanted := handler.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.requests.append((path, start))
        if path in self.redirects:
            self._send(handler, 302, b"", {"Location": self.redirects[path]})
        elif path == "/storage/v1/b/litert/o":
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self._send(handler, 200, json.dumps(self._listing(query)).encode(), {})
        elif (name := path.removeprefix("/litert/")) not in self.objects:
            self._send(handler, 404, b"none", {})
        else:
            self._send_object(handler, name, start)

    def _listing(self, query: dict[str, str]) -> dict[str, object]:
        prefix = query["prefix"]
        items = []
        for name, data in sorted(self.objects.items()):
            if self.is_static or (name.startswith(prefix) and "/" not in name.removeprefix(prefix)):
                item = {"kind": "storage#object", "name": name, "size": str(len(data))}
                if self.lists_md5:
                    item["md5Hash"] = base64.b64encode(hashlib.md5(data).digest()).decode()
                items.append(item)
        return {"kind": "storage#objects", **({"items": items} if items else {})}

    def _send_object(self, handler: BaseHTTPRequestHandler, name: str, start: int) -> None:
        data = self.objects[name]
        if start >= len(data):
            self._send(handler, 416, b"", {})
            return
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        cut = self.cut_at.pop(name, len(data))
        self._send(handler, 206 if start else 200, data[start:], headers, count=max(0, cut - start))

    def _send(
        self, handler: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict[str, str], count: int | None = None
    ) -> None:
        handler.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[:count])
