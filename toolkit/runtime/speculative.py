"""Speculative decoding: one step checks drafts of the next tokens, and each right draft saves a step.

It changes no token. A step gives the logits after each draft; the next token is drawn from them as usual, and a draft
counts only if it is the token that was drawn. So greedy text is the same, sampled text has the model's distribution,
and with the same seed it is the same text. (For drafts without probabilities of their own, this is the rejection rule:
a draft is accepted with the probability that the model gives it; otherwise, another token is drawn in proportion to
its probability.)

A step with drafts costs more than one without, from a tenth more to several times as much, depending on the types of
the weights and on the processor; a drafter takes time too. So steps are timed including their drafting, and drafts are
left out for a while when they have cost more than they saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.session import Session


@dataclass(frozen=True, slots=True)
class DraftStatistics:
    """What speculative decoding did for one answer; `steps` + `accepted` tokens were generated."""

    steps: int
    """How often the model ran, with or without drafts."""
    offered: int
    """The number of drafts that it checked."""
    accepted: int
    """The number of drafts that were the next tokens, each of which saved a step."""

    def to_json(self) -> dict[str, int]:
        """The object that `run --json` shows."""
        return {"steps": self.steps, "offered": self.offered, "accepted": self.accepted}


TRIAL, PAUSE = 4, 24
"""How many steps with drafts are timed before deciding whether drafts pay, and how many steps without drafts follow if
they do not."""


class SpeculativeDecoder:
    """Takes tokens and returns logits like `Session.decode`, but computes the logits of several at once."""

    def __init__(
        self,
        session: Session,
        source: DraftSource,
        processed: Sequence[int],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`processed`: the tokens that the session holds; `clock`: seconds."""
        require_drafts(session.bundle)
        assert session.text.draft_tokens is not None
        self._session = session
        self._source = source
        self._most = session.text.draft_tokens
        self._ids = list(processed)
        self._drafts: Sequence[int] = ()
        self._logits = np.empty((0, session.text.vocab_size), np.float32)
        self._activations = np.empty((0, session.text.hidden_size), np.float32)
        self._row = 0
        self._steps = self._offered = self._accepted = 0
        self._clock = clock
        # The shortest step of each kind; longer steps were disturbed, or prepared a signature.
        self._plain_s = self._checked_s = math.inf
        self._trial_steps = self._trial_accepted = self._pause = 0

    @property
    def statistics(self) -> DraftStatistics:
        """The counts so far."""
        return DraftStatistics(self._steps, self._offered, self._accepted)

    def decode(self, token: int) -> NDArray[np.float32]:
        """Return the logits f32[vocabulary] after a token; they are computed unless a draft was the same token."""
        self._ids.append(token)
        if self._row < len(self._drafts) and self._drafts[self._row] == token:
            self._row += 1
            self._accepted += 1
            self._trial_accepted += 1
        else:
            self._step(token)
        logits: NDArray[np.float32] = self._logits[self._row]
        return logits

    def _step(self, token: int) -> None:
        """Remove the wrong drafts of the last step; process the token, and drafts after it if there are any."""
        session, before = self._session, len(self._ids) - 1
        if before < session.position:
            session.truncate(before)
        started = self._clock()
        drafts = self._propose()
        if drafts:
            self._logits = session.verify([token, *drafts])
            self._checked_s = min(self._checked_s, self._clock() - started)
            self._trial_steps += 1
        else:
            self._logits = session.decode(token)[None]
            self._plain_s = min(self._plain_s, self._clock() - started)
        self._activations = session.activations()
        self._drafts, self._row = drafts, 0
        self._steps += 1
        self._offered += len(drafts)

    def _propose(self) -> Sequence[int]:
        """Drafts; none if a step that checks them would exceed the context, or while drafts do not pay."""
        if self._session.position + self._most + 1 > self._session.context or not self._pays():
            return ()
        known = self._activations[self._row] if len(self._activations) else None
        drafts = self._source.propose(self._ids, known, self._most)
        return tuple(drafts[: self._most])

    def _pays(self) -> bool:
        """Whether the last steps with drafts took no longer than their tokens would have taken without drafts."""
        if self._pause:
            self._pause -= 1
            return False
        if self._trial_steps < TRIAL:
            return True
        tokens = 1 + self._trial_accepted / self._trial_steps
        self._trial_steps = self._trial_accepted = 0
        if math.isinf(self._plain_s):  # there were drafts from the first step on; a step without them is to be timed
            return False
        if tokens * self._plain_s >= self._checked_s:
            return True
        self._pause = PAUSE - 1
        return False


def require_drafts(bundle: Bundle) -> None:
    """Raise BundleError if a bundle cannot check drafts."""
    if bundle.manifest.text.draft_tokens is None:
        raise BundleError(
            file=bundle.path,
            found="no steps that check drafted tokens, which speculative decoding needs",
            remedy="convert the checkpoint with --draft-tokens 3 or --drafter, or leave out --speculative",
        )
