"""A stand-in for the Hugging Face Hub: a server on 127.0.0.1 that speaks its protocol, and misbehaves on request.

Written from the Hub's own API as `huggingface_hub` 1.0 and 2.4 use it: model info with file sizes, `resolve` with
commits, etags and a redirect to storage for large files, byte ranges, and error codes in headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pytest

Server = TypeVar("Server", bound="HubServer")
LARGE_SUFFIXES = (".safetensors", ".gguf", ".litertlm")
COMMIT, OLD_COMMIT = "1" * 40, "2" * 40


class HubServer:
    """Repositories by id; `sent` counts the bytes of each large file that went out."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by commit, by repository; `revisions` names commits."""
        self.revisions = {"main": COMMIT, "v1": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.gated: set[str] = set()
        self.token: str | None = None
        """The one that gated repositories are open to."""
        self.cut_at: list[int] = []
        """For each of the next requests of large files: the connection ends behind so many bytes."""
        self.broken = False
        """Every request of a large file ends without a byte."""
        self.status = 0
        """An answer to every request, as of a server in trouble."""
        self.sent: dict[str, int] = {}
        self.requests: list[str] = []
        self.ignores_ranges = False
        self.corrupts = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._answer(self)

            def do_HEAD(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}"  # another host, which gets no token

    def __enter__(self: Server) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, name: str, folder: Path, commit: str = COMMIT) -> None:
        """All files of a local folder and of those in it."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories.setdefault(name, {})[commit] = files

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make it the Hub of `huggingface_hub` in this process, with an empty cache."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.setattr("converters.huggingface.hub.ranges._FIRST_PAUSE_S", 0.0)
        monkeypatch.delenv("HF_TOKEN", raising=False)

    # --- answers ---

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if self.status:
            return send(request, self.status, b"", {})
        if path.startswith("/api/models/"):
            return self._info(request, path.removeprefix("/api/models/"))
        if path.startswith("/storage/"):
            return self._storage(request, path)
        parts = path.lstrip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return send(request, 404, b"", {})
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        return self._resolve(request, name, revision, file)

    def _info(self, request: BaseHTTPRequestHandler, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if name not in self.repositories:
            return send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.revisions.get(revision or "main") not in self.repositories[name]:
            return send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        return send(request, 200, json.dumps(self.info_of(path)).encode(), {"Content-Type": "application/json"})

    def info_of(self, path: str) -> dict[str, Any]:
        """What is said about `NAME` or `NAME/revision/REVISION`."""
        name, _, revision = path.partition("/revision/")
        commit = self.revisions[revision or "main"]
        siblings = [_sibling(file, data) for file, data in self.repositories[name][commit].items()]
        return {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}

    def _resolve(self, request: BaseHTTPRequestHandler, name: str, revision: str, file: str) -> None:
        if name in self.gated:
            given = request.headers.get("Authorization")
            if given is None:
                return send(request, 401, b"", {"X-Error-Code": "GatedRepo"})
            if given != f"Bearer {self.token}":
                return send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        commit = self.revisions.get(revision, "")
        data = self.repositories.get(name, {}).get(commit, {}).get(file)
        if data is None:
            return send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if file.endswith(LARGE_SUFFIXES):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{self.storage_url}/storage/{name}/{commit}/{file}"
            return send(request, 302, b"", headers)
        return send(request, 200, data, headers)

    def _storage(self, request: BaseHTTPRequestHandler, path: str) -> None:
        assert request.headers.get("Authorization") is None
        owner, model, commit, file = path.removeprefix("/storage/").split("/", 3)
        whole = self.repositories[f"{owner}/{model}"][commit][file]
        start, end = 0, len(whole)
        stated = request.headers.get("Range")
        if stated is not None and not self.ignores_ranges:
            first, _, last = stated.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
        data = whole[start:end]
        partial = stated is not None and not self.ignores_ranges
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}"} if partial else {}
        kept = 0 if self.broken else min(self.cut_at.pop(0), len(data)) if self.cut_at else len(data)
        if self.corrupts:
            data = bytes(len(data))
        self.sent[file] = self.sent.get(file, 0) + (kept if request.command == "GET" else 0)
        send(request, 206 if partial else 200, data, headers, kept)


def _sibling(file: str, data: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": git_blob(data)}
    if file.endswith(LARGE_SUFFIXES):
        sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return sibling


def git_blob(data: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def send(
    request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], kept: int | None = None
) -> None:
    """Send an answer, or only the first `kept` bytes of it before the connection ends."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(data[:kept])
    if kept is not None and kept < len(data):
        request.close_connection = True
