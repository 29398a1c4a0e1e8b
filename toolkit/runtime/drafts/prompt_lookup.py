"""Prompt lookup: drafts what followed the last tokens where they occurred before, in the prompt or in the answer.

It costs next to nothing and needs no model; summaries, edits and code repeat much of what was said before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST, SHORTEST = 4, 2
"""How many last tokens must have occurred before; a longer match is preferred."""


class PromptLookup:
    """The latest earlier occurrence of the last tokens, found by a table of all runs of 2 to 4 tokens.

    >>> lookup = PromptLookup()
    >>> lookup.propose([5, 6, 7, 8, 9, 5, 6], None, 3)
    [7, 8, 9]
    >>> lookup.propose([5, 6, 7, 8, 9, 5, 6, 1], None, 3)
    []
    """

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, ids: Sequence[int], activations: NDArray[np.float32] | None, most: int) -> Sequence[int]:
        self._index(ids)
        for length in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            start = self._follows.get(tuple(ids[-length:]))
            if start is not None:
                # After the end, the text continues with the guesses themselves, so that a repetition is continued.
                text = list(ids[start:])
                while len(text) < most:
                    text.append(text[len(text) - (len(ids) - start)])
                return text[:most]
        return []

    def _index(self, ids: Sequence[int]) -> None:
        """Record which position follows each run of tokens, up to the runs that end before the last token."""
        for end in range(self._indexed, len(ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._follows[tuple(ids[end - length : end])] = end
        self._indexed = len(ids)
