"""Reads a checkpoint's chat template from any of its files, with the variables that transformers passes to it.

Source: transformers 5.24 tokenization_utils_base.py (get_chat_template, special_tokens_map), processing_utils.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import CheckpointError
from toolkit.base.json_types import kind_of
from toolkit.base.strict_json import shorten
from toolkit.bundle.chat import MAX_TEMPLATE_BYTES, bind_variables, free_variables, read_bounded_text

_TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_FILES = ("chat_template.jinja", "chat_template.json", _TOKENIZER_CONFIG)
_DEFAULT = "default"
MAX_CONFIG_BYTES = 16_000_000  # the published tokenizer_config.json has 1.2 MB


def read_chat_template(checkpoint: Path, bos_token: str | None = None) -> str | None:
    """Read the template that transformers renders without tools, and set its special tokens; None if there is none.

    `bos_token`: the value that a runtime passes as `bos_token`; if the checkpoint states another value, that is set.
    CheckpointError if a file is not text, if no named template is the default, or if the template is empty.
    """
    source = find_template(checkpoint)
    if source is None:
        return None
    if not source.strip():
        raise CheckpointError(
            "chat template",
            file=checkpoint,
            found="an empty template, which makes every prompt empty",
            remedy="remove it, or copy chat_template.jinja from the model this one was trained from",
        )
    tokens = special_tokens(checkpoint)
    if tokens.get("bos_token") == bos_token:
        tokens.pop("bos_token", None)
    used = free_variables(source, checkpoint)
    return bind_variables(source, {name: text for name, text in sorted(tokens.items()) if name in used})


def find_template(checkpoint: Path) -> str | None:
    """The template as its makers wrote it, from the first of the files that has one."""
    for name in _FILES:
        path = checkpoint / name
        if not os.path.lexists(path):
            continue
        text = read_bounded_text(path, CheckpointError, MAX_CONFIG_BYTES)
        try:
            stated = text if name.endswith(".jinja") else _key_of(json.loads(text), "chat_template")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(file=path, found=f"no chat template in UTF-8 ({shorten(str(error))})") from error
        template = _chosen_template(stated, path)
        if template is not None:
            _require_template(template, path)
            return template
    return None


def _key_of(value: object, key: str) -> object:
    """The value of one key; not read with strict_json, because transformers writes 10^30 for unlimited lengths."""
    return value.get(key) if isinstance(value, dict) else None


def _chosen_template(stated: object, path: Path) -> str | None:
    """The template itself if it is a text; of several named templates, in a list or an object, the default one."""
    if stated is None or isinstance(stated, str):
        return stated
    pairs: list[tuple[object, object]] = []
    if isinstance(stated, list):
        pairs = [(_key_of(item, "name"), _key_of(item, "template")) for item in stated]
    elif isinstance(stated, dict):
        pairs = list(stated.items())
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if not isinstance(stated, list | dict) or not all(isinstance(text, str) for pair in pairs for text in pair):
        wanted = "a text, or texts with their names"
        raise CheckpointError("chat_template", file=path, found=kind_of(stated), wanted=wanted)
    if not named:
        return None
    if _DEFAULT not in named:
        raise CheckpointError(
            "chat_template",
            file=path,
            found=f"templates called {shorten(', '.join(named))}",
            wanted=f"one called {_DEFAULT}, which transformers uses",
            remedy="save the wanted one as chat_template.jinja",
        )
    return named[_DEFAULT]


def _require_template(template: str, path: Path) -> None:
    try:
        size = len(template.encode("utf-8"))
    except UnicodeEncodeError as error:  # a lone surrogate cannot be written
        raise CheckpointError(file=path, found=f"no chat template in UTF-8 ({error.reason})") from error
    if size > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            "chat template", file=path, found=f"{size:,} bytes", wanted=f"at most {MAX_TEMPLATE_BYTES:,}"
        )


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """The special tokens by the names that templates use: bos_token, eos_token and so on, and the model's own."""
    tokens: dict[str, str] = {}
    for name in (_SPECIAL_TOKENS, _TOKENIZER_CONFIG):
        path = checkpoint / name
        if not os.path.lexists(path):
            continue
        text = read_bounded_text(path, CheckpointError, MAX_CONFIG_BYTES)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(file=path, found=f"not JSON in UTF-8 ({shorten(str(error))})") from error
        extra = _key_of(value, "extra_special_tokens")
        for group in (extra, value):
            if isinstance(group, dict):
                tokens |= _token_texts(group)
    return tokens


def _token_texts(group: Mapping[str, object]) -> dict[str, str]:
    """The texts of tokens, which are stored as texts, or as objects that also state how a token is matched."""
    found: dict[str, str] = {}
    for key, value in group.items():
        text = _key_of(value, "content") if isinstance(value, dict) else value
        if key.endswith("_token") and key.isidentifier() and isinstance(text, str):
            found[key] = text
    return found
