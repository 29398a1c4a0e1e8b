"""Reads byte ranges of files on the Hub, and safetensors files by their headers, without downloading them."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.hub.repository import TIMEOUT_S, HubFile, HubRepository, hub_errors, hub_utils
from converters.huggingface.safetensors import SafetensorsFile, TensorInfo, read_header
from toolkit.base.errors import EnvironmentFault
from toolkit.base.strict_json import shorten

_ATTEMPTS = 5
"""How many times in a row a request may fail without giving a single byte."""
_FIRST_PAUSE_S = 0.5
_FIRST_READ_BYTES = 1 << 16
"""Most headers are shorter, so that one request is enough."""
_GAP_BYTES = 1 << 16
"""To read so many bytes that nobody needs takes less time than another request."""
_MAX_RUN_BYTES = 1 << 24
_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<size>\d+|\*)", re.ASCII)


def stream_range(repository: HubRepository, file: HubFile, start: int, end: int) -> Iterator[bytes]:
    """The bytes [start, end) of a file in pieces; after a broken connection, reading continues where it ended.

    EnvironmentFault if it stays broken, CheckpointError if there is no such file.
    """
    failures = 0
    while start < end:
        try:
            with hub_errors(repository.hub_id, file.name):
                for piece in _request(repository, file, start, end):
                    start += len(piece)
                    failures = 0
                    yield piece
            failures += 1  # a response that ends early counts as a failure
        except EnvironmentFault as fault:
            failures += 1
            if not _may_pass(fault.__cause__):
                raise
        if start < end:
            if failures >= _ATTEMPTS:
                raise EnvironmentFault(
                    repository.hub_id,
                    found=f"the connection breaks at byte {start} of {file.name}, {_ATTEMPTS} times in a row",
                    remedy="check the network, and run the command again to continue from there",
                )
            time.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))


def _request(repository: HubRepository, file: HubFile, start: int, end: int) -> Iterator[bytes]:
    """One request; it may end early."""
    hub = hub_utils()
    headers = {**hub.build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    url = repository.url(file.name)
    with hub.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
        hub.hf_raise_for_status(response)
        if response.status_code != 206 and (start, end) != (0, file.size):
            raise EnvironmentFault(
                repository.hub_id,
                found="a server that sends whole files instead of the ranges asked for",
                remedy="download the repository with another program, and name its directory",
            )
        stated = response.headers.get("Content-Range", "no Content-Range")
        if response.status_code == 206 and not _is_of(stated, start, file.size):
            wanted = f"bytes {start}-{end - 1}/{file.size}"
            raise EnvironmentFault(f"{repository.hub_id} {file.name}", found=shorten(stated), wanted=wanted)
        left = end - start
        for piece in response.iter_bytes():  # as they arrive: a broken connection would lose parts of larger pieces
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


def _is_of(content_range: str, start: int, size: int) -> bool:
    """Whether an answer's bytes are those of a file of this size from `start` on.

    >>> _is_of("bytes 8-15/100", 8, 100), _is_of("bytes 0-7/100", 8, 100), _is_of("bytes 8-15/*", 8, 100)
    (True, False, True)
    """
    match = _CONTENT_RANGE.fullmatch(content_range)
    return match is not None and match["start"] == str(start) and match["size"] in (str(size), "*")


def _may_pass(error: BaseException | None) -> bool:
    """Whether another attempt may succeed, which it cannot if the server understood the request and refused it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return error is not None and (status is None or status in (408, 429) or status >= 500)


class RemoteSafetensors(SafetensorsFile):
    """A safetensors file on the Hub: its header is checked like a local file's, and tensors are read in ranges."""

    __slots__ = ("_file", "_kept", "_repository", "_runs")

    def __init__(self, repository: HubRepository, file: HubFile) -> None:
        self.path = Path(repository.hub_id) / file.name
        self._repository = repository
        self._file = file
        self._runs = [(0, min(_FIRST_READ_BYTES, file.size))]
        self._kept: dict[int, bytes] = {}
        """The bytes of runs that were read, by where they begin."""
        self.tensors = read_header(self.path, file.size, self._read)

    def close(self) -> None:
        """Do nothing: no connection is open between reads."""

    def require_unchanged(self) -> None:
        """Do nothing: the files of a commit do not change."""

    def bypass_page_cache(self) -> None:
        """Do nothing: nothing is cached."""

    def expect(self, tensors: Iterable[TensorInfo]) -> None:
        """Join neighbours to runs: the first read within a run reads all of it, and keeps it."""
        runs = self._runs[:1]  # of the header, which was read
        for info in sorted(tensors, key=lambda info: info.begin):
            begin, end = runs[-1]
            if len(runs) > 1 and info.begin - end <= _GAP_BYTES and info.end - begin <= _MAX_RUN_BYTES:
                runs[-1] = begin, info.end
            elif info.end > end:
                runs.append((info.begin, info.end))
        self._runs = runs

    def read_into(self, buffer: NDArray[np.generic], offset: int) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""
        data = buffer.reshape(-1).view(np.uint8)
        data[:] = np.frombuffer(self._read(data.size, offset), np.uint8)

    def _read(self, count: int, offset: int) -> bytes:
        begin, end = self._runs[bisect_right(self._runs, offset, key=lambda run: run[0]) - 1]
        if offset + count > end:
            return self._range(offset, offset + count)
        if begin not in self._kept:
            self._kept[begin] = self._range(begin, end)
        return self._kept[begin][offset - begin : offset - begin + count]

    def _range(self, start: int, end: int) -> bytes:
        return b"".join(stream_range(self._repository, self._file, start, end))
