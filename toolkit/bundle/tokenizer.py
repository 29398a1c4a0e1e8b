"""Converts text to token ids and back; the only module that uses the tokenizers library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from toolkit.base.errors import BundleError, UsageError
from toolkit.base.freed_memory import release_freed_memory

# A UTF-8 character has at most four bytes, and a byte-fallback token carries one.
_LONGEST_CHARACTER = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """BundleError if the file is missing or is not a tokenizer. data: its content, where that is known already."""
        if data is None and not path.is_file():
            raise BundleError(file=path, found="no such file")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path)) if data is None else _Tokenizer.from_buffer(data)
        # The library raises bare Exception for every kind of broken file.
        except Exception as error:
            raise BundleError(
                file=path, found=f"not a Hugging Face tokenizer.json ({error})", remedy="convert the checkpoint again"
            ) from error
        # Training programs save both in the file; transformers overrides them for each text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Parsing the JSON took 200 MB; give it back before other allocations use parts of it and keep all of it.
        release_freed_memory()

    def ids_below(self, limit: int) -> int:
        """One more than the highest id below `limit` that has a token; 0 if there is none."""
        # Not from get_vocab: a dictionary of a quarter million strings takes 40 MB and a tenth of a second.
        return next((token + 1 for token in range(limit - 1, -1, -1) if self.token_of(token) is not None), 0)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Convert text to token ids. Control tokens spelled out in the text become control tokens.

        `special` also adds what the file's post-processor adds, for Gemma a leading `<bos>`.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """The text of tokens, without control tokens unless `skip_special` is False."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    def token_of(self, token_id: int) -> str | None:
        """The spelling of one token; None for an id that no token has."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found


def require_unicode(text: str, what: str) -> str:
    """Return `text`; UsageError if it contains bytes that are not UTF-8, which Python lets through in the C locale."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(what, found=f"bytes that are no text, from character {error.start}", wanted="UTF-8") from error
    return text


class TextStream:
    """Turns a stream of tokens into a stream of whole characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # The tokens written last, kept because spaces depend on what comes before, and the tokens held back.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty while bytes of a character are missing."""
        self._held.append(token)
        text = self._new_text()
        # With as many tokens as a character has bytes, the bytes are invalid and stay so.
        if text.endswith(_INCOMPLETE) and len(self._held) < _LONGEST_CHARACTER:
            return ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """The text still held back at the end; an incomplete character becomes U+FFFD."""
        text = self._new_text() if self._held else ""
        self._context, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special=self._skip_special)
        return self._tokenizer.decode(self._context + self._held, skip_special=self._skip_special)[len(before) :]
