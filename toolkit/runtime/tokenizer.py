"""Text to token ids and back; the one user of the tokenizers library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from toolkit.base.errors import BundleError, UsageError
from toolkit.runtime.memory import release_freed_memory

# A UTF-8 character has at most four bytes, and a byte-fallback token carries one.
_LONGEST_CHARACTER = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        """BundleError when the file is missing or is no tokenizer."""
        if not path.is_file():
            raise BundleError(file=path, found="no such file")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        # The library raises bare Exception for every kind of broken file.
        except Exception as error:
            raise BundleError(
                file=path, found=f"not a Hugging Face tokenizer.json ({error})", remedy="convert the checkpoint again"
            ) from error
        # Trainers save both into the file; transformers sets them anew for each text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The file's JSON is gone again: 200 MB, which others would take in pieces and hold whole.
        release_freed_memory()

    def ids_below(self, limit: int) -> int:
        """One more than the highest id below a limit that stands for a piece of text."""
        # Not from get_vocab: a dictionary of a quarter million strings takes 40 MB and a tenth of a second.
        return next((token + 1 for token in range(limit - 1, -1, -1) if self.token_of(token) is not None), 0)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids. Control tokens spelled in the text become themselves.

        `special` adds what the file's post-processor adds, for Gemma a leading `<bos>`.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """The text of whole tokens; control tokens leave no trace unless asked for."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    def token_of(self, token_id: int) -> str | None:
        """The spelling of one token, None for an id that stands for nothing."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found


def require_unicode(text: str, what: str) -> str:
    """`text`, unless Python has smuggled bytes into it that are no UTF-8, as it does in the C locale."""
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
        # Tokens already written, kept because spaces depend on what comes before, and tokens still held back.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes: empty while a character lacks bytes."""
        self._held.append(token)
        text = self._new_text()
        # More tokens than a character has bytes: the bytes are wrong and will not become right.
        if text.endswith(_INCOMPLETE) and len(self._held) < _LONGEST_CHARACTER:
            return ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """What is still held back at the end: bytes that make no character become U+FFFD."""
        text = self._new_text() if self._held else ""
        self._context, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special=self._skip_special)
        return self._tokenizer.decode(self._context + self._held, skip_special=self._skip_special)[len(before) :]
