"""Conversations as files of JSON, for `/save` and `/load` of `gemma-edge chat`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from toolkit.base.errors import ToolkitError, UsageError
from toolkit.base.files import write_bytes
from toolkit.base.json_types import AnyText
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.strict_json import read_json_file, read_record, without_format
from toolkit.bundle.chat import Message, Role

FORMAT = "gemma-edge-chat/1"


@dataclass(frozen=True, slots=True)
class _SavedMessage:
    role: Role
    content: Annotated[str, AnyText()]


@dataclass(frozen=True, slots=True)
class _SavedChat:
    messages: tuple[_SavedMessage, ...]


def save_chat(path: Path, messages: Sequence[Message]) -> None:
    """Write a conversation; replace only a file that is one too. UsageError if it has images or sounds."""
    if any(message.media for message in messages):
        raise UsageError("conversation", found="images or sounds", wanted="text only, to be saved")
    target = Output(path, _SAVED_CHAT, offers_force=False).require()
    value = {"format": FORMAT, "messages": [{"role": item.role, "content": item.text} for item in messages]}
    write_bytes(target, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_chat(path: Path) -> tuple[Message, ...]:
    """Read a conversation that `save_chat` wrote; UsageError if it is not one."""
    value = read_json_file(path, UsageError)
    fields = without_format(value, FORMAT, str(path), UsageError)
    chat = read_record(fields, _SavedChat, str(path), UsageError)
    return tuple(Message(item.role, item.content) for item in chat.messages)


def _stranger(path: Path) -> str | None:
    try:
        read_chat(path)
    except ToolkitError:
        return "something other than a saved conversation"
    return None


_SAVED_CHAT = OutputKind("a saved conversation", _stranger)
