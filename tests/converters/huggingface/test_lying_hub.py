"""A Hub that lies: each answer that cannot be is one error, in bounded time, memory and disk, within the cache."""

from __future__ import annotations

import os
import resource
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from checkpoints import TINY, random_tensors, write_checkpoint, write_tokenizer
from hub_server import COMMIT, send
from lying_hub import HTML, NOTHING, Info, LyingHub, Request, endless, endless_headers, redirected, sent

from converters.families import open_checkpoint, open_headers
from toolkit.base.errors import ToolkitError

ID = "someone/gemma-3n-tiny"
MOST_BYTES = 60_000_000
"""That a lie may cost of memory or disk."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = random_tensors(TINY, dtype="float32")
    names = sorted(tensors)
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", TINY, tensors, shards=[names[::2], names[1::2]])
    write_tokenizer(folder)
    return folder


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingHub]:
    with LyingHub() as server:
        server.publish(ID, checkpoint)
        server.use(monkeypatch, tmp_path / "outer" / "cache")
        yield server


def of_all(**changes: object) -> Callable[[Info], Info]:
    """Change what is said about each file."""
    return lambda info: {**info, "siblings": [{**file, **changes} for file in info["siblings"]]}


def of_large(**changes: object) -> Callable[[Info], Info]:
    """Change what is said about each large file's content."""
    return lambda info: {
        **info,
        "siblings": [
            {**file, "lfs": {**file["lfs"], **changes}} if "lfs" in file else file for file in info["siblings"]
        ],
    }


def said(**changes: object) -> Callable[[Info], Info]:
    return lambda info: {**info, **changes}


def _grown() -> bytes:
    """100 MB, compressed."""
    pack = zlib.compressobj(1, wbits=31)
    return pack.compress(b'{"sha":"') + b"".join(pack.compress(b"a" * 1_000_000) for _ in range(100)) + pack.flush()


OUTSIDE = "../../../outside"
INFOS: dict[str, Callable[[Info], object]] = {
    "HTML": lambda info: HTML,
    "nothing": lambda info: b"",
    "other bytes": lambda info: b"\xff\xfe{}",
    "nesting": lambda info: b"[" * 200_000,
    "a list": lambda info: [],
    "null": lambda info: None,
    "no commit": said(sha=None),
    "a number as commit": said(sha=5),
    "a path as commit": said(sha=OUTSIDE),
    "an absolute path as commit": said(sha="/outside"),
    "a long commit": said(sha="a" * 100_000),
    "a text of files": said(siblings="abc"),
    "numbers as files": said(siblings=[1, 2]),
    "no names": of_all(rfilename=None),
    "numbers as names": of_all(rfilename=7),
    "lists as names": of_all(rfilename=[1]),
    "texts as sizes": of_all(size="12"),
    "sizes below 0": of_all(size=-1),
    "real sizes": of_all(size=1e308),
    "true as sizes": of_all(size=True),
    "sizes without bound": of_all(size=10**30),
    "no sizes": of_all(size=None),
    "no hashes": of_all(blobId=None),
    "paths as hashes": of_all(blobId=OUTSIDE),
    "a list about content": of_all(lfs=[1]),
    "a number as SHA-256": of_large(sha256=5),
    "a path as SHA-256": of_large(sha256=OUTSIDE),
    "another SHA-256": of_large(sha256="0" * 64),
    "no end": lambda info: endless(b"[" + b"0," * 500_000),
    "headers without end": lambda info: endless_headers,
    "a redirect to itself": lambda info: redirected(""),
    "a redirect to a file": lambda info: redirected("file:///etc/passwd"),
    "few bytes that become many": lambda info: sent(_grown(), headers={"Content-Encoding": "gzip"}),
}


def require_one_error(hub: LyingHub, tmp_path: Path, *, whole: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ToolkitError) as error:
        (open_checkpoint if whole else open_headers)(ID).close()
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]
    assert {path.name for path in (tmp_path / "outer").iterdir()} <= {"cache"}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < MOST_BYTES
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


@pytest.mark.parametrize("name", INFOS)
def test_what_is_said_about_a_repository_is_checked_before_it_becomes_a_path(
    name: str, hub: LyingHub, tmp_path: Path
) -> None:
    (tmp_path / "outer").mkdir()
    hub.info = INFOS[name]
    require_one_error(hub, tmp_path, whole=name.endswith("SHA-256"))


SMALL_HEADERS = {"X-Repo-Commit": COMMIT, "ETag": '"1"'}
SMALL: dict[str, Callable[[Request, bytes], None]] = {
    "HTML": lambda request, data: sent(HTML, headers=SMALL_HEADERS)(request),
    "other bytes": lambda request, data: sent(bytes(len(data)), headers=SMALL_HEADERS)(request),
    "less": lambda request, data: sent(data[:-1], headers=SMALL_HEADERS)(request),
    "no end": lambda request, data: endless(b"a" * 1_000_000, headers=SMALL_HEADERS)(request),
    "headers without end": lambda request, data: endless_headers(request),
    "a redirect to itself": lambda request, data: redirected("")(request),
    "a redirect to a file": lambda request, data: redirected("file:///etc/passwd")(request),
    "a pause of a day": lambda request, data: send(request, 429, b"", {"Retry-After": "86400"}),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_is_what_the_hub_said_of_it(name: str, hub: LyingHub, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    hub.small = SMALL[name]
    require_one_error(hub, tmp_path, whole=False)


@pytest.mark.parametrize("etag", ["../../../outside", "/outside", ""])
def test_the_name_of_a_small_file_in_the_cache_is_its_hash_whatever_its_etag(
    etag: str, hub: LyingHub, tmp_path: Path
) -> None:
    headers = {"X-Repo-Commit": "../x", "ETag": f'"{etag}"'}
    hub.small = lambda request, data: sent(data, headers=headers)(request)
    open_checkpoint(ID).close()
    assert os.listdir(tmp_path) == ["outer"] and os.listdir(tmp_path / "outer") == ["cache"]
    blobs = tmp_path.rglob("blobs/*")
    assert {len(path.name) for path in blobs} == {40, 64}


def part(request: Request, data: bytes, start: int, end: int, size: int, headers: Mapping[str, str] = NOTHING) -> None:
    send(request, 206, data, {"Content-Range": f"bytes {start}-{end - 1}/{size}", **headers})


LARGE: dict[str, Callable[[Request, bytes, int, int], None]] = {
    "HTML": lambda request, data, start, end: send(request, 200, HTML, {}),
    "HTML as a part": lambda request, data, start, end: part(request, HTML * 99, start, end, len(data)),
    "other bytes": lambda request, data, start, end: part(request, bytes(end - start), start, end, len(data)),
    "another part": lambda request, data, start, end: part(
        request, data[start + 8 : end + 8], start + 8, end + 8, len(data)
    ),
    "of another size": lambda request, data, start, end: part(request, data[start:end], start, end, len(data) + 1),
    "a part without its place": lambda request, data, start, end: send(request, 206, data[start:end], {}),
    "nothing": lambda request, data, start, end: send(request, 204, b"", {}),
    "no such part": lambda request, data, start, end: send(request, 416, b"", {}),
    "not compressed": lambda request, data, start, end: part(
        request, data[start:end], start, end, len(data), {"Content-Encoding": "gzip"}
    ),
    "headers without end": lambda request, data, start, end: endless_headers(request),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_part_of_a_large_file_is_the_one_that_was_asked_for(name: str, hub: LyingHub, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    hub.large = LARGE[name]
    require_one_error(hub, tmp_path, whole=True)


def test_a_part_that_does_not_end_is_cut(hub: LyingHub, checkpoint: Path) -> None:
    def answer(request: Request, data: bytes, start: int, end: int) -> None:
        place = f"bytes {start}-{end - 1}/{len(data)}"
        endless(data[start:end] + b"more", 206, {"Content-Range": place})(request)

    hub.large = answer
    with open_checkpoint(ID) as remote, open_checkpoint(checkpoint) as local:
        assert remote.fingerprint() == local.fingerprint()
