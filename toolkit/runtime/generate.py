"""Generates the tokens of an answer, and measures the speed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.base.errors import UsageError
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.media_prompt import Span
from toolkit.runtime.sampling import Sampler
from toolkit.runtime.session import Session
from toolkit.runtime.speculative import DraftStatistics, SpeculativeDecoder

Ending = Literal["stop token", "stop text", "length", "context", "interrupted"]
"""Why an answer ended: a token or text that ends answers, the maximum number of tokens, a full context, the caller."""


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """The generated tokens and the speed; a rate is None if no tokens count for it."""

    token_ids: tuple[int, ...]
    """The generated ids, including the stop token if there is one."""
    prompt_tokens: int
    reused_tokens: int
    """How many prompt tokens were already in the caches from an earlier turn."""
    ending: Ending
    prefill_tokens_per_s: float | None
    """The speed for new prompt tokens except the last, which belongs to the first decode step."""
    decode_tokens_per_s: float | None
    """The speed for tokens after the first, whose step is part of `time_to_first_token_s`."""
    time_to_first_token_s: float | None
    """From the prompt's ids to the first generated one: `media_s`, prefill, and one decode step, without loading the
    language model. It includes a session's first call of a signature, which takes longer than later ones."""
    media_s: float | None
    """The time for loading towers and embedding images and sounds; None if there were no new ones."""
    drafts: DraftStatistics | None = None
    """What speculative decoding did; None without it."""


class Generation:
    """An iterable over the tokens of one answer, with a report. After an interrupt, the tokens so far are kept."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        limit: int,
        stops: Collection[int],
        spans: Sequence[Span] = (),
        drafts: DraftSource | None = None,
    ) -> None:
        """`prompt` is the whole conversation; the tokens that the session already holds are not computed again.

        `limit`: the maximum number of tokens; `stops`: tokens that end the answer; `spans`: the prompt's images and
        sounds; `drafts`: guesses the next tokens, for speculative decoding.
        """
        require_prompt(prompt, limit=limit, context=session.context)
        self._speculation = None if drafts is None else SpeculativeDecoder(session, drafts, prompt[:-1])
        self._session = session
        self._prompt = prompt
        self._spans = spans
        self._sampler = sampler
        self._limit = limit
        self._stops = stops
        self._tokens: list[int] = []
        self._ending: Ending = "interrupted"
        self._reused = 0
        self._embedded = False
        self._media_s = 0.0
        self._prefill_s = 0.0
        self._first_s = 0.0
        self._decode_s = 0.0

    def __iter__(self) -> Iterator[int]:
        session = self._session
        started = time.perf_counter()
        self._reused = session.rewind_to(self._prompt, self._spans)
        self._media_s = time.perf_counter() - started
        self._embedded = any(span.end > self._reused for span in self._spans)
        session.prefill(self._prompt[self._reused : -1])
        self._prefill_s = time.perf_counter() - started - self._media_s
        session.stage_ended("prefill")
        token, seen = self._prompt[-1], set(self._prompt)
        decode = session.decode if self._speculation is None else self._speculation.decode
        ended: Ending | None = None
        while ended is None:
            step_started = time.perf_counter()
            token = self._sampler.draw(decode(token), seen)
            now = time.perf_counter()
            # The time that the caller takes between tokens is not counted.
            if self._tokens:
                self._decode_s += now - step_started
            else:
                self._first_s = now - started
            self._tokens.append(token)
            seen.add(token)
            ended = self._end_after(token)
            self._ending = ended or "interrupted"
            yield token

    def report(self) -> GenerationReport:
        """The report on the tokens so far; may be called at any time."""
        return GenerationReport(
            token_ids=tuple(self._tokens),
            prompt_tokens=len(self._prompt),
            reused_tokens=self._reused,
            ending=self._ending,
            prefill_tokens_per_s=rate(len(self._prompt) - 1 - self._reused, self._prefill_s),
            decode_tokens_per_s=rate(len(self._tokens) - 1, self._decode_s),
            time_to_first_token_s=self._first_s or None,
            media_s=self._media_s if self._embedded else None,
            drafts=None if self._speculation is None else self._speculation.statistics,
        )

    def end(self, ending: Ending) -> None:
        """Record why the caller stopped the answer, whatever its last token was."""
        self._ending = ending

    def _end_after(self, token: int) -> Ending | None:
        if token in self._stops:
            return "stop token"
        if len(self._tokens) == self._limit:
            return "length"
        # The last token is not in the caches yet.
        return "context" if len(self._prompt) + len(self._tokens) > self._session.context else None


def require_prompt(prompt: Sequence[int], *, limit: int, context: int) -> None:
    """UsageError for an empty prompt, one longer than the context, or a limit below 1."""
    if limit < 1:
        raise UsageError("number of tokens", found=limit, wanted="at least 1")
    if not prompt:
        raise UsageError("prompt", found="no tokens")
    if len(prompt) > context:
        raise UsageError(
            "prompt",
            found=f"{len(prompt)} tokens",
            wanted=f"at most {context}, the bundle's context",
            remedy="shorten it, or convert with a larger --context",
        )


def rate(count: int, seconds: float) -> float | None:
    """Tokens per second; None if there are no tokens, or no time was measured."""
    return count / seconds if count > 0 and seconds > 0 else None
