"""Prompts with images and sounds: what stands where among the tokens, in the form that the towers take it."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.chat import Message
from toolkit.bundle.manifest import TOKENIZER, AudioRecord, VisionRecord
from toolkit.media.mel import MIN_SAMPLES, SAMPLE_RATE_HZ, log_mel, max_samples
from toolkit.media.prompt import IMAGE, SOUND, SoftTokens, expand_placeholders, soft_token_starts
from toolkit.media.source import MediaSource, errors_about_source, source_name
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.tokenizer import Tokenizer

TowerName = Literal["vision", "audio"]
TOWERS: tuple[TowerName, ...] = ("vision", "audio")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An image or a sound as it was given, and the group that takes it."""

    group: TowerName
    source: MediaSource


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """An image, or one piece of a sound."""

    group: TowerName
    key: str
    """Equal for equal values."""
    values: NDArray[np.uint8] | NDArray[np.float32]
    """An image's levels, uint8[1, size, size, 3], or a sound's mel frames, f32[frames, bins]."""
    mask: NDArray[np.bool_] | None = None
    """For a sound, bool[frames]: which frames are not padding."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` soft tokens from the position `start` on, and what they stand for."""

    start: int
    count: int
    medium: Medium

    @property
    def end(self) -> int:
        """The position behind them: that of the tower's end token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole conversation's tokens; spans in the order of their positions."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    def beginning_with(self, token: int) -> Prompt:
        """The same behind this token, unless it stands there already."""
        if self.ids[:1] == (token,):
            return self
        return Prompt((token, *self.ids), tuple(replace(span, start=span.start + 1) for span in self.spans))


def first_difference(before: Sequence[Span], now: Sequence[Span], end: int) -> int:
    """The first position where other images or sounds stand than before, or the end."""
    for one, other in itertools.zip_longest(before, now):
        if one is None or other is None or (one.start, one.medium.key) != (other.start, other.medium.key):
            return min(span.start for span in (one, other) if span is not None)
    return end


def read_media(
    bundle: Bundle, files: Sequence[MediaFile | Medium], allowed: Collection[str] | None = None
) -> list[Medium]:
    """Every file as its tower takes it, in order; the log tells into how many pieces a sound goes that is too long.

    BundleError where the bundle lacks a tower, UsageError where it is not among the groups that are allowed.
    """
    media: list[Medium] = []
    for file in files:
        if isinstance(file, Medium):
            bundle.require_group(file.group, f"{file.group} in a prompt", allowed)
            media.append(file)
            continue
        name = source_name(file.source, "image" if file.group == "vision" else "sound")
        bundle.require_group(file.group, name, allowed)
        media += _read(bundle, file, name)
    return media


def _read(bundle: Bundle, file: MediaFile, name: str) -> tuple[Medium, ...]:
    vision, audio = bundle.manifest.vision, bundle.manifest.audio
    if file.group == "vision":
        assert vision is not None
        return (read_image(file.source, vision),)
    assert audio is not None
    pieces = read_sound(file.source, audio)
    if len(pieces) > 1:
        limit = f"longer than the {longest_seconds(audio):g} s that the model hears at once"
        _log.warning("%s is %s: it is cut into %d pieces", name, limit, len(pieces))
    return pieces


def user_message(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Message:
    """A turn with its images and sounds: before its text, unless that says where they belong."""
    return Message("user", text, () if _is_placed(bundle, tokenizer, text) else tuple(m.group for m in media))


def chat_prompt(
    bundle: Bundle, tokenizer: Tokenizer, messages: Sequence[Message], media: Sequence[Medium] = ()
) -> Prompt:
    """A conversation through the bundle's chat template, up to where the model answers."""
    return build_prompt(bundle, tokenizer, bundle.chat_template(tokenizer).render(messages), media)


def raw_prompt(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Prompt:
    """The text as it is behind the token that begins every text, with its images and sounds as in a turn."""
    if not _is_placed(bundle, tokenizer, text):
        text = "".join(soft_tokens(bundle, tokenizer, medium.group).placeholder for medium in media) + text
    return build_prompt(bundle, tokenizer, text, media).beginning_with(bundle.manifest.text.bos_token_id)


def _is_placed(bundle: Bundle, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text has placeholders of its own."""
    return any(soft_tokens(bundle, tokenizer, group).placeholder in text for group in TOWERS)


def read_image(source: MediaSource, vision: VisionRecord) -> Medium:
    """UsageError for what is no image."""
    from toolkit.media.image import load_levels  # Pillow; a prompt of text alone does without it

    return image_medium(load_levels(source, vision.image_size))


def image_medium(levels: NDArray[np.uint8]) -> Medium:
    """levels: uint8[1, size, size, 3]."""
    return Medium("vision", hashlib.sha256(levels.data).hexdigest(), levels)


def read_sound(source: MediaSource, audio: AudioRecord) -> tuple[Medium, ...]:
    """One piece, or several of about equal length where it is longer than the tower hears at once.

    UsageError for what is no sound, or too short for a mel frame.
    """
    from toolkit.media.sound import load_sound, split_sound  # libsndfile and soxr, likewise

    samples = load_sound(source)
    if len(samples) < MIN_SAMPLES:
        found, wanted = (
            f"{len(samples) / SAMPLE_RATE_HZ:.3f} s of sound",
            f"at least {MIN_SAMPLES / SAMPLE_RATE_HZ:.3f}",
        )
        with errors_about_source(source, "sound"):
            raise UsageError(found=found, wanted=wanted, remedy="append silence")
    pieces = split_sound(samples, max_samples(audio.frame_lengths[-1]))
    return tuple(sound_medium(piece, audio) for piece in pieces)


def sound_medium(samples: NDArray[np.float32], audio: AudioRecord) -> Medium:
    """samples: f32[n] at 16 kHz, no longer than the tower hears at once."""
    mel, mask = log_mel(samples, audio.mel_bins)
    return Medium("audio", hashlib.sha256(mel.tobytes() + mask.tobytes()).hexdigest(), mel, mask)


def longest_seconds(audio: AudioRecord) -> float:
    """What the tower hears at once."""
    return max_samples(audio.frame_lengths[-1]) / SAMPLE_RATE_HZ


def soft_tokens(bundle: Bundle, tokenizer: Tokenizer, group: TowerName) -> SoftTokens:
    """How prompts of this bundle spell an image or a sound; Gemma 3n's own spelling where it has no such group."""
    record, usual = (bundle.manifest.vision, IMAGE) if group == "vision" else (bundle.manifest.audio, SOUND)
    if record is None:
        return usual
    spelled = {name: tokenizer.token_of(token) for name, token in record.markers().items()}
    unknown = [f"{name} {record.markers()[name]}" for name, spelling in spelled.items() if spelling is None]
    if unknown:
        found, remedy = f"no token for {group} {unknown[0]}", "convert again with the tokenizer of the checkpoint"
        raise BundleError(file=bundle.path / TOKENIZER, found=found, remedy=remedy)
    begin, soft, end = (spelled[f"{place}_token_id"] or "" for place in ("begin", "soft", "end"))
    return SoftTokens(usual.kind, soft, begin, end, record.soft_tokens)


def build_prompt(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Prompt:
    """The prompt of a text, control tokens spelled out, in which each medium has its placeholder.

    UsageError where placeholders and media do not match, or where the text spells other tokens of a tower.
    """
    if not media:
        return Prompt(tuple(bundle.encode(tokenizer, text)))
    images, sounds = ([medium for medium in media if medium.group == group] for group in TOWERS)
    image, sound = (soft_tokens(bundle, tokenizer, group) for group in TOWERS)
    expanded = expand_placeholders(text, len(images), len(sounds), image=image, sound=sound)
    ids = tokenizer.encode(expanded, special=False)
    spans = [*_spans(ids, bundle.manifest.vision, images), *_spans(ids, bundle.manifest.audio, sounds)]
    spans.sort(key=lambda span: span.start)
    bundle.require_text(tokenizer, ids, [place for span in spans for place in range(span.start, span.end + 1)])
    return Prompt(tuple(ids), tuple(spans))


def _spans(ids: list[int], record: VisionRecord | AudioRecord | None, media: Sequence[Medium]) -> list[Span]:
    if record is None:
        return []
    starts = soft_token_starts(ids, record.soft_token_id, record.soft_tokens)
    # As many as there are placeholders, and the text has one for each medium.
    return [Span(start, record.soft_tokens, medium) for start, medium in zip(starts, media, strict=True)]
