"""A conversation with a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from toolkit.base.errors import UsageError
from toolkit.bundle.chat import Message
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
        """Use `Model.chat` instead."""
        self._model = model
        self._size = model.require_size(size)
        self._sampler = sampler
        self._settings = settings
        self._system = system
        self.reset()

    def send(
        self,
        text: str,
        *,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
        media: Sequence[MediaFile | Medium] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Send a message, and return the answer; arguments and errors are those of `Model.generate`.

        After an error the conversation is unchanged.
        """
        stream = self.stream(text, images=images, audio=audio, media=media)
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
    ) -> AnswerStream:
        """Like `send`, but piece by piece. Of an interrupted answer, the part so far joins the conversation."""
        shown = self._model.read_media(media, images=images, audio=audio)
        message = self._model.user_message(text, shown)
        prompt = self._model.prompt_of([*self._messages, message], [*self._media, *shown])
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
            ended=partial(self._remember, message, shown),
        )

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
        return tuple(self._messages)

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self._messages = [Message("system", self._system)] if self._system else []
        self._media: list[Medium] = []
        self._conversation = object()

    def _remember(self, message: Message, media: Sequence[Medium], answer: Answer) -> None:
        self._messages += [message, Message("assistant", answer.text)]
        self._media += media
