"""A conversation on a machine with bundle_runner: what it already holds of a prompt is not computed again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from device_harness.native.client import MediumUse, NativeClient, NativeGeneration
from toolkit.base.errors import UsageError
from toolkit.runtime.media_prompt import Medium, Span, first_difference
from toolkit.runtime.sampling import Sampling


class NativeConversation:
    """The tokens in the program's caches, and the images and sounds among them."""

    def __init__(self, client: NativeClient) -> None:
        """The client must have opened a bundle."""
        self._client = client
        self._ids: list[int] | None = []
        """None if they are not known: from the beginning of an answer until its end is noted."""
        self._prompt: list[int] = []
        self._spans: tuple[Span, ...] = ()
        self.media_s: float | None = None
        """How long it took to embed the images and sounds of the last prompt; None if none was new."""

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        spans: Sequence[Span] = (),
        limit: int | None = None,
        stops: Sequence[int] | None = None,
        vocabulary: int | None = None,
        drawn: int = 0,
    ) -> tuple[int, NativeGeneration]:
        """Begin to answer a prompt, the whole conversation; return how many of its tokens were there already.

        Iterate over the generation, or stop it, then call `note` with its tokens.
        """
        if not prompt:
            raise UsageError("prompt", found="no tokens")
        known, self._ids = self._ids, None
        kept = self._rewind(known, prompt, spans)
        self._embed([span.medium for span in spans if span.end > kept])
        uses = [MediumUse(span.medium.key, span.start - kept) for span in spans if span.end > kept]
        self._prompt, self._spans = list(prompt), tuple(spans)
        generation = self._client.generate(
            prompt[kept:], sampling, limit=limit, stops=stops, vocabulary=vocabulary, drawn=drawn, media=uses,
            earlier=prompt[:kept],
        )  # fmt: skip
        return kept, generation

    def note(self, tokens: Sequence[int], position: int) -> None:
        """Record the tokens of an answer that is over; `position`: of the generation's end."""
        self._ids = [*self._prompt, *tokens][:position]

    def forget(self) -> None:
        """Keep no token for the next prompt."""
        self._ids = None

    def _embed(self, media: Sequence[Medium]) -> None:
        """Embed what the program lacks, and free the embeddings of earlier prompts, which are in the caches."""
        started = time.perf_counter()
        self._client.forget_media_but(media)
        for medium in media:
            self._client.embed(medium)
        self.media_s = time.perf_counter() - started if media else None

    def _rewind(self, known: list[int] | None, prompt: Sequence[int], spans: Sequence[Span]) -> int:
        """Keep the tokens that both conversations begin with, but not all of the prompt; return their number.

        `known`: the tokens in the caches; None keeps none.
        """
        if known is None:
            self._client.truncate(0)
            return 0
        common = 0
        while common < min(len(known), len(prompt) - 1) and known[common] == prompt[common]:
            common += 1
        common = min(common, first_difference(self._spans, spans, len(prompt)))
        if common == len(known):
            return common
        with contextlib.suppress(UsageError):  # further back than the sliding windows' caches reach
            self._client.truncate(common)
            return common
        self._client.truncate(0)
        return 0
