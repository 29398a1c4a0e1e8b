"""Looks into a tokenizer.json without running it: its form, ids that the model has, and how tokens are spelled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from toolkit.bundle.faults import Fault
from toolkit.errors import BundleError


def tokenizer_faults(file: str, data: bytes, vocab_size: int, spelled: Mapping[str, int] | None = None) -> list[Fault]:
    """A fault if `data` is no tokenizer, if it gives ids of `vocab_size` and above, or cannot give one of `spelled`.

    spelled: ids that prompts need, by the manifest's name for each.
    """
    try:
        # Not strict_json: vocabularies of byte-level tokenizers do hold lone surrogates.
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return [Fault(file, "JSON", f"{type(error).__name__}: {error}"[:120], "a tokenizer in Hugging Face's form")]
    model = value.get("model") if isinstance(value, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not vocab:
        return [Fault(file, "model vocab", "nothing", "a vocabulary")]
    added = value.get("added_tokens") or []
    ids = [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    # Unigram vocabularies are lists, and an entry's place is its id.
    ids += list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
    wrong = [token for token in ids if not isinstance(token, int) or not 0 <= token < vocab_size]
    if wrong:
        return [Fault(file, "token ids", str(wrong[0])[:40], f"0 to {vocab_size - 1}, the model's vocabulary")]
    present = {*ids, *(range(len(vocab)) if isinstance(vocab, list) else ())}
    missing = {name: token for name, token in (spelled or {}).items() if token not in present}
    return [Fault(file, name, f"no token {token}", "a spelling of it") for name, token in missing.items()]


def token_spellings(path: Path, ids: Iterable[int]) -> dict[int, str]:
    """How a sound tokenizer spells some of its tokens; BundleError for ids that it does not have."""
    value = json.loads(path.read_text(encoding="utf-8"))
    vocab = value["model"]["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], place) for place, entry in enumerate(vocab))
    texts = {token: text for text, token in pairs}
    texts |= {entry["id"]: entry["content"] for entry in value.get("added_tokens") or []}
    wanted = list(ids)
    for token in wanted:
        if token not in texts:
            raise BundleError(str(path), found=f"no token {token}", wanted="a spelling of every marker")
    return {token: texts[token] for token in wanted}
