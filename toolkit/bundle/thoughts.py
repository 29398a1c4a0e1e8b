"""How Gemma 4 writes thoughts: in a channel of their own, before the answer, if its chat template asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.chat import free_variables
from toolkit.bundle.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Channel:
    """What surrounds the parts of an answer that are thoughts, and how LiteRT-LM's engine names them to an app."""

    name: str
    start: str
    end: str


BEGIN, END, HEADING = "<|channel>", "<channel|>", "thought\n"
THOUGHTS = Channel("thought", BEGIN + HEADING, END)


@dataclass(frozen=True, slots=True)
class ThoughtTokens:
    """The control tokens around a thought, whose text begins with `HEADING`."""

    begin: int
    end: int


def asks_for_thoughts(template: str, file: Path | None = None) -> bool:
    """Whether a chat template can ask the model to think first; BundleError if it is not a template."""
    return "enable_thinking" in free_variables(template, file)


def thought_tokens(tokenizer: Tokenizer) -> ThoughtTokens | None:
    """Those of a tokenizer; None if it has none."""
    begin, end = tokenizer.id_of(BEGIN), tokenizer.id_of(END)
    return None if begin is None or end is None else ThoughtTokens(begin, end)


class ThoughtText:
    r"""Takes the heading off the text of a thought, piece by piece.

    >>> thought = ThoughtText()
    >>> thought.push("thou"), thought.push("ght\nIt is"), thought.push(" red.")
    ('', 'It is', ' red.')
    """

    def __init__(self) -> None:
        self._held: str | None = ""

    def push(self, piece: str) -> str:
        """The text of the thought that is certain after this piece."""
        if self._held is None:
            return piece
        self._held += piece
        if len(self._held) < len(HEADING) and HEADING.startswith(self._held):
            return ""
        text, self._held = self._held.removeprefix(HEADING), None
        return text
