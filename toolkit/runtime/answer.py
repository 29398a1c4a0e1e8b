"""An answer as text: pieces while it comes, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

from toolkit.runtime.generate import Generation, GenerationReport
from toolkit.runtime.session import Session
from toolkit.runtime.stop_text import StopText
from toolkit.runtime.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """When an answer ends."""

    max_tokens: int | None
    """None: as many as the context holds."""
    stop: tuple[str, ...] = ()
    """Texts that end it."""
    ignore_eos: bool = False
    """Go on behind a token that ends answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(GenerationReport):
    """A whole answer, or what there was of it when it was interrupted."""

    text: str
    """Without control tokens, and without the stop text that ended it."""
    size: str
    """The size that gave it."""


class AnswerStream(Iterator[str]):
    """Iterate over the pieces of an answer's text; `answer` is the whole of it."""

    def __init__(
        self,
        begin: AbstractContextManager[Session],
        generate: Callable[[Session], Generation],
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        ended: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        """Nothing happens before the first piece is asked for: then `begin` gives the session, and is left at the end.

        `ended` is told of an answer, whole or interrupted, but not of one that a fault has ended.
        """
        self._begin = begin
        self._generate = generate
        self._characters = TextStream(tokenizer)
        self._stop = StopText(stop)
        self._ended = ended
        self._written: list[str] = []
        self._answer: Answer | None = None
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer: what has not been asked for yet is computed first. After an interrupt, what there was."""
        for _ in self._pieces:
            pass
        assert self._answer is not None, "a fault has ended it"
        return self._answer

    @property
    def has_answer(self) -> bool:
        """Whether `answer` is there without computing anything more."""
        return self._answer is not None

    def close(self) -> None:
        """End the answer here."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        with self._begin as session:
            generation = self._generate(session)
            try:
                for token in generation:
                    yield from self._let_through(self._characters.push(token))
                    if self._stop.found:
                        generation.end("stop text")
                        break
                yield from self._let_through(self._characters.flush(), last=True)
            except (GeneratorExit, KeyboardInterrupt):
                generation.end("interrupted")
                list(self._let_through(self._characters.flush(), last=True))
                self._finish(generation, session)
                raise
            self._finish(generation, session)

    def _let_through(self, text: str, *, last: bool = False) -> Iterator[str]:
        """The part of the text, if any, that no stop text can begin with; all of it at the end."""
        piece = self._stop.push(text) + (self._stop.flush() if last else "")
        if piece:
            self._written.append(piece)
            yield piece

    def _finish(self, generation: Generation, session: Session) -> None:
        report = generation.report()
        known = {field.name: getattr(report, field.name) for field in fields(report)}
        self._answer = Answer(text="".join(self._written), size=session.size, **known)
        self._ended(self._answer)
