"""The interface of a model that answers prompts, wherever its graphs run; and the one that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.generate import Ending, Generation, GenerationReport
from toolkit.runtime.media_prompt import Span
from toolkit.runtime.memory import Memory
from toolkit.runtime.ple_lookup import PleStatistics
from toolkit.runtime.sampling import Sampler
from toolkit.runtime.session import Session, SessionSettings


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What to answer, and what ends the answer."""

    prompt: Sequence[int]
    """The whole conversation; the tokens that the model already holds are not computed again."""
    sampler: Sampler
    limit: int
    """The maximum number of tokens."""
    stops: Collection[int]
    """Tokens that end the answer."""
    spans: Sequence[Span] = ()
    """The prompt's images and sounds."""
    speculative: bool = False
    """Whether drafts of the next tokens are checked, which gives the same tokens in fewer steps."""
    allowed: Collection[str] | None = None
    """The groups that may be loaded for it; None for all."""


class TokenStream(Protocol):
    """An iterable over the tokens of one answer, with a report. After an interrupt, the tokens so far are kept."""

    def __iter__(self) -> Iterator[int]: ...

    def report(self) -> GenerationReport:
        """The report on the tokens so far; may be called at any time."""

    def end(self, ending: Ending) -> None:
        """Stop here, and record why."""


class Conversation(Protocol):
    """A loaded model and the tokens of one conversation in its KV caches."""

    @property
    def size(self) -> str:
        """The name of the size in use."""

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        """The parameter groups loaded so far, in the manifest's order."""

    def use(self, size: str) -> None:
        """Continue with another size of the bundle."""

    def forget(self) -> None:
        """Remove all tokens."""

    def answer(self, request: AnswerRequest) -> TokenStream:
        """Begin an answer; nothing is computed before its first token is asked for."""

    def memory(self) -> Memory:
        """The memory of the process that runs the graphs, now."""

    def ple_statistics(self) -> PleStatistics:
        """Counts of the lookups of per-layer embeddings so far."""

    def close(self) -> None:
        """Free everything; may be called twice."""


Opener = Callable[[Bundle, SessionSettings], Conversation]
"""Loads a bundle's language model."""


class SessionConversation:
    """A conversation whose graphs run in this process."""

    def __init__(self, bundle: Bundle, settings: SessionSettings) -> None:
        self._session = Session(bundle, settings)
        self._drafts = DraftSources(self._session)
        settings.stage_ended("load")

    @property
    def size(self) -> str:
        return self._session.size

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        loaded = self._session.groups_loaded
        return (*loaded, "drafter") if self._drafts.loaded else loaded

    def use(self, size: str) -> None:
        self._session.use(size)

    def forget(self) -> None:
        self._session.truncate(0)

    def answer(self, request: AnswerRequest) -> Generation:
        return Generation(
            self._session,
            request.prompt,
            request.sampler,
            limit=request.limit,
            stops=request.stops,
            spans=request.spans,
            drafts=self._drafts.for_answer(request.allowed) if request.speculative else None,
        )

    def memory(self) -> Memory:
        return self._session.memory()

    def ple_statistics(self) -> PleStatistics:
        return self._session.ple.statistics

    def close(self) -> None:
        self._drafts.close()
        self._session.close()
