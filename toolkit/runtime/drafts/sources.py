"""The drafts for answers with a bundle: by prompt lookup, and by its drafter if that finds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.runtime.backends.interface import BackendOptions
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.drafter import DrafterSource
from toolkit.runtime.drafts.prompt_lookup import PromptLookup
from toolkit.runtime.drafts.source import DraftSource


@dataclass(frozen=True, slots=True)
class FirstGuess:
    """Several sources, of which the first one that has a guess is used."""

    sources: Sequence[DraftSource]

    def propose(self, ids: Sequence[int], activations: NDArray[np.float32] | None, most: int) -> Sequence[int]:
        for source in self.sources:
            drafts = source.propose(ids, activations, most)
            if drafts:
                return drafts
        return ()


@dataclass
class DraftSources:
    """Makes a source for each answer with a bundle; the first answer loads the drafter, which stays until `close`."""

    bundle: Bundle
    options: BackendOptions
    _drafter: DrafterSource | None = field(default=None, init=False)

    @property
    def loaded(self) -> bool:
        """Whether the drafter is in memory."""
        return self._drafter is not None

    def for_answer(self, size: str) -> DraftSource:
        """Drafts for one answer of this size; the drafter guesses only for the size that it was fitted to."""
        record = self.bundle.manifest.drafter
        if record is None or record.size != size:
            return PromptLookup()
        if self._drafter is None:
            self._drafter = DrafterSource(self.bundle, self.options)
        return FirstGuess((PromptLookup(), self._drafter))

    def close(self) -> None:
        """Free the drafter; may be called twice."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None
