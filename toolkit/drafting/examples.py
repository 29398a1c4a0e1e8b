"""The examples that a drafter is fitted to: a token, the state before it, and the state and token that followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.drafting.passages import Passage

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of passages, in order. From `tokens[i]` and `states[at[i] - 1]` a drafter is to guess `states[at[i]]`, the
    state from which the model predicts `following[i]`.

    `tokens`, `following`, `at` and `passage`, the number of the passage that a row comes from, are i64[rows].
    """

    states: F32
    """f32[all states, hidden], one passage after the other."""
    at: I64
    tokens: I64
    following: I64
    passage: I64
    greedy: NDArray[np.bool_]
    """For each row, whether the model wrote its token greedily."""

    @classmethod
    def of(cls, passages: Sequence[Passage]) -> Examples:
        """The rows of passages: all tokens with a state before and after them."""
        at, tokens, following, passage, greedy, start = [], [], [], [], [], 0
        for index, one in enumerate(passages):
            places = np.arange(one.first + 1, len(one.ids) - 1)
            at.append(start + places - one.first)
            tokens.append(np.array(one.ids, np.int64)[places])
            following.append(np.array(one.likeliest, np.int64)[1:])
            passage.append(np.full(len(places), index))
            greedy.append(places >= one.opening)
            start += len(one.states)
        states = np.concatenate([one.states for one in passages])
        return cls(states, *(np.concatenate(part) for part in (at, tokens, following, passage, greedy)))

    def __len__(self) -> int:
        return len(self.at)

    def fitted(self) -> I64:
        """The rows of the passages that a drafter is fitted to: all but every fifth."""
        return np.flatnonzero(self.passage % 5 != 4)

    def judging(self, drafts: int) -> I64:
        """The greedy rows of some other passages that begin `drafts` rows: a drafter is judged by them."""
        return self._greedy_starts(drafts, (4, 9))

    def choosing(self, drafts: int) -> I64:
        """The same of the remaining passages: by these one of several drafters may be chosen."""
        return self._greedy_starts(drafts, (14, 19))

    def _greedy_starts(self, drafts: int, passages: tuple[int, int]) -> I64:
        """Of twenty passages two: with an even and an odd number, since every other one is a chat."""
        starts = self.starts(drafts)
        kept: I64 = starts[(self.greedy & np.isin(self.passage % 20, passages))[starts]]
        return kept

    def starts(self, drafts: int) -> I64:
        """The rows that are the first of `drafts` consecutive rows of one passage."""
        last = np.arange(len(self) - drafts + 1) + drafts - 1
        return np.flatnonzero(self.passage[last] == self.passage[last - drafts + 1])
