"""Lists and downloads LiteRT programs from Google's public storage bucket, over https.

Listings use Cloud Storage's JSON API: https://cloud.google.com/storage/docs/json_api/v1/objects/list
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlencode, urlsplit

from toolkit import __version__
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.base.files import disk_faults, safe_name
from toolkit.base.strict_json import JsonObject, parse_json

GOOGLE = "https://storage.googleapis.com"
BUCKET = "litert"
INSTEAD = "give --binary PATH instead, or a mirror with --binary-server"

MAX_FILE_BYTES = 512 * 2**20
"""The maximum size of a file; the largest programs have about 35 MB."""
_MAX_LISTING_BYTES = 4 * 2**20
_MAX_OBJECTS = 1000
"""The maximum number of entries in one answer, Cloud Storage's own limit; a folder for one platform has about 20."""
_BLOCK_BYTES = 2**18
_ANSWER_S = 30.0
"""A transfer without a byte for this long counts as a lost connection."""
_ATTEMPTS = 3
_LOCAL = ("localhost", "127.0.0.1", "::1")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A file in the bucket's listing of a folder."""

    name: str
    size: int
    md5: str | None
    """Hexadecimal; None if the server does not state it."""


class Bucket:
    """The bucket, or a mirror of it: a server with the same paths."""

    def __init__(self, server: str = GOOGLE) -> None:
        self.server = _checked_server(server)
        # Do not use a proxy for this computer.
        proxies = [urllib.request.ProxyHandler({})] if urlsplit(self.server).hostname in _LOCAL else []
        self._opener = urllib.request.build_opener(_Redirects(), *proxies)

    def address(self, folder: str, name: str = "") -> str:
        """The URL of a file in a folder.

        >>> Bucket().address("binaries/latest/android_arm64/", "benchmark_model")
        'https://storage.googleapis.com/litert/binaries/latest/android_arm64/benchmark_model'
        """
        return f"{self.server}/{BUCKET}/{quote(folder + name)}"

    def files(self, folder: str) -> tuple[BucketFile, ...]:
        """List the files directly in a folder; empty if there is no such folder."""
        query = urlencode({"prefix": folder, "delimiter": "/", "maxResults": _MAX_OBJECTS})
        url = f"{self.server}/storage/v1/b/{BUCKET}/o?{query}"
        try:
            with self._open(url) as answer:
                data = answer.read(_MAX_LISTING_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise _unreached(url, error) from error
        if len(data) > _MAX_LISTING_BYTES:
            raise EnvironmentFault(url, found=f"a list of over {_MAX_LISTING_BYTES:,} bytes", remedy=INSTEAD)
        return _parse_listing(data, url, folder)

    def download(self, url: str, target: Path, size: int, advance: Callable[[int], None]) -> None:
        """Download to `target`, resuming it, until it has `size` bytes.

        `advance` is called with the bytes of each block, and with those that were already there. EnvironmentFault if
        the file on the server has another size or the server cannot be reached; the bytes so far stay in the file.
        """
        done = target.stat().st_size if target.exists() else 0
        advance(done)
        for _ in range(_ATTEMPTS):
            if done < size:
                done = self._download_rest(url, target, done, size, advance)
        if done != size:
            remedy = f"run it again to resume; or {INSTEAD}"
            raise EnvironmentFault(url, found=f"{done:,} bytes, then nothing", wanted=f"{size:,}", remedy=remedy)

    def _download_rest(self, url: str, target: Path, done: int, size: int, advance: Callable[[int], None]) -> int:
        """Make one request; return how many bytes the file then has. A lost connection is not an error here."""
        with self._open(url, start=done) as answer:
            start, total = _extent(answer, url, done)
            if total not in (size, None):
                raise EnvironmentFault(url, found=f"a file of {total:,} bytes", wanted=f"{size:,}", remedy=INSTEAD)
            with disk_faults(target), open(target, "ab") as file:
                file.truncate(start)
                advance(start - done)
                while start < size and (block := _read_block(answer, size - start)):
                    file.write(block)
                    advance(len(block))
                    start += len(block)
        return start

    def _open(self, url: str, *, start: int = 0) -> IO[bytes]:
        headers = {"User-Agent": f"gemma-edge/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            answer: IO[bytes] = self._opener.open(urllib.request.Request(url, headers=headers), timeout=_ANSWER_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return self._open(url)
            found = f"{error.code} {error.reason}"
            raise EnvironmentFault(url, found=found, remedy=INSTEAD) from error
        except (OSError, http.client.HTTPException) as error:
            raise _unreached(url, error) from error
        return answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        if urlsplit(newurl).scheme != "https":
            raise EnvironmentFault(req.full_url, found=f"a redirection to {newurl}", wanted="https", remedy=INSTEAD)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _checked_server(server: str) -> str:
    wanted = "https://HOST, or http://localhost"
    try:
        parts = urlsplit(server)
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL)
        if not is_safe or not parts.hostname or parts.query or parts.fragment or parts.port == 0:
            raise UsageError("--binary-server", found=repr(server), wanted=wanted)
    except ValueError as error:
        raise UsageError("--binary-server", found=f"{server!r} ({error})", wanted=wanted) from error
    return server.rstrip("/")


def _parse_listing(data: bytes, url: str, folder: str) -> tuple[BucketFile, ...]:
    """Parse a listing, skipping entries of other folders: a mirror of plain files may list everything."""
    listing = JsonObject(parse_json(data, None, EnvironmentFault, url), None, EnvironmentFault, url)
    if listing.has("nextPageToken"):
        raise EnvironmentFault(url, found=f"over {_MAX_OBJECTS} files", remedy=INSTEAD)
    files = []
    for item in listing.array("items") if listing.has("items") else []:
        entry = JsonObject(item, None, EnvironmentFault, f"{url} item")
        path = entry.string("name")
        name = path.removeprefix(folder)
        if path.startswith(folder) and name and "/" not in name:
            size = entry.string("size")
            if not re.fullmatch(r"[1-9]\d{0,14}", size, re.ASCII) or int(size) > MAX_FILE_BYTES:
                entry.refuse("size", size, f"1 to {MAX_FILE_BYTES} bytes")
            files.append(BucketFile(safe_name(name, f"{url} name"), int(size), _md5(entry)))
    return tuple(files)


def _md5(entry: JsonObject) -> str | None:
    if not entry.has("md5Hash"):
        return None
    text = entry.string("md5Hash")
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 16:
        entry.refuse("md5Hash", text, "16 bytes in base64")
    return digest.hex()


def _extent(answer: IO[bytes], url: str, start: int) -> tuple[int, int | None]:
    """The offset of an answer in the file, and the file's size if the server states it."""
    headers: http.client.HTTPMessage = answer.headers  # type: ignore[attr-defined]
    if answer.status != http.client.PARTIAL_CONTENT:  # type: ignore[attr-defined]
        length = headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch(r"\d{1,15}", length, re.ASCII) else None
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        found = headers.get("Content-Range", "no Content-Range")
        raise EnvironmentFault(url, found=found, wanted=f"bytes from {start}", remedy=INSTEAD)
    return start, int(match[2])


def _read_block(answer: IO[bytes], limit: int) -> bytes:
    """Read a block; empty at the end, or if the connection is lost."""
    try:
        return answer.read(min(_BLOCK_BYTES, limit))
    except (OSError, http.client.HTTPException):
        return b""


def _unreached(url: str, error: Exception) -> EnvironmentFault:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    said = (reason.strerror if isinstance(reason, OSError) else None) or str(reason) or type(reason).__name__
    return EnvironmentFault(url, found=said, remedy=INSTEAD)
