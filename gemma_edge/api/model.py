"""A loaded bundle, which generates text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from gemma_edge.api.chat import Chat, system_message
from toolkit.base.errors import UsageError
from toolkit.bundle.chat import Message
from toolkit.bundle.tokenizer import require_unicode
from toolkit.media.source import MediaSource
from toolkit.runtime.answer import Answer, AnswerSettings, AnswerStream, stop_texts
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import AnswerRequest, Conversation, Opener, SessionConversation
from toolkit.runtime.generate import require_prompt
from toolkit.runtime.media_prompt import MediaFile, Medium, Prompt, chat_prompt, raw_prompt, read_media, user_message
from toolkit.runtime.memory import Memory
from toolkit.runtime.ple_lookup import PleStatistics
from toolkit.runtime.sampling import Sampler, Sampling, choose_sampling
from toolkit.runtime.session import SessionSettings
from toolkit.runtime.speculative import require_drafts


class Model:
    """A loaded bundle. Calls from several threads wait for each other; different models run independently."""

    def __init__(
        self,
        bundle: Bundle,
        settings: SessionSettings,
        *,
        groups: Sequence[str] | None = None,
        opener: Opener = SessionConversation,
    ) -> None:
        """Use `load` instead, which also loads the model; this loads nothing until `prepare` or the first answer.

        opener: loads the language model, on this computer or on a device.
        """
        self.path = bundle.path
        self.size = settings.size or bundle.manifest.default_size
        """The size that is used if a call names none."""
        bundle.manifest.size(self.size)
        self._bundle = bundle
        self._allowed = bundle.allowed_groups(groups)
        self._settings = settings
        self._tokenizer = bundle.tokenizer()
        self._drawable_ids = bundle.drawable_ids(self._tokenizer)
        self._thoughts = bundle.thoughts(self._tokenizer)
        self._opener = opener
        self._open: Conversation | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._conversation: object = None

    # --- answers ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
        media: Sequence[MediaFile | Medium] = (),
        size: str | None = None,
        max_tokens: int | None = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        ignore_eos: bool = False,
        speculative: bool = False,
        thinking: bool = False,
        on_text: Callable[[str], None] | None = None,
        on_thought: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Generate the answer to one prompt, independent of earlier prompts.

        prompt: the user's text. Images and sounds are placed where it has `<image_soft_token>` or
            `<audio_soft_token>`, otherwise before it.
        system: instructions that precede the prompt.
        images, audio: paths, or the content of files as bytes. A sound of more than 30 s is split into pieces.
        media: images and sounds whose order among each other matters; they follow `images` and `audio`.
        size: one of `sizes`; None for `self.size`.
        max_tokens: the maximum number of generated tokens; None for as many as fit the context.
        temperature: 0 always chooses the most likely token. top_k, top_p: sample only from the k most likely tokens
            (0: all), and of these only from the most likely ones whose probabilities add up to p. None for what the
            checkpoint's generation_config.json says; if it says nothing: 0, 64 and 0.95.
        min_p: sample only from tokens at least this many times as likely as the most likely one; 0: from all.
        repeat_penalty: above 1 makes tokens of the prompt and of the answer less likely, below 1 more likely. None, as
            of `min_p`, for what the checkpoint says; if it says nothing: 1 and 0.
        seed: the same seed and prompt give the same answer.
        stop: texts that end the answer; they are not part of it.
        raw: continue the prompt itself, without the chat template.
        ignore_eos: do not stop at a stop token.
        speculative: check drafts of the next tokens, several in one step: the same answer, faster where text repeats
            (docs/speculative.md). BundleError for a bundle converted without `draft_tokens`.
        thinking: let the model think before it answers; `max_tokens` counts its thoughts too. UsageError for a model
            whose chat template knows no thoughts.
        on_text: called with each piece of the answer as it is generated; `on_thought` with each piece of a thought.

        UsageError if the prompt does not fit the context, an image or sound cannot be decoded, or the model is closed;
        BundleError if the bundle lacks the tower for an image or sound.

        >>> answer = model.generate("the cat", raw=True, max_tokens=5, temperature=0.8, seed=3)
        >>> len(answer.token_ids), answer.size == model.size
        (5, True)
        """
        stream = self.stream(
            prompt,
            system=system,
            images=images,
            audio=audio,
            media=media,
            size=size,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
            stop=stop,
            raw=raw,
            ignore_eos=ignore_eos,
            speculative=speculative,
            thinking=thinking,
            on_thought=on_thought,
        )
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.answer

    def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
        media: Sequence[MediaFile | Medium] = (),
        size: str | None = None,
        max_tokens: int | None = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        ignore_eos: bool = False,
        speculative: bool = False,
        thinking: bool = False,
        on_thought: Callable[[str], None] = lambda _: None,
    ) -> AnswerStream:
        """Like `generate`, but piece by piece: iterate over the text, then read `answer`.

        The model is locked from the first piece to the last, or until the stream is closed.

        >>> pieces = model.stream("the cat", raw=True, max_tokens=5)
        >>> "".join(pieces) == pieces.answer.text
        True
        """
        sampling = self._sampling(0.0, temperature, top_k, top_p, seed, min_p, repeat_penalty)
        text = require_unicode(prompt, "prompt")
        shown = self.read_media(media, images=images, audio=audio)
        for given, what in ((system, "system prompt"), (thinking, "thinking")):
            if raw and given:
                raise UsageError(what, found="it cannot be used with a raw prompt, which no template formats")
        if raw:
            built = raw_prompt(self._bundle, self._tokenizer, text, shown)
        else:
            instructions = None if system is None else require_unicode(system, "system prompt")
            messages = [*system_message(instructions), self.user_message(text, shown)]
            built = self.prompt_of(messages, shown, thinking=thinking)
        settings = AnswerSettings(max_tokens, stop_texts(stop), ignore_eos, speculative, thinking)
        return self.answer_to(
            built, self.sampler(sampling), settings, size=size, conversation=object(), on_thought=on_thought
        )

    def chat(
        self,
        *,
        system: str | None = None,
        size: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        speculative: bool = False,
        thinking: bool = False,
    ) -> Chat:
        """Begin a conversation.

        system: instructions for the whole conversation. The other arguments are those of `generate`, except that each
            answer may fill the context if `max_tokens` is not given, and that the temperature is 1 if there is no
            generation_config.json. Thoughts are not part of the conversation.

        >>> chat = model.chat(max_tokens=4, seed=1)
        >>> answer = chat.send("cat")
        >>> [message.role for message in chat.history]
        ['user', 'assistant']
        """
        sampler = self.sampler(self._sampling(1.0, temperature, top_k, top_p, seed, min_p, repeat_penalty))
        if thinking:
            self._require_thoughts()
        settings = AnswerSettings(max_tokens, stop_texts(stop), speculative=speculative, thinking=thinking)
        return Chat(self, sampler, settings, system=system, size=size)

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of the bundle's sizes."""
        return tuple(self._bundle.manifest.sizes)

    @property
    def context(self) -> int:
        """The maximum number of tokens of a prompt and its answer together."""
        return self._bundle.manifest.text.context

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        """The parameter groups that prompts have needed so far."""
        return () if self._open is None else self._open.groups_loaded

    def memory(self) -> Memory:
        """The current memory of the process that runs the graphs, in bytes, in total and for each parameter group."""
        with self._turn() as conversation:
            return conversation.memory()

    @property
    def ple_statistics(self) -> PleStatistics:
        """Counts of the look-ups of per-layer embeddings so far."""
        with self._turn() as conversation:
            return conversation.ple_statistics()

    def prepare(self) -> None:
        """Load the language model now."""
        with self._turn():
            pass

    def close(self) -> None:
        """Free everything, after waiting for an answer that another thread is generating; may be called twice."""
        mine = self._thread == threading.get_ident()
        if not mine:
            self._lock.acquire()
        try:
            self._closed = True
            if self._open is not None:
                self._open.close()
        finally:
            if not mine:
                self._lock.release()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- for `Chat` and the commands -------------------------------------------------------------------------------

    def read_media(
        self,
        media: Sequence[MediaFile | Medium],
        *,
        images: Sequence[MediaSource] = (),
        audio: Sequence[MediaSource] = (),
    ) -> list[Medium]:
        """Decode all files for their towers, in the order `images`, `audio`, `media`."""
        files = [MediaFile("vision", image) for image in images] + [MediaFile("audio", sound) for sound in audio]
        return read_media(self._bundle, [*files, *media], self._allowed)

    def require_size(self, size: str | None) -> str:
        """Return `size`, or the model's size for None; an error if the bundle lacks it."""
        name = size or self.size
        self._bundle.manifest.size(name)
        return name

    def _sampling(
        self,
        usual_temperature: float,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        min_p: float | None,
        repeat_penalty: float | None,
    ) -> Sampling:
        """The settings of one call; UsageError for values out of range."""
        return choose_sampling(
            self._bundle.manifest.text.sampling,
            usual_temperature=usual_temperature,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
        )

    def sampler(self, sampling: Sampling) -> Sampler:
        """A sampler that draws only ids for which the tokenizer has a token."""
        return Sampler(sampling, self._drawable_ids)

    def user_message(self, text: str, media: Sequence[Medium]) -> Message:
        """The user's message, with images and sounds."""
        return user_message(self._bundle, self._tokenizer, require_unicode(text, "message"), media)

    def prompt_of(self, messages: Sequence[Message], media: Sequence[Medium], *, thinking: bool = False) -> Prompt:
        """The prompt of a whole conversation, up to the model's next answer; media: those of all its messages.

        `thinking`: let it think first; UsageError if it cannot.
        """
        if thinking:
            self._require_thoughts()
        return chat_prompt(self._bundle, self._tokenizer, messages, media, thinking=thinking)

    def _require_thoughts(self) -> None:
        if self._thoughts is None:
            found = "a model whose chat template does not read enable_thinking"
            raise UsageError("thinking", file=self.path, found=found, wanted="one that can be asked to think")

    def answer_to(
        self,
        prompt: Prompt,
        sampler: Sampler,
        settings: AnswerSettings,
        *,
        size: str | None,
        conversation: object,
        begins: Callable[[], None] = lambda: None,
        on_thought: Callable[[str], None] = lambda _: None,
        ended: Callable[[Answer], None] = lambda _: None,
    ) -> AnswerStream:
        """The answer to a whole conversation; if the KV caches hold its beginning, only its new tokens are computed.

        `begins`: called before the first piece, once no other answer is being generated; an error ends the stream.
        """
        self._require_open()
        if settings.speculative:
            require_drafts(self._bundle)
        limit = self.context if settings.max_tokens is None else settings.max_tokens
        require_prompt(prompt.ids, limit=limit, context=self.context)
        size = self.require_size(size)
        stops = () if settings.ignore_eos else self._bundle.manifest.text.stop_token_ids
        request = AnswerRequest(prompt.ids, sampler, limit, stops, prompt.spans, settings.speculative, self._allowed)
        begin = self._turn(conversation, size, begins)
        return AnswerStream(
            begin,
            request,
            self._tokenizer,
            stop=settings.stop,
            thoughts=self._thoughts,
            on_thought=on_thought,
            ended=ended,
        )

    @contextmanager
    def _turn(
        self, conversation: object = None, size: str | None = None, begins: Callable[[], None] = lambda: None
    ) -> Iterator[Conversation]:
        """Yield the loaded model, to one thread at a time; caches of another conversation are cleared first.

        conversation: None for a call that leaves the caches as they are, whosever they are by then.
        """
        self._require_open()
        if self._thread == threading.get_ident():
            remedy = "read its stream to the end, or close it"
            raise UsageError("model", found="an earlier answer is still unfinished", remedy=remedy)
        with self._lock:
            self._thread = threading.get_ident()
            try:
                begins()
                loaded = self._opened()
                if conversation is not None and conversation is not self._conversation:
                    loaded.forget()
                    self._conversation = conversation
                if size is not None:
                    loaded.use(size)
                yield loaded
            finally:
                self._thread = None

    def _opened(self) -> Conversation:
        self._require_open()
        if self._open is None:
            self._open = self._opener(self._bundle, self._settings)
        return self._open

    def _require_open(self) -> None:
        if self._closed:
            remedy = "load it again"
            raise UsageError(file=self.path, found="the model is closed", remedy=remedy)
