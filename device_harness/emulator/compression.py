"""The compressions of `sync:` version 2, each offered where its library is installed (the extra `emulator`).

Source: AOSP `file_sync_protocol.h` (flags) and `compression_utils.h`: a brotli stream, an LZ4 frame, a zstd frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Literal, Protocol, cast

Method = Literal["brotli", "lz4", "zstd"]

FLAGS: Mapping[int, Method] = {1: "brotli", 2: "lz4", 4: "zstd"}
DRY_RUN = 0x80000000
"""The flag of a push that stores nothing."""

_PIECE_BYTES = 1024 * 1024
_HAS_ZSTD = sys.version_info >= (3, 14)


class CompressedDataError(ValueError):
    """Bytes that are not valid compressed data."""


class Compressor(Protocol):
    """Compresses a file's bytes."""

    def compress(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _Decoder(Protocol):
    """The interface that the decompressors of Python's bz2 and lzma also have."""

    eof: bool
    needs_input: bool

    @property
    def unused_data(self) -> bytes | None:
        """What follows the end; lz4 has None before it."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Decompressor:
    """Decompresses a file's bytes, at most 1 MiB at a time, whatever the data claim."""

    def __init__(self, method: Method) -> None:
        """`method`: one of `available`."""
        self._decoder = _DECODERS[method]()
        self._method = method

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The bytes that `data` completes; CompressedDataError if they are damaged, or follow the end."""
        has_ended = self._decoder.eof
        if has_ended:
            self._refuse_more(data)
            return
        try:
            while piece := self._decoder.decompress(data, _PIECE_BYTES):
                yield piece
                data = b""
                if self._decoder.eof or self._decoder.needs_input:
                    break
        except Exception as error:  # brotli.error, zstd's ZstdError, lz4's RuntimeError
            raise CompressedDataError(f"damaged {self._method} data ({error})") from error
        self._refuse_more(self._decoder.unused_data or b"")

    def _refuse_more(self, data: bytes) -> None:
        """AOSP's decoders take bytes after the end, in the same block too, for an error."""
        if data:
            raise CompressedDataError(f"{len(data)} bytes after the end of the {self._method} data")

    def require_end(self) -> None:
        """CompressedDataError if the data are incomplete."""
        if not self._decoder.eof:
            raise CompressedDataError(f"{self._method} data without its end")


def available() -> tuple[Method, ...]:
    """The methods whose library is installed."""
    needed: Mapping[Method, str | None] = {
        "brotli": "brotli",
        "lz4": "lz4",
        "zstd": None if _HAS_ZSTD else "backports",
    }
    return tuple(name for name, module in needed.items() if module is None or _is_there(name, module))


def compressor(method: Method) -> Compressor:
    """A new compressor, with settings for speed, as in adb."""
    return _COMPRESSORS[method]()


def _is_there(name: Method, module: str) -> bool:
    return find_spec(module) is not None and (name != "zstd" or find_spec("backports.zstd") is not None)


class _BrotliDecoder:
    def __init__(self) -> None:
        import brotli

        self._raw = brotli.Decompressor()
        self.eof = False
        self.needs_input = True
        self.unused_data = b""  # brotli refuses more data itself

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = cast("bytes", self._raw.process(data, output_buffer_limit=max_length))
        self.eof = bool(self._raw.is_finished())
        self.needs_input = not piece  # it may hold output back although it has taken all input
        return piece


class _BrotliCompressor:
    def __init__(self) -> None:
        import brotli

        self._raw = brotli.Compressor(quality=1)

    def compress(self, data: bytes) -> bytes:
        return cast("bytes", self._raw.process(data))

    def finish(self) -> bytes:
        return cast("bytes", self._raw.finish())


class _Lz4Compressor:
    def __init__(self) -> None:
        from lz4.frame import LZ4FrameCompressor

        self._raw = LZ4FrameCompressor()
        self._begun = cast("bytes", self._raw.begin())

    def compress(self, data: bytes) -> bytes:
        begun, self._begun = self._begun, b""
        return begun + cast("bytes", self._raw.compress(data))

    def finish(self) -> bytes:
        return self._begun + cast("bytes", self._raw.flush())


class _ZstdCompressor:
    def __init__(self) -> None:
        self._raw = _zstd().ZstdCompressor(level=1)

    def compress(self, data: bytes) -> bytes:
        return self._raw.compress(data)

    def finish(self) -> bytes:
        return self._raw.flush()


class _ZstdModule(Protocol):
    """`compression.zstd` of Python 3.14, and its backport."""

    ZstdDecompressor: Callable[[], _Decoder]
    ZstdCompressor: Callable[..., _RawZstdCompressor]


class _RawZstdCompressor(Protocol):
    def compress(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


def _zstd() -> _ZstdModule:
    from importlib import import_module

    return cast("_ZstdModule", import_module("compression.zstd" if _HAS_ZSTD else "backports.zstd"))


def _lz4_decoder() -> _Decoder:
    from lz4.frame import LZ4FrameDecompressor

    return cast("_Decoder", LZ4FrameDecompressor())


_DECODERS: Mapping[Method, Callable[[], _Decoder]] = {
    "brotli": _BrotliDecoder,
    "lz4": _lz4_decoder,
    "zstd": lambda: _zstd().ZstdDecompressor(),
}
_COMPRESSORS: Mapping[Method, Callable[[], Compressor]] = {
    "brotli": _BrotliCompressor,
    "lz4": _Lz4Compressor,
    "zstd": _ZstdCompressor,
}
