"""A checkpoint's tokenizer and chat template, looked at before the work that needs them, and copied with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER
from toolkit.bundle.tokenizer_file import tokenizer_faults
from toolkit.runtime.chat import ChatTemplate


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """A sound tokenizer, and the template's source, from wherever the checkpoint keeps it; None where it has none."""

    tokenizer: Path
    template: str | None

    @property
    def bytes(self) -> int:
        """What their copies take."""
        return self.tokenizer.stat().st_size + len((self.template or "").encode())

    def copy_to(self, directory: Path) -> None:
        """The tokenizer as it is."""
        shutil.copyfile(self.tokenizer, directory / TOKENIZER)
        if self.template is not None:
            (directory / CHAT_TEMPLATE).write_text(self.template, encoding="utf-8")


def read_prompt_files(checkpoint: Path, vocab_size: int) -> PromptFiles:
    """CheckpointError where one of them could not be used, or the tokenizer has ids that the model has not."""
    tokenizer = checkpoint / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(
            file=checkpoint,
            found="no tokenizer.json",
            remedy="save the tokenizer in Hugging Face's form beside the weights",
        )
    for fault in tokenizer_faults(str(tokenizer), tokenizer.read_bytes(), vocab_size):
        raise CheckpointError(fault.fault, file=fault.file, found=fault.found, wanted=fault.wanted)
    template = _chat_template(checkpoint)
    if template is not None:
        ChatTemplate(template, file=checkpoint)
    return PromptFiles(tokenizer, template)


def _chat_template(checkpoint: Path) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = checkpoint / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            template = text if name.endswith(".jinja") else _stated_template(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(file=path, found=f"no chat template in UTF-8 ({shorten(str(error))})") from error
        if template is not None:
            return template
    return None


def _stated_template(text: str) -> str | None:
    """ValueError for text that is no JSON. Not strict_json: transformers writes 10^30 for texts without a limit."""
    value = json.loads(text)
    template = value.get("chat_template") if isinstance(value, dict) else None
    if not isinstance(template, str):
        return None
    template.encode("utf-8")  # a lone surrogate cannot be written
    return template
