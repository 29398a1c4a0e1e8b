"""The drafts for answers with a bundle: by prompt lookup, and by its drafter if that finds nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import DRAFTER
from toolkit.runtime.drafts.drafter import DrafterSource
from toolkit.runtime.drafts.prompt_lookup import PromptLookup
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.session import Session


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


class DraftSources:
    """Makes a source for each answer of a session; the first answer loads the drafter, which stays until `close`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._drafter: DrafterSource | None = None

    @property
    def loaded(self) -> bool:
        """Whether the drafter is in memory."""
        return self._drafter is not None

    def for_answer(self, allowed: Collection[str] | None = None) -> DraftSource:
        """Drafts for one answer of the session's size; the drafter guesses only for the size that it was made for, and
        if its group is among those that may be loaded (None for all)."""
        drafter = self.drafter() if allowed is None or "drafter" in allowed else None
        return PromptLookup() if drafter is None else FirstGuess((PromptLookup(), drafter))

    def drafter(self) -> DraftSource | None:
        """The bundle's drafter, loaded now if it is not yet; None if there is none for the session's size, or if this
        copy of the bundle was made without it."""
        session = self._session
        record = session.bundle.manifest.drafter
        if record is None or record.size != session.size or not (session.bundle.path / DRAFTER).exists():
            return None
        if self._drafter is None:
            if record.checkpoint is None:
                self._drafter = DrafterSource.beside(session.bundle, session.backend_options)
            else:
                self._drafter = DrafterSource(*session.drafter())
        return self._drafter

    def close(self) -> None:
        """Free the drafter, unless it is the session's to free; may be called twice."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None
