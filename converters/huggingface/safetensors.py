"""Reads safetensors files, and the index that joins them, strictly.

Format (https://github.com/huggingface/safetensors#format): an 8-byte little-endian header length, a JSON header, and
the bytes of the tensors.
All rules are checked before any byte of a tensor is used; any fault raises CheckpointError, whatever the bytes are.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, system_reason
from toolkit.base.files import is_safe_name
from toolkit.base.layout import align_up
from toolkit.base.strict_json import JsonObject, open_regular, parse_json, read_json_file, shorten

_log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 20_000_000
"""The limit for a header, and for the index. The format allows 100 MB (MAX_HEADER_SIZE in safetensors' tensor.rs), but
JSON of that length may take several GB in Python; the headers of Gemma 3n have 0.3 MB."""

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_MAX_U64 = 2**64 - 1

_BLOCK_BYTES = 4096  # alignment of direct reads: no file system or device needs more
_LEAST_DIRECT_BYTES = 1 << 17  # for smaller reads, the kernel's read-ahead is faster

# Dtype in safetensors' tensor.rs, in bits: types smaller than a byte must fill whole bytes.
_BITS_BY_DTYPE = (
    (4, "F4"),
    (6, "F6_E2M3 F6_E3M2"),
    (8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
    (16, "U16 I16 F16 BF16"),
    (32, "U32 I32 F32"),
    (64, "U64 I64 F64 C64"),
)
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {name: bits for bits, names in _BITS_BY_DTYPE for name in names.split()}
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as described in its file's header; `begin` and `end` are byte offsets in the file `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """An open file whose header passed every check. Reads are safe from several threads."""

    __slots__ = ("__weakref__", "_close", "_direct", "_fd", "_open", "_state", "path", "tensors")
    path: Path
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_regular(path, CheckpointError)
        self._state = _state(self._fd)
        self._direct: int | None = None
        self._open = [self._fd]
        self._close = weakref.finalize(self, _close_all, self._open)
        try:
            self.tensors = read_header(
                path, os.fstat(self._fd).st_size, lambda count, offset: _pread(self._fd, count, offset, path)
            )
        except BaseException:
            self.close()
            raise

    @property
    def stored_bytes(self) -> int:
        """The stored bytes of all tensors."""
        return sum(info.stored_bytes for info in self.tensors.values())

    def close(self) -> None:
        """Close the file; reads fail from then on."""
        self._close()

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the file has changed since it was opened: reads may have mixed both versions."""
        if _state(self._fd) != self._state:
            raise CheckpointError(file=self.path, found="the file has changed since it was opened")

    def bypass_page_cache(self) -> None:
        """Make large reads go directly from storage to the caller's memory, if the system supports this."""
        try:
            direct = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except (OSError, AttributeError):
            return  # no /proc, a file system without direct reads, or a system without O_DIRECT
        self._direct = direct
        self._open.append(direct)

    def expect(self, tensors: Iterable[TensorInfo]) -> None:
        """Say which small tensors will be read one by one; on the Hub, one read then fetches those near it too."""

    def read_into(self, buffer: NDArray[np.generic], offset: int) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""
        if not self._close.alive:
            raise CheckpointError(file=self.path, found="the file is closed")
        data = buffer.reshape(-1).view(np.uint8)
        try:
            count = self._read_direct(data, offset) if data.size >= _LEAST_DIRECT_BYTES else 0
            count += _fill(self._fd, data[count:], offset + count)
        except OSError as error:
            raise CheckpointError(file=self.path, found=system_reason(error)) from error
        if count < data.size:
            end = offset + count
            raise CheckpointError(
                file=self.path, found=f"the file ends at byte {end} now: it has changed since it was opened"
            )

    def _read_direct(self, data: NDArray[np.uint8], offset: int) -> int:
        """Read the whole, aligned blocks that hold the bytes; returns how many bytes of `data` were filled."""
        if self._direct is None:
            return 0
        skipped = offset % _BLOCK_BYTES
        size = align_up(skipped + data.size, _BLOCK_BYTES)
        memory = np.empty(size + _BLOCK_BYTES, np.uint8)
        blocks = memory[-memory.ctypes.data % _BLOCK_BYTES :][:size]
        try:
            count = _read_into(self._direct, blocks, offset - skipped)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = None  # the file system opens files for direct reads but cannot read them
            return 0
        count = max(0, min(count - skipped, data.size))
        data[:count] = blocks[skipped : skipped + count]
        return count


def _state(fd: int) -> tuple[int, int]:
    """The size and the modification time, at least one of which every write changes."""
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _read_into(fd: int, data: NDArray[np.uint8], offset: int) -> int:
    """Read some bytes, at least one unless the file ends; without preadv, they are copied once more."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [data.data], offset)
    read = os.pread(fd, min(data.size, _LEAST_DIRECT_BYTES), offset)
    data[: len(read)] = np.frombuffer(read, np.uint8)
    return len(read)


def _fill(fd: int, data: NDArray[np.uint8], offset: int) -> int:
    """Read until `data` is full or the file ends; returns the number of bytes read."""
    done = 0
    while done < data.size and (count := _read_into(fd, data[done:], offset + done)):
        done += count
    return done


def open_safetensors(directory: Path) -> tuple[SafetensorsFile, ...]:
    """Open and check the files of a directory: `model.safetensors`, or the shards that its index names.

    Checkpoints larger than half of the memory bypass the page cache: they would not stay there until the next pass, and
    making room for them takes longer than quantising them.
    """
    files = open_files(
        directory, lambda name: (directory / name).exists(), lambda name: SafetensorsFile(directory / name)
    )
    if 2 * sum(file.stored_bytes for file in files) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        for file in files:
            file.bypass_page_cache()
    return files


def open_files(
    directory: Path, has: Callable[[str], bool], open_file: Callable[[str], SafetensorsFile]
) -> tuple[SafetensorsFile, ...]:
    """Open the files of a checkpoint, wherever they are; its index, if there is one, is in `directory`."""
    single, index = has(SINGLE_NAME), has(INDEX_NAME)
    if single and index:
        raise CheckpointError(
            file=directory, found=f"{SINGLE_NAME} and {INDEX_NAME}", wanted="one of them", remedy="remove the stale one"
        )
    if single:
        return (open_file(SINGLE_NAME),)
    if index:
        return _open_shards(directory / INDEX_NAME, open_file)
    raise CheckpointError(
        file=directory,
        found="no safetensors weights",
        wanted=f"{SINGLE_NAME} or {INDEX_NAME}",
        remedy="save the model with save_pretrained",
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index names."""
    return sorted(set(_read_index(index)[0].values()))


def _open_shards(index: Path, open_file: Callable[[str], SafetensorsFile]) -> tuple[SafetensorsFile, ...]:
    weight_map, total_bytes = _read_index(index)
    files: list[SafetensorsFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            files.append(open_file(name))
        _check_index(index, weight_map, total_bytes, files)
    except BaseException:
        for file in files:
            file.close()
        raise
    return tuple(files)


def _read_index(path: Path) -> tuple[dict[str, str], int | None]:
    """Read the index: the shard of each tensor by name, and the stated number of bytes."""
    index = JsonObject(read_json_file(path, CheckpointError, MAX_HEADER_BYTES), str(path), CheckpointError)
    shards = index.child("weight_map")
    weight_map: dict[str, str] = {}
    for tensor in shards.names():
        name = shards.string(tensor)
        if not is_safe_name(name) or not name.endswith(".safetensors"):
            shards.refuse(shorten(tensor), name, "the plain name of a .safetensors file beside the index")
        weight_map[tensor] = name
    if not weight_map:
        index.refuse("weight_map", {}, "at least one tensor")
    total: int | None = None
    if index.has("metadata"):
        metadata = index.child("metadata")
        if metadata.has("total_size"):
            # Old releases of transformers wrote 123.0; anything but a whole number of bytes is rejected.
            total = _whole(metadata, "total_size")
    index.finish()
    return weight_map, total


def _whole(values: JsonObject, key: str) -> int:
    number = values.number(key, 0, _MAX_U64)
    raw = values.value(key)
    if isinstance(raw, int):
        return raw
    if not number.is_integer():
        values.refuse(key, number, "a whole number")
    return int(number)


def _check_index(index: Path, weight_map: Mapping[str, str], total: int | None, files: list[SafetensorsFile]) -> None:
    """Check that the index and the shards name the same tensors, in the same places."""
    stored: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in stored:
                found = f"{shorten(name)} in {stored[name]} and {file.path.name}"
                raise CheckpointError(file=index, found=found, wanted="each tensor once")
            stored[name] = file.path.name
    for name in sorted(stored.keys() | weight_map.keys()):
        if stored.get(name) != weight_map.get(name):
            found = f"{shorten(name)} in {stored.get(name, 'no shard')}"
            raise CheckpointError(file=index, found=found, wanted=f"it in {weight_map.get(name, 'no shard')}")
    actual = sum(info.stored_bytes for file in files for info in file.tensors.values())
    if total is not None and total != actual:
        # Not an error: transformers does not read total_size, and each shard's header shows what the shard lacks.
        _log.warning("%s: total_size is %s, but the tensors have %s bytes", index, total, actual)


def read_header(path: Path, size: int, read: Callable[[int, int], bytes]) -> Mapping[str, TensorInfo]:
    """The tensors of a file of `size` bytes; CheckpointError if it is invalid. `read` takes a count and an offset."""
    if size < 8:
        raise CheckpointError(file=path, found=f"{size} bytes", wanted="at least 8, the length of the header")
    length = int.from_bytes(read(8, 0), "little")
    limit = min(MAX_HEADER_BYTES, size - 8)
    if length > limit:
        raise CheckpointError(
            file=path, found=f"a header of {length} bytes", wanted=f"at most {limit}", remedy="download the file again"
        )
    text = read(length, 8)
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise CheckpointError(
            "header", file=path, found=shorten(text[:16]), wanted="an object from { to }, then only spaces"
        )
    header = JsonObject(parse_json(text, str(path), CheckpointError, "header"), str(path), CheckpointError, "header")
    if header.has("__metadata__"):  # mlx writes null if there is none
        metadata = header.child("__metadata__")
        for key in metadata.names():
            metadata.string(key)
    data = 8 + length
    infos = [_parse_tensor(header, name, path.name, data) for name in header.names() if name != "__metadata__"]
    _check_layout(path, infos, data, size)
    return MappingProxyType({info.name: info for info in infos})


def _parse_tensor(header: JsonObject, name: str, file: str, data: int) -> TensorInfo:
    """Parse one entry: a known dtype, a shape that does not overflow, and offsets that span exactly shape x dtype."""
    entry = header.child(name)
    dtype = entry.string("dtype")
    if dtype not in DTYPE_BITS:
        entry.refuse("dtype", dtype, "a type of the format")
    shape = entry.integers("shape", 0, _MAX_U64)
    offsets = entry.integers("data_offsets", 0, _MAX_U64)
    entry.finish()
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
        if bits > _MAX_U64:
            entry.refuse("shape", shape, "fewer than 2**64 bits")
    if bits % 8:
        entry.refuse("shape", shape, f"whole bytes of {dtype}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != bits // 8:
        wanted = f"begin and end, {bits // 8} bytes apart as {dtype}{shorten(list(shape))} needs"
        entry.refuse("data_offsets", list(offsets), wanted)
    return TensorInfo(name, dtype, shape, file, data + offsets[0], data + offsets[1])


def _check_layout(path: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    """Check that the tensors fill the file from the header to its end, without gaps or overlaps."""
    position = data
    for info in sorted(infos, key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            kind = "a gap before" if info.begin > position else "an overlap with"
            raise CheckpointError(
                file=path,
                found=f"{kind} {shorten(info.name)} at byte {info.begin}",
                wanted=f"it to begin at {position}",
            )
        position = info.end
    if position != size:
        raise CheckpointError(
            file=path, found=f"{size} bytes", wanted=f"{position}, as its header says", remedy="download the file again"
        )


def _pread(fd: int, count: int, offset: int, path: Path) -> bytes:
    try:
        data = os.pread(fd, count, offset)
    except OSError as error:
        raise CheckpointError(file=path, found=system_reason(error)) from error
    if len(data) != count:
        raise CheckpointError(file=path, found=f"{len(data)} bytes at {offset}", wanted=count)
    return data
