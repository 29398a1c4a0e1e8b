"""Converts a rendered conversation to token ids by transformers' rules, with soft tokens for images and sounds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.base.errors import BundleError, ToolkitError
from toolkit.base.limited import limited
from toolkit.base.strict_json import shorten
from toolkit.bundle.chat import ChatTemplate, turn_end
from toolkit.bundle.conversations import TEXTS, Conversation, with_media
from toolkit.bundle.manifest import TOKENIZER, AudioRecord, Manifest, VisionRecord
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import control_token_at
from toolkit.media.prompt import IMAGE, SOUND, SoftTokens, expand_placeholders


@dataclass(frozen=True, slots=True)
class Prompting:
    """A tokenizer, its bos token, and how images and sounds are spelled (None without such a tower)."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    """The text of token ids, with control tokens spelled out."""
    bos_token: str
    bos_token_id: int | None
    image: SoftTokens | None = None
    sound: SoftTokens | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, manifest: Manifest, groups: Collection[str] | None = None) -> Prompting:
        """The prompting of a bundle, with its towers that are in `groups`; None for all of them."""
        wanted = manifest.groups if groups is None else groups
        vision = manifest.vision if "vision" in wanted else None
        audio = manifest.audio if "audio" in wanted else None
        return cls.with_towers(tokenizer, manifest.text.bos_token_id, vision, audio)

    @classmethod
    def with_towers(
        cls, tokenizer: Tokenizer, bos_token_id: int, vision: VisionRecord | None, audio: AudioRecord | None
    ) -> Prompting:
        """The prompting from a tokenizer and the records of towers."""
        return cls(
            lambda text: tokenizer.encode(text, special=False),
            lambda ids: tokenizer.decode(ids, skip_special=False),
            tokenizer.token_of(bos_token_id) or "",
            bos_token_id,
            None if vision is None else tower_tokens(vision, IMAGE, tokenizer),
            None if audio is None else tower_tokens(audio, SOUND, tokenizer),
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the towers that it has."""
        towers = (("vision", self.image), ("audio", self.sound))
        return tuple(name for name, soft in towers if soft is not None)

    @property
    def soft_tokens(self) -> Sequence[SoftTokens]:
        """The soft tokens of the towers that it has."""
        return [soft for soft in (self.image, self.sound) if soft is not None]

    def ids(self, text: str, conversation: Conversation) -> list[int]:
        """The token ids of a prompt whose rendered text is `text`.

        UsageError if the template has not written exactly one placeholder for each image and sound.
        """
        if not self.soft_tokens:
            return self.encode(text)
        images, sounds = conversation.count("image"), conversation.count("audio")
        return self.encode(
            expand_placeholders(text, images, sounds, image=self.image or IMAGE, sound=self.sound or SOUND)
        )


def turn_end_token(template: ChatTemplate, tokenizer: bytes) -> int | None:
    """The id of the token that ends a model's turn; None if none does. `tokenizer`: the content of tokenizer.json."""
    end = turn_end(template)
    return control_token_at(tokenizer, end) if end else None


def undrawable(template: ChatTemplate, prompting: Prompting, text_ids: int) -> tuple[Conversation, int] | None:
    """The first prompt with a token that stands neither for text nor for an image or sound, and the token's id.

    A session refuses such a token. `text_ids`: ids below this stand for text. BundleError if the template exceeds the
    limits of time or memory.
    """
    return limited("chat template", partial(_undrawable, template, prompting, text_ids))


def _undrawable(template: ChatTemplate, prompting: Prompting, text_ids: int) -> tuple[Conversation, int] | None:
    towers = {token for soft in prompting.soft_tokens for token in prompting.encode(soft.block())}
    for conversation in [*TEXTS, *with_media(prompting.groups)]:
        try:
            ids = prompting.ids(template.render_turns(conversation.turns), conversation)
        except ToolkitError:
            continue
        allowed = towers if conversation.count("image") + conversation.count("audio") else ()
        for token in ids:
            if token >= text_ids and token not in allowed:
                return conversation, token
    return None


def tower_tokens(tower: VisionRecord | AudioRecord, usual: SoftTokens, tokenizer: Tokenizer) -> SoftTokens:
    """The spelling of a tower's tokens; BundleError if the tokenizer lacks one of them."""
    spelled = {name: tokenizer.token_of(token) for name, token in tower.markers().items()}
    unknown = [f"{name} {tower.markers()[name]}" for name, spelling in spelled.items() if spelling is None]
    if unknown:
        found, remedy = f"no token for {usual.kind} {unknown[0]}", "convert again with the tokenizer of the checkpoint"
        raise BundleError(file=TOKENIZER, found=found, remedy=remedy)
    begin, soft, end = (spelled[f"{place}_token_id"] or "" for place in ("begin", "soft", "end"))
    return SoftTokens(usual.kind, soft, begin, end, tower.soft_tokens)


def first_difference(found: list[int], wanted: list[int], prompting: Prompting) -> tuple[str, str]:
    """Both texts from a little before the place where they differ, or both token ids if the texts are equal."""
    texts = prompting.decode(found), prompting.decode(wanted)
    if texts[0] != texts[1]:
        start = max(0, _place(*texts) - 20)
        return shorten(repr(texts[0][start : start + 80]), 90), shorten(repr(texts[1][start : start + 80]), 90)
    start = max(0, _place(found, wanted) - 2)
    ids = [f"tokens {ids[start : start + 8]} from {start}" for ids in (found, wanted)]
    return ids[0], ids[1]


def _place(one: Sequence[object], other: Sequence[object]) -> int:
    """The first index at which two sequences differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
