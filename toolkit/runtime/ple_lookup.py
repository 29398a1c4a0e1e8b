"""Reads per-layer embeddings from flash, row by row as tokens need them; the table never stays in memory."""

from __future__ import annotations

import mmap
import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.ple_shards import (
    HEADER_BYTES,
    PleLayout,
    check_sequence,
    read_header,
    row_checksum,
    stored_checksum,
    unpack_rows,
)

DEFAULT_CACHE_BYTES = 32 << 20

Rows = NDArray[np.uint8]


_Faults = tuple[int, int]
"""Minor and major page faults."""


def _faults() -> _Faults | None:
    """The page faults of this thread so far; None if the system counts only those of whole processes."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    if who is None:
        return None
    usage = resource.getrusage(who)
    return usage.ru_minflt, usage.ru_majflt


@dataclass(slots=True)
class PleStatistics:
    """Counts of lookups. Page faults are the kernel's count for the thread that looks up."""

    rows: int = 0
    """Rows requested, one for each token."""
    cache_hits: int = 0
    """Rows that needed no read: in the cache of recent rows, or requested twice in one lookup."""
    bytes_read: int = 0
    """Bytes of all other rows, read from the shards."""
    minor_faults: int | None = 0
    """Page faults served from the page cache; None if the system, such as macOS, does not count them by thread."""
    major_faults: int | None = 0
    """Page faults that read from flash; None likewise."""

    def note_faults(self, before: _Faults | None, after: _Faults | None) -> None:
        """Add the faults between two counts of the thread."""
        if before is None or after is None:
            self.minor_faults = self.major_faults = None
        elif self.minor_faults is not None and self.major_faults is not None:
            self.minor_faults += after[0] - before[0]
            self.major_faults += after[1] - before[1]

    def to_json(self) -> dict[str, int | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class PleTable:
    """The rows of all shards, memory-mapped; with `in_ram` copied to memory instead, for comparison."""

    def __init__(self, paths: Sequence[Path], *, cache_bytes: int = DEFAULT_CACHE_BYTES, in_ram: bool = False) -> None:
        """BundleError for a shard that is missing, truncated, of another table, or out of order."""
        if cache_bytes < 0:
            raise UsageError("PLE cache", found=f"{cache_bytes} bytes", wanted="at least 0")
        headers = [read_header(path) for path in paths]
        check_sequence(paths, headers)
        self.layout: PleLayout = headers[0].layout
        self._row_bytes = self.layout.row_bytes
        self.statistics = PleStatistics()
        self._paths = tuple(paths)
        self._first = [header.first_token for header in headers]
        self._file_bytes = [header.file_bytes for header in headers]
        self._maps = [] if in_ram else [_map(path) for path in paths]
        shards: Sequence[bytes | mmap.mmap] = [path.read_bytes() for path in paths] if in_ram else self._maps
        self._rows: list[Rows] = [
            np.frombuffer(shard, np.uint8, offset=HEADER_BYTES).reshape(header.row_count, -1)
            for shard, header in zip(shards, headers, strict=True)
        ]
        self._scale = np.float32(np.sqrt(self.layout.width))
        self._cache: OrderedDict[int, Rows] = OrderedDict()
        self._cache_rows = 0 if in_ram else cache_bytes // self._row_bytes

    def prefetch(self, ids: Sequence[int]) -> None:
        """Ask the kernel for the rows of a whole prompt at once: it reads them while the first tokens are computed."""
        self._announce([self._place(token) for token in dict.fromkeys(self._tokens(ids)) if token not in self._cache])

    def lookup(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The rows f32[len(ids), layers, width], scaled by sqrt(width) as the model needs them.

        Ids outside the table read row 0. BundleError for a damaged row or a truncated shard.
        """
        before = _faults()
        tokens = self._tokens(ids)
        # Without np.unique: for the single token of a decode step, each NumPy call takes as long as reading the row.
        places = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        values = unpack_rows(self._fetch(list(places)), self.layout)
        values *= self._scale
        after = _faults()
        self.statistics.rows += len(tokens)
        self.statistics.cache_hits += len(tokens) - len(places)
        self.statistics.note_faults(before, after)
        return values if len(places) == len(tokens) else values[[places[token] for token in tokens]]

    def close(self) -> None:
        """Unmap the shards; the table cannot be used afterwards."""
        self._rows.clear()
        self._cache.clear()
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()

    def _tokens(self, ids: Sequence[int]) -> list[int]:
        """For each id, the token whose row it reads."""
        return [token if 0 <= token < self.layout.vocab_size else 0 for token in ids]

    def _place(self, token: int) -> tuple[int, int]:
        """The index of the shard, and the row in it."""
        shard = bisect_right(self._first, token) - 1
        return shard, token - self._first[shard]

    def _fetch(self, tokens: list[int]) -> Rows:
        """The rows of distinct tokens, from the cache or the shards; the kernel is told of all reads first."""
        rows = np.empty((len(tokens), self._row_bytes), np.uint8)
        missing: list[tuple[int, int, int, int]] = []
        for place, token in enumerate(tokens):
            cached = self._cache.get(token)
            if cached is None:
                missing.append((place, token, *self._place(token)))
            else:
                self._cache.move_to_end(token)
                rows[place] = cached
        self.statistics.cache_hits += len(tokens) - len(missing)
        shards = {shard for _, _, shard, _ in missing}
        self._require_whole(shards)
        if len(missing) > 1:
            self._announce([(shard, row) for _, _, shard, row in missing])
        for place, token, shard, row in missing:
            rows[place] = self._rows[shard][row]
            if row_checksum(rows[place]) != stored_checksum(rows[place]):
                raise BundleError(
                    f"row of token {token}",
                    file=self._paths[shard],
                    found="damaged bytes",
                    remedy="run gemma-edge check, and copy or convert it again",
                )
            self._remember(token, rows[place])
        self.statistics.bytes_read += len(missing) * self._row_bytes
        self._unmap(shards)
        return rows

    def _require_whole(self, shards: set[int]) -> None:
        """BundleError if a shard was truncated since it was mapped; reading past its end would kill the process."""
        for shard in shards if self._maps else ():
            size = self._maps[shard].size()
            if size < self._file_bytes[shard]:
                wanted = f"{self._file_bytes[shard]}, as when it was opened"
                raise BundleError(
                    file=self._paths[shard], found=f"{size} bytes", wanted=wanted, remedy="copy or convert it again"
                )

    def _announce(self, places: Sequence[tuple[int, int]]) -> None:
        """Ask the kernel to read the pages of all rows at once."""
        if not self._maps:
            return
        for shard, row in places:
            begin = HEADER_BYTES + row * self._row_bytes
            start = begin - begin % mmap.PAGESIZE
            self._maps[shard].madvise(mmap.MADV_WILLNEED, start, begin + self._row_bytes - start)

    def _unmap(self, shards: set[int]) -> None:
        """Drop the pages of these shards from the process's memory; the rows read are copies.

        The whole shard is dropped (about 5 us): for each page that is read, the kernel also maps cached pages around
        it, 64 KiB by default, and more where the page cache holds them in one piece.
        """
        if self._maps:
            for shard in shards:
                self._maps[shard].madvise(mmap.MADV_DONTNEED)

    def _remember(self, token: int, row: Rows) -> None:
        if self._cache_rows:
            if len(self._cache) >= self._cache_rows:
                self._cache.popitem(last=False)
            self._cache[token] = row.copy()


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Otherwise the kernel reads megabytes around each row.
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped
