"""Checks the form and the token ids of a tokenizer.json without running it, and looks up the spelling of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.base.errors import BundleError
from toolkit.base.strict_json import shorten
from toolkit.bundle.faults import Fault

_MAX_VALUES = 5_000_000
"""Of the JSON, by its brackets and commas, each of which may take 150 bytes of memory. 262,144 tokens, and merges for
each way to make one, are about two million."""
_MAX_TOKENS = 1 << 20
_PER_CALL = ("truncation", "padding")
"""The settings that transformers makes for each text, whatever the file says."""


def tokenizer_faults(file: str, data: bytes, vocab_size: int, spelled: Mapping[str, int] | None = None) -> list[Fault]:
    """Faults if `data` is not a tokenizer, has an id of `vocab_size` or above, or lacks one of the ids in `spelled`.

    `spelled`: the ids that prompts must be able to spell, by their names in the manifest.
    """
    tokens = _tokens(file, data)
    if isinstance(tokens, Fault):
        return [tokens]
    present = {token for _, token in tokens}
    if max(present) >= vocab_size:
        return [Fault(file, "token ids", f"{max(present)}", f"0 to {vocab_size - 1}, the model's vocabulary")]
    missing = {name: token for name, token in (spelled or {}).items() if token not in present}
    return [Fault(file, name, f"no token {token}", None) for name, token in missing.items()]


def size_faults(file: str, data: bytes) -> list[Fault]:
    """A fault if parsing `data` would take more memory than any tokenizer; the data are not parsed."""
    values = sum(map(data.count, (b"[", b"{", b",")))
    if values <= _MAX_VALUES:
        return []
    return [Fault(file, "JSON", f"about {values:,} values", f"at most {_MAX_VALUES:,}")]


def token_spellings(file: str, data: bytes, ids: Iterable[int]) -> dict[int, str]:
    """The spelling of each token in `ids`; BundleError if `data` is not a tokenizer or lacks one of the ids."""
    tokens = _tokens(file, data)
    if isinstance(tokens, Fault):
        raise tokens.error(remedy="convert it again")
    texts = {token: text for text, token in tokens}
    wanted = list(ids)
    for token in wanted:
        if token not in texts:
            raise BundleError("tokens", file=file, found=f"no token {token}")
    return {token: texts[token] for token in wanted}


def token_spelling(data: bytes, token_id: int | None) -> str | None:
    """The spelling of one token; None for an id without a token, and if `data` is not a tokenizer."""
    tokens = _tokens("tokenizer.json", data)
    return (
        None
        if isinstance(tokens, Fault)
        else next((text for text, token in reversed(tokens) if token == token_id), None)
    )


def token_texts(data: bytes) -> dict[int, str]:
    """The spelling of every token by its id; empty if `data` is not a tokenizer."""
    tokens = _tokens("tokenizer.json", data)
    return {} if isinstance(tokens, Fault) else {token: text for text, token in tokens}


def control_token_at(data: bytes, text: str) -> int | None:
    """The id of the added token that a text begins with, the longest if there are several; None if there is none."""
    added = json.loads(data.decode("utf-8")).get("added_tokens") or []
    found = [(item["content"], item["id"]) for item in added if item["content"] and text.startswith(item["content"])]
    return max(found, key=lambda item: len(item[0]))[1] if found else None


def plain_tokenizer(data: bytes) -> bytes:
    """The tokenizer file without saved truncation and padding; the same bytes if it has none, or is not a tokenizer.

    Training programs save both. transformers sets them anew for each text, but other readers of the file apply them.

    >>> plain_tokenizer(b'{"truncation": {"max_length": 5}, "padding": null}')
    b'{"truncation": null, "padding": null}'
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return data
    if not isinstance(value, dict):
        return data
    saved = [key for key in _PER_CALL if value.get(key) is not None]
    return json.dumps({**value, **dict.fromkeys(saved)}).encode("ascii") if saved else data


def _tokens(file: str, data: bytes) -> list[tuple[str, int]] | Fault:
    """Text and id of every token, the added ones last; or a fault for the first entry that is not a token."""
    for fault in size_faults(file, data):
        return fault
    try:
        # Not with strict_json, because vocabularies of byte-level tokenizers contain lone surrogates.
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return Fault(file, "JSON", f"{type(error).__name__}: {error}"[:120], "a tokenizer in Hugging Face's form")
    model = value.get("model") if isinstance(value, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not vocab:
        return Fault(file, "model vocab", "nothing", "a vocabulary")
    # Unigram vocabularies are lists of texts and scores, and the index of an entry is its id.
    own = vocab.items() if isinstance(vocab, dict) else ((_at(entry, 0), place) for place, entry in enumerate(vocab))
    added = value.get("added_tokens") or []
    if not isinstance(added, list):
        return Fault(file, "added_tokens", shorten(added, 40), "a list")
    if len(vocab) + len(added) > _MAX_TOKENS:
        return Fault(file, "tokens", f"{len(vocab) + len(added):,}", f"at most {_MAX_TOKENS:,}")
    tokens: list[tuple[str, int]] = []
    for text, token in (*own, *((_at(entry, "content"), _at(entry, "id")) for entry in added)):
        if not isinstance(text, str):
            return Fault(file, "tokens", shorten(text, 40), "a text for each")
        if not isinstance(token, int) or token < 0:
            return Fault(file, "token ids", shorten(token, 40), "integers from 0 on")
        tokens.append((text, token))
    return tokens


def _at(entry: Any, place: int | str) -> object:
    """`entry[place]`, or None if there is no such item."""
    try:
        return entry[place]
    except (KeyError, IndexError, TypeError):
        return None
