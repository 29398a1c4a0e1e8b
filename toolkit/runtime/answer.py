"""Streams the text of an answer, and collects the complete answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

from toolkit.base.errors import UsageError
from toolkit.bundle.thoughts import ThoughtText, ThoughtTokens
from toolkit.bundle.tokenizer import TextStream, Tokenizer
from toolkit.runtime.conversation import AnswerRequest, Conversation, TokenStream
from toolkit.runtime.generate import GenerationReport
from toolkit.runtime.stop_text import StopText


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """The conditions that end an answer."""

    max_tokens: int | None
    """The maximum number of tokens; None for as many as the context holds."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    ignore_eos: bool = False
    """Continue after a token that ends answers."""
    speculative: bool = False
    """Decode speculatively."""
    thinking: bool = False
    """Let the model think before it answers."""


def stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The texts that end an answer, given as one text or several."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(GenerationReport):
    """A complete answer, or the part of it that was generated before an interrupt."""

    text: str
    """The text without control tokens, without thoughts, and without the stop text that ended it."""
    thought: str | None
    """What the model thought before, without control tokens; None if it did not think."""
    size: str
    """The size that generated it."""


class AnswerStream(Iterator[str]):
    """An iterator over the pieces of an answer's text; `answer` is the complete answer.

    One that nobody refers to any more is closed.
    """

    def __init__(
        self,
        begin: AbstractContextManager[Conversation],
        request: AnswerRequest,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        thoughts: ThoughtTokens | None = None,
        on_thought: Callable[[str], None] = lambda _: None,
        ended: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        """Do nothing until the first piece is requested; then enter `begin`, which gives the model, and leave it at the
        end.

        `thoughts`: the tokens around what is no part of the text, and goes to `on_thought` piece by piece. `ended` is
        called with the complete or interrupted answer, but not after an error.
        """
        self._text = _AnswerText(begin, request, tokenizer, stop, thoughts, on_thought, ended)
        self._pieces = self._text.pieces()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The complete answer, after the rest of it is generated; after an interrupt, the part until then.

        UsageError if there is none, because the stream was closed before its first piece, or an error ended it.
        """
        for _ in self._pieces:
            pass
        if self._text.answer is None:
            raise UsageError("answer", found="none: it was closed before its first piece, or an error ended it")
        return self._text.answer

    @property
    def has_answer(self) -> bool:
        """Whether `answer` is available without generating more."""
        return self._text.answer is not None

    def close(self) -> None:
        """End the answer here."""
        self._pieces.close()


class _AnswerText:
    """The text of an answer while it is generated.

    It is apart from the stream, which holds the generator `pieces`: if the generator held the stream too, a stream that
    was dropped would keep the model locked until Python looks for cycles.
    """

    def __init__(
        self,
        begin: AbstractContextManager[Conversation],
        request: AnswerRequest,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        thoughts: ThoughtTokens | None,
        on_thought: Callable[[str], None],
        ended: Callable[[Answer], None],
    ) -> None:
        self.answer: Answer | None = None
        self._begin = begin
        self._request = request
        self._characters = TextStream(tokenizer)
        self._thoughts, self._on_thought = thoughts, on_thought
        self._thought: ThoughtText | None = None
        self._thought_pieces: list[str] | None = None
        self._stop = StopText(stop)
        self._ended = ended
        self._written: list[str] = []

    def pieces(self) -> Generator[str, None, None]:
        """Generate the answer; afterwards `answer` has it."""
        with self._begin as conversation:
            tokens = conversation.answer(self._request)
            try:
                for token in tokens:
                    yield from self._take(token)
                    if self._stop.found:
                        tokens.end("stop text")
                        break
                yield from self._let_through(self._rest(), last=True)
            except (GeneratorExit, KeyboardInterrupt):
                tokens.end("interrupted")
                list(self._let_through(self._rest(), last=True))
                self._finish(tokens, conversation)
                raise
            self._finish(tokens, conversation)

    def _take(self, token: int) -> Iterator[str]:
        """Yield the text that a token completes, unless it belongs to a thought."""
        thoughts = self._thoughts
        if thoughts is not None and self._thought is None and token == thoughts.begin:
            yield from self._let_through(self._characters.flush())
            self._thought, self._thought_pieces = ThoughtText(), self._thought_pieces or []
        elif self._thought is None:
            yield from self._let_through(self._characters.push(token))
        elif thoughts is not None and token == thoughts.end:
            self._think(self._characters.flush())
            self._thought = None
        else:
            self._think(self._characters.push(token))

    def _rest(self) -> str:
        """The text that is held back at the end, unless it belongs to a thought."""
        text = self._characters.flush()
        if self._thought is None:
            return text
        self._think(text)
        return ""

    def _think(self, text: str) -> None:
        """Pass on the text of a thought."""
        assert self._thought is not None and self._thought_pieces is not None
        piece = self._thought.push(text)
        if piece:
            self._thought_pieces.append(piece)
            self._on_thought(piece)

    def _let_through(self, text: str, *, last: bool = False) -> Iterator[str]:
        """Yield the text that is certainly not part of a stop text, if there is any; at the end, all text."""
        piece = self._stop.push(text) + (self._stop.flush() if last else "")
        if piece:
            self._written.append(piece)
            yield piece

    def _finish(self, tokens: TokenStream, conversation: Conversation) -> None:
        report = tokens.report()
        known = {field.name: getattr(report, field.name) for field in fields(report)}
        thought = None if self._thought_pieces is None else "".join(self._thought_pieces).strip()
        self.answer = Answer(text="".join(self._written), thought=thought, size=conversation.size, **known)
        self._ended(self.answer)
