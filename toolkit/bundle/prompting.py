"""Turns a rendered conversation into token ids by transformers' rules, with images and sounds in their places."""

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
    """A tokenizer, its first token, and how an image and a sound are written; None without such a tower."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    """Control tokens are spelled out."""
    bos_token: str
    bos_token_id: int | None
    image: SoftTokens | None = None
    sound: SoftTokens | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, manifest: Manifest, groups: Collection[str] | None = None) -> Prompting:
        """That of a bundle, with the towers among `groups`; None for all that it has."""
        wanted = manifest.groups if groups is None else groups
        vision = manifest.vision if "vision" in wanted else None
        audio = manifest.audio if "audio" in wanted else None
        return cls.with_towers(tokenizer, manifest.text.bos_token_id, vision, audio)

    @classmethod
    def with_towers(
        cls, tokenizer: Tokenizer, bos_token_id: int, vision: VisionRecord | None, audio: AudioRecord | None
    ) -> Prompting:
        """The same from records of the towers."""
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
        """The towers that there are."""
        towers = (("vision", self.image), ("audio", self.sound))
        return tuple(name for name, soft in towers if soft is not None)

    @property
    def soft_tokens(self) -> Sequence[SoftTokens]:
        """Those of the towers that there are."""
        return [soft for soft in (self.image, self.sound) if soft is not None]

    def ids(self, text: str, conversation: Conversation) -> list[int]:
        """The prompt's tokens; UsageError if the template has not written one placeholder for each image and sound."""
        if not self.soft_tokens:
            return self.encode(text)
        images, sounds = conversation.count("image"), conversation.count("audio")
        return self.encode(
            expand_placeholders(text, images, sounds, image=self.image or IMAGE, sound=self.sound or SOUND)
        )


def turn_end_token(template: ChatTemplate, tokenizer: bytes) -> int | None:
    """The id of the token that ends a model's turn; None where it ends in none. tokenizer: tokenizer.json's content."""
    end = turn_end(template)
    return control_token_at(tokenizer, end) if end else None


def undrawable(template: ChatTemplate, prompting: Prompting, text_ids: int) -> tuple[Conversation, int] | None:
    """The first token in a prompt that stands neither for text nor for an image or sound, which a session refuses.

    text_ids: ids below stand for text. BundleError for a template that takes too much.
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
    """How a tower's tokens are spelled; BundleError if the tokenizer lacks one of them."""
    spelled = {name: tokenizer.token_of(token) for name, token in tower.markers().items()}
    unknown = [f"{name} {tower.markers()[name]}" for name, spelling in spelled.items() if spelling is None]
    if unknown:
        found, remedy = f"no token for {usual.kind} {unknown[0]}", "convert again with the tokenizer of the checkpoint"
        raise BundleError(file=TOKENIZER, found=found, remedy=remedy)
    begin, soft, end = (spelled[f"{place}_token_id"] or "" for place in ("begin", "soft", "end"))
    return SoftTokens(usual.kind, soft, begin, end, tower.soft_tokens)


def first_difference(found: list[int], wanted: list[int], prompting: Prompting) -> tuple[str, str]:
    """Both texts from a little before the place where they part, or the token ids where the texts are the same."""
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
