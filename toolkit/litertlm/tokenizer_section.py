"""Unpacks the section that holds tokenizer.json: its length in eight bytes, and a zlib stream of it."""

from __future__ import annotations

import zlib

from toolkit.bundle.faults import Fault
from toolkit.bundle.tokenizer_file import size_faults

HF_TOKENIZER = "HF_Tokenizer_Zlib"
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
"""Of a tokenizer.json, packed or not: twice the size of Gemma 3n's."""


def unpack_tokenizer(data: bytes) -> bytes | list[Fault]:
    """The tokenizer.json, or faults without a file's name: of its length, its stream, or how many values it has."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_TOKENIZER_BYTES:
        return [Fault("", "length", f"{size} bytes", f"at most {MAX_TOKENIZER_BYTES}")]
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data[8:], size + 1)
    except zlib.error as error:
        return [Fault("", "", str(error), "a zlib stream")]
    if len(text) != size or not inflate.eof or inflate.unused_data:
        return [Fault("", "length", f"{len(text)} bytes so far", f"{size}, and then the end")]
    return size_faults("", text) or text
