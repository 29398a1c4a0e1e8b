"""Finds the texts that end an answer, while the answer is generated."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.base.errors import UsageError


class StopText:
    """Passes text on up to the first stop text; holds back a text's end that may become a stop text.

    >>> stop = StopText(["END"])
    >>> stop.push("one E"), stop.push("gg, EN"), stop.push("D, two"), stop.found
    ('one ', 'Egg, ', '', True)
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """UsageError for an empty text."""
        if not all(texts):
            raise UsageError("stop text", found="an empty one", wanted="at least one character")
        self.found = False
        """Whether a stop text was found; no more text is passed on then."""
        self._texts = tuple(texts)
        self._held = ""

    def push(self, piece: str) -> str:
        """Add a piece of text; return what is certainly not part of a stop text."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in map(text.find, self._texts) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = self._begun(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The text that is still held back at the end."""
        text, self._held = self._held, ""
        return text

    def _begun(self, text: str) -> int:
        """The number of characters at the end of the text that are the beginning of a stop text."""
        longest = max((len(stop) for stop in self._texts), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._texts)), 0)
