"""Mutants of seeds, not guided by coverage: the tests read them, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_TOKENS = (
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"9" * 30, b"-1", b"1e999", b"NaN", b"null", b"{}", b"[]", b'"',
    b"\\u0000", b"\xed\xa0\x80", b"\x1b[2J", b"../../x", b"\n", b"{" * 50, b"[" * 50,
)  # fmt: skip


def mutants(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` mutants; each is a seed with one to four changes."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            _change(rng, data, seeds)
        yield bytes(data)


def _change(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    # The first kilobytes hold headers, in which a change matters more than in weights.
    limit = len(data) if rng.random() < 0.5 else min(len(data), 2048)
    at = rng.randrange(limit + 1)
    length = rng.choice((0, 1, 1, 2, 4, 8, 64))
    kind = rng.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at : at + length] = rng.randbytes(length)
    elif kind == 2:
        data[at : at + length] = rng.choice(_TOKENS)
    elif kind == 3:
        del data[at : at + rng.choice((1, 16, 1024, len(data)))]
    elif kind == 4:
        data[at:at] = data[at : at + rng.choice((1, 16, 1024))]
    else:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        data[at : at + 64] = other[start : start + 64]
