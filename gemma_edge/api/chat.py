"""A conversation with a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from toolkit.base.errors import UsageError
from toolkit.bundle.chat import Message, check_roles
from toolkit.bundle.tokenizer import require_unicode
from toolkit.media.source import MediaSource
from toolkit.runtime.answer import Answer, AnswerSettings, AnswerStream
from toolkit.runtime.media_prompt import MediaFile, Medium
from toolkit.runtime.sampling import Sampler

if TYPE_CHECKING:
    from gemma_edge.api.model import Model


class Chat:
    """A conversation. Only new tokens are computed, unless the model has answered another prompt in between."""

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        settings: AnswerSettings,
        *,
        system: str | None = None,
        size: str | None = None,
    ) -> None:
        """Use `Model.chat` instead, which chooses the sampler and the settings."""
        self._model = model
        self._size = model.require_size(size)
        self._sampler = sampler
        self._settings = settings
        self.system = system
        self._turns: tuple[_Turn, ...] = ()
        self._conversation = object()

    def send(
        self,
        text: str,
        *,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
        media: Sequence[MediaFile | Medium] = (),
        on_text: Callable[[str], None] | None = None,
        on_thought: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Send a message, and return the answer; arguments and errors are those of `Model.generate`.

        After an error the conversation is unchanged.
        """
        stream = self.stream(text, images=images, audio=audio, media=media, on_thought=on_thought)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.answer

    def stream(
        self,
        text: str,
        *,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
        media: Sequence[MediaFile | Medium] = (),
        on_thought: Callable[[str], None] = lambda _: None,
    ) -> AnswerStream:
        """Like `send`, but piece by piece. If interrupted, the conversation keeps the part of the answer so far.

        UsageError at the first piece if the conversation has changed since this call.
        """
        turns = self._turns
        shown = self._model.read_media(media, images=images, audio=audio)
        message = self._model.user_message(text, shown)
        prompt = self._model.prompt_of(
            [*self.history, message],
            [*(medium for turn in self._turns for medium in turn.media), *shown],
            thinking=self._settings.thinking,
        )
        if len(prompt.ids) > self._model.context:
            found, wanted = f"{len(prompt.ids)} tokens", f"at most {self._model.context}, the bundle's context"
            raise UsageError(
                "conversation", found=found, wanted=wanted, remedy="shorten the message, or start again with /reset"
            )
        return self._model.answer_to(
            prompt,
            self._sampler,
            self._settings,
            size=self._size,
            conversation=self._conversation,
            begins=partial(self._require_same, turns),
            on_thought=on_thought,
            ended=partial(self._remember, message, shown),
        )

    @property
    def system(self) -> str | None:
        """Instructions for the whole conversation, or None; a change applies from the next message on."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._system = None if text is None else require_unicode(text, "system prompt")

    @property
    def size(self) -> str:
        """The size that answers next; it may be set at any time, and the conversation continues."""
        return self._size

    @size.setter
    def size(self, name: str) -> None:
        self._size = self._model.require_size(name)

    @property
    def history(self) -> tuple[Message, ...]:
        """All messages so far, the system message first if there is one."""
        turns = [message for turn in self._turns for message in (turn.question, turn.answer)]
        return (*system_message(self.system), *turns)

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self._turns = ()
        self._conversation = object()

    def undo(self) -> bool:
        """Forget the last message and its answer; return whether there was one."""
        had_one = bool(self._turns)
        self._turns = self._turns[:-1]
        return had_one

    def restore(self, messages: Sequence[Message]) -> None:
        """Go on from the messages of another conversation, as `history` gave them, without images and sounds.

        UsageError unless they are an optional system message, then alternating messages and answers.
        """
        system = messages[0].text if messages and messages[0].role == "system" else None
        turns = messages[1:] if system is not None else messages
        if turns:
            check_roles(messages)
        if any(message.media for message in turns):
            raise UsageError("conversation", found="images or sounds", wanted="text only")
        if len(turns) % 2:
            raise UsageError("conversation", found="a last message without an answer", wanted="an answer to each")
        for message in turns:
            require_unicode(message.text, f"message of the {message.role}")
        self.system = system  # refuses what is no text, so before anything is forgotten
        self.reset()
        self._turns = tuple(_Turn(turns[i], turns[i + 1], ()) for i in range(0, len(turns), 2))

    def _require_same(self, turns: tuple[_Turn, ...]) -> None:
        if self._turns is not turns:
            found = "it has changed since this message was sent"
            raise UsageError("conversation", found=found, remedy="send it again")

    def _remember(self, message: Message, media: Sequence[Medium], answer: Answer) -> None:
        self._turns = (*self._turns, _Turn(message, Message("assistant", answer.text), tuple(media)))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message of the user with its images and sounds, and the answer."""

    question: Message
    answer: Message
    media: tuple[Medium, ...]


def system_message(system: str | None) -> tuple[Message, ...]:
    """The system message that begins a conversation, as a tuple; an empty one without instructions."""
    return (Message("system", system),) if system else ()
