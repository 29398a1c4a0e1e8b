"""Checks a checkpoint's tokenizer and chat template before a conversion, and copies them into the bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.huggingface.chat_template import find_template, read_chat_template
from converters.huggingface.transformers_tokenizer import as_transformers_loads
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.bundle.chat import ChatTemplate, turn_end
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER
from toolkit.bundle.tokenizer import MAX_TOKENIZER_BYTES
from toolkit.bundle.tokenizer_file import control_token_at, plain_tokenizer, token_spelling, tokenizer_faults

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """A valid tokenizer, and the source of the chat template; None if the checkpoint has no template."""

    tokenizer: bytes
    template: str | None
    source: Path
    """The directory of the template: the checkpoint's, or an adapter's."""
    turn_end: int | None = None
    """The id of the token that the template writes after an answer; None if it writes none."""

    @property
    def bytes(self) -> int:
        """The size of both files in bytes."""
        return len(self.tokenizer) + len((self.template or "").encode())

    @property
    def hashes(self) -> Mapping[str, str]:
        """The sha256 of each file in hexadecimal, by its name in a bundle."""
        files = {TOKENIZER: self.tokenizer, CHAT_TEMPLATE: None if self.template is None else self.template.encode()}
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if data is not None}

    def copy_to(self, directory: Path) -> None:
        """Write both files into a bundle's directory."""
        (directory / TOKENIZER).write_bytes(self.tokenizer)
        if self.template is not None:
            (directory / CHAT_TEMPLATE).write_text(self.template, encoding="utf-8")


def read_prompt_files(
    checkpoint: Path, vocab_size: int, bos_token_id: int | None = None, *, adapters: Sequence[Path] = ()
) -> PromptFiles:
    """Read both; CheckpointError if one of them is unusable, or if the tokenizer has ids that the model lacks.

    `adapters`: the directories of the merged adapters. Each file comes from the last of them that has it: training
    programs save these files beside an adapter.
    """
    tokenizer = _last_with("tokenizer.json", checkpoint, adapters)
    if not tokenizer.is_file():
        raise CheckpointError(file=checkpoint, found="no tokenizer.json", remedy=_without_tokenizer(checkpoint))
    if tokenizer.stat().st_size > MAX_TOKENIZER_BYTES:
        found, wanted = f"{tokenizer.stat().st_size:,} bytes", f"at most {MAX_TOKENIZER_BYTES:,}"
        raise CheckpointError(file=tokenizer, found=found, wanted=wanted)
    data = tokenizer.read_bytes()
    _require_valid(tokenizer, data, vocab_size)
    loaded = as_transformers_loads(data, tokenizer.parent)
    if loaded is not data:
        _require_valid(tokenizer, loaded, vocab_size)
        data = loaded
    bos_token = token_spelling(data, bos_token_id)
    source = template_directory(checkpoint, adapters)
    template, end = _template(source, checkpoint, bos_token), None
    if template is None:
        _log.warning("%s has no chat template: run and export take only plain text (--raw)", checkpoint)
    else:
        end = _turn_end(ChatTemplate(template, file=checkpoint), data)
    return PromptFiles(plain_tokenizer(data), template, source, end)


def template_directory(checkpoint: Path, adapters: Sequence[Path] = ()) -> Path:
    """The directory of the last adapter that has a chat template, or the checkpoint's."""
    return next((path for path in reversed(adapters) if find_template(path) is not None), checkpoint)


def _template(source: Path, checkpoint: Path, bos_token: str | None) -> str | None:
    """The template in `source`; logs a warning if it is an adapter's and differs from the checkpoint's."""
    template = read_chat_template(source, bos_token)
    if source != checkpoint and template != read_chat_template(checkpoint, bos_token):
        _log.warning("the chat template is that of adapter %s, which differs from the checkpoint's", source.name)
    return template


def _last_with(name: str, checkpoint: Path, adapters: Sequence[Path]) -> Path:
    found = (path / name for path in reversed(adapters) if (path / name).is_file())
    return next(found, checkpoint / name)


def _turn_end(template: ChatTemplate, tokenizer: bytes) -> int | None:
    """The id of the token that ends a turn; None if there is none, with a warning if the template writes a text."""
    text = turn_end(template)
    token = control_token_at(tokenizer, text) if text else None
    if text and token is None:
        _log.warning(
            "the chat template ends a turn with %s, which is not a token: answers may not stop", shorten(text, 40)
        )
    return token


def _require_valid(path: Path, data: bytes, vocab_size: int) -> None:
    for fault in tokenizer_faults(str(path), data, vocab_size):
        raise CheckpointError(fault.fault, file=fault.file, found=fault.found, wanted=fault.wanted)


def _without_tokenizer(checkpoint: Path) -> str:
    if (checkpoint / "tokenizer.model").is_file():
        return (
            "copy tokenizer.json from the base model, or make it from tokenizer.model with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return "copy tokenizer.json from the model that this one was trained from"
