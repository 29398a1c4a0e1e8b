"""The tokenizer of a checkpoint as transformers loads it: tokenizer.json, with the tokens in its other files.

Source: transformers 5.24 tokenization_utils_tokenizers.py (TokenizersBackend.__init__), tokenization_gemma.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converters.huggingface.chat_template import special_tokens

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
_NAMED = _FLAGS | {"normalized": False, "special": True}
"""The flags of a token that is named without flags."""
_GEMMA = ("GemmaTokenizer", "GemmaTokenizerFast")
# The parts that transformers' class for Gemma builds, whatever tokenizer.json says.
_GEMMA_PARTS: Mapping[str, object] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    "pre_tokenizer": {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}  # fmt: skip
_GEMMA_MODEL: Mapping[str, object] = {"fuse_unk": True, "dropout": None, "byte_fallback": True}


def as_transformers_loads(data: bytes, checkpoint: Path) -> bytes:
    """tokenizer.json with what transformers adds to it and changes in it; the same bytes if that is nothing.

    `data`: a tokenizer.json for which `tokenizer_faults` finds no fault.
    """
    value = json.loads(data.decode("utf-8"))
    named = special_tokens(checkpoint)  # first, because it raises errors for files that are not JSON
    config = _read_config(checkpoint)
    changed = _with_tokens(value, _declared_tokens(config, named.values()))
    if config.get("tokenizer_class") in _GEMMA and value["model"].get("type") == "BPE":
        changed |= _as_gemma({**value, **changed})
    return json.dumps({**value, **changed}).encode("ascii") if changed else data


def _read_config(checkpoint: Path) -> Mapping[str, Any]:
    path = checkpoint / "tokenizer_config.json"
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _declared_tokens(config: Mapping[str, Any], special: Iterable[str]) -> dict[str, dict[str, bool] | None]:
    """The texts of tokens that files other than tokenizer.json name, with their flags if these are stated."""
    stated = config.get("added_tokens_decoder")
    declared: dict[str, dict[str, bool] | None] = {}
    for item in stated.values() if isinstance(stated, dict) else ():
        if isinstance(item, dict) and isinstance(item.get("content"), str):
            usual = {**_FLAGS, "normalized": not item.get("special")}
            declared[item["content"]] = {key: bool(item.get(key, default)) for key, default in usual.items()}
    named = list(special)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        found = config.get(key)
        named += [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
    return dict.fromkeys(filter(None, named)) | declared


def _with_tokens(value: Mapping[str, Any], declared: Mapping[str, dict[str, bool] | None]) -> dict[str, object]:
    """`added_tokens` and `model` with the declared tokens that are missing or have other flags; empty if none are."""
    added: list[dict[str, Any]] = [dict(item) for item in value.get("added_tokens") or []]
    known = {item["content"]: item for item in added}
    vocabulary = value["model"]["vocab"]
    new: dict[str, int] = {}
    unused = max([len(vocabulary), *(item["id"] + 1 for item in added)])
    changed = False
    for text, flags in declared.items():
        if text not in known:
            token = vocabulary.get(text) if isinstance(vocabulary, dict) else None
            if token is None:
                token = new[text] = unused
            unused = max(unused, token + 1)
            known[text] = {"id": token, "content": text, **(flags or _NAMED)}
            added.append(known[text])
            changed = True
        elif flags is not None and any(known[text].get(key, _FLAGS[key]) != flags[key] for key in _FLAGS):
            known[text].update(flags)
            changed = True
    if not changed:
        return {}
    found: dict[str, object] = {"added_tokens": sorted(added, key=lambda item: int(item["id"]))}
    # The library renumbers added tokens when it reads the file, unless the vocabulary has them.
    if new and isinstance(vocabulary, dict):
        found["model"] = {**value["model"], "vocab": {**vocabulary, **new}}
    return found


def _as_gemma(value: Mapping[str, Any]) -> dict[str, object]:
    """The parts that transformers' class replaces, if they differ."""
    changed: dict[str, object] = {key: part for key, part in _GEMMA_PARTS.items() if value.get(key) != part}
    model = value["model"]
    if any(model.get(key) != wanted for key, wanted in _GEMMA_MODEL.items()):
        changed["model"] = {**model, **_GEMMA_MODEL}
    return changed
