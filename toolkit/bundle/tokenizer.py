"""Converts text to token ids and back; the only module that uses the `tokenizers` library."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from toolkit.base.errors import BundleError, UsageError, errors_about
from toolkit.base.freed_memory import release_freed_memory
from toolkit.base.limited import limited
from toolkit.base.strict_json import shorten

# A UTF-8 character has at most four bytes, and a byte-fallback token carries one.
_LONGEST_CHARACTER = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


MAX_TOKENIZER_BYTES = 64 << 20
MAX_GROWTH = 64
"""The most that replacement rules may lengthen a text. Real ones replace a space by a mark (1 time), or a character by
its decomposed form (up to 18 times)."""


class Tokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """Open a tokenizer file; BundleError if it is missing or not a tokenizer. `data`: its content, if known."""
        if data is None:
            if not path.is_file():
                raise BundleError(file=path, found="no such file")
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                found, wanted = f"{path.stat().st_size:,} bytes", f"at most {MAX_TOKENIZER_BYTES:,}"
                raise BundleError(file=path, found=found, wanted=wanted)
        with _library_errors(path):
            self._tokenizer = _Tokenizer.from_file(str(path)) if data is None else _Tokenizer.from_buffer(data)
        self._path = path
        _require_bounded_growth(path, self._tokenizer)
        # Training programs save truncation and padding in the file; transformers sets both anew for each text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Parsing the JSON took 200 MB. Return it before later allocations land in it and prevent that.
        release_freed_memory()

    def ids_below(self, limit: int) -> int:
        """The highest id below `limit` that has a token, plus one; 0 if there is none."""
        # Without get_vocab, whose dictionary of a quarter million strings takes 40 MB and a tenth of a second.
        return next((token + 1 for token in range(limit - 1, -1, -1) if self.token_of(token) is not None), 0)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Convert text to token ids. Control tokens spelled out in the text become control tokens.

        `special` also adds what the file's post-processor adds, for Gemma a leading `<bos>`.
        """
        with _library_errors(self._path):
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_limited(self, text: str, *, special: bool = False) -> list[int]:
        """`encode` with limits on time and memory, for untrusted tokenizers; it takes a few milliseconds more."""
        with errors_about(file=self._path):
            return limited("tokenizer", partial(self.encode, text, special=special))

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """The text of tokens, without control tokens unless `skip_special` is False."""
        with _library_errors(self._path):
            return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    def token_of(self, token_id: int) -> str | None:
        """The spelling of one token; None for an id that no token has."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    def id_of(self, token: str) -> int | None:
        """The id of the token with exactly this spelling; None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn what the library raises into BundleError: Exception for broken files, other BaseExceptions for panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        found = f"not a Hugging Face tokenizer.json ({shorten(str(error), 200)})"
        raise BundleError(file=path, found=found, remedy="convert the checkpoint again") from error


def _require_bounded_growth(path: Path, tokenizer: _Tokenizer) -> None:
    """Raise BundleError for replacement rules that make long texts out of short ones, such as repeated doubling."""
    for name in ("normalizer", "decoder"):
        part = getattr(tokenizer, name)
        rules = None if part is None else json.loads(part.__getstate__())
        growth = _growth(rules)
        if growth > MAX_GROWTH:
            found, wanted = f"rules that can make a text {growth:.3g} times as long", f"at most {MAX_GROWTH} times"
            raise BundleError(name, file=path, found=found, wanted=wanted)


def _growth(rules: object) -> float:
    """By what factor these rules, one after the other, can lengthen a text.

    >>> _growth({"type": "Sequence", "normalizers": [{"pattern": {"String": "ab"}, "content": "cdef"}] * 3})
    8.0
    """
    if isinstance(rules, list):
        return math.prod(map(_growth, rules))
    if not isinstance(rules, dict):
        return 1.0
    pattern, content = rules.get("pattern"), rules.get("content")
    if isinstance(pattern, dict) and isinstance(content, str):
        text = pattern.get("String")
        # A regular expression may match at every place.
        return max(1.0, len(content) / len(text)) if isinstance(text, str) and text else len(content) + 1.0
    return math.prod(_growth(value) for value in rules.values())


def require_unicode(text: str, what: str) -> str:
    """Return `text`; UsageError if it contains bytes that are not UTF-8, which Python accepts in the C locale."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            what, found=f"bytes that are not text, from character {error.start}", wanted="UTF-8"
        ) from error
    return text


class TextStream:
    """Converts a stream of tokens to a stream of complete characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # The last tokens whose text was returned, because spaces depend on the text before; and the tokens held back.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty while bytes of a character are missing."""
        self._held.append(token)
        text = self._new_text()
        # As many tokens as the longest character has bytes, and still no character: the bytes are invalid.
        if text.endswith(_INCOMPLETE) and len(self._held) < _LONGEST_CHARACTER:
            return ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """The text that is still held back at the end; an incomplete character becomes U+FFFD."""
        text = self._new_text() if self._held else ""
        self._context, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special=self._skip_special)
        return self._tokenizer.decode(self._context + self._held, skip_special=self._skip_special)[len(before) :]
