"""Builds prompts with images and sounds: the token ids, and the towers' inputs with their positions."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError, UsageError, errors_about
from toolkit.base.limited import limited
from toolkit.bundle.chat import Message
from toolkit.bundle.manifest import TOKENIZER, AudioRecord, VisionRecord
from toolkit.bundle.prompting import tower_tokens
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.media.mel import MIN_SAMPLES, SAMPLE_RATE_HZ, log_mel, max_samples
from toolkit.media.prompt import IMAGE, SOUND, SoftTokens, expand_placeholders, soft_token_starts
from toolkit.media.source import MediaSource, errors_about_source, source_name
from toolkit.runtime.bundle import Bundle

TowerName = Literal["vision", "audio"]
TOWERS: tuple[TowerName, ...] = ("vision", "audio")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An image or a sound as the user gave it, and the group of the tower that embeds it."""

    group: TowerName
    source: MediaSource


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """An image, or one piece of a sound, in the form that its tower takes."""

    group: TowerName
    key: str
    """A hash of the values."""
    values: NDArray[np.uint8] | NDArray[np.float32]
    """The levels of an image, uint8[1, size, size, 3], or the mel frames of a sound, f32[frames, bins]."""
    mask: NDArray[np.bool_] | None = None
    """For a sound, bool[frames]: True for frames that are not padding."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` soft tokens from the position `start` on, and the image or sound that they stand for."""

    start: int
    count: int
    medium: Medium

    @property
    def end(self) -> int:
        """The position after them, which is that of the end token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a whole conversation, and its images and sounds in the order of their positions."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    def beginning_with(self, token: int) -> Prompt:
        """The prompt with this token in front, unless it already begins with it."""
        if self.ids[:1] == (token,):
            return self
        return Prompt((token, *self.ids), tuple(replace(span, start=span.start + 1) for span in self.spans))


def first_difference(before: Sequence[Span], now: Sequence[Span], end: int) -> int:
    """The first position at which the images or sounds differ from those before; `end` if none does."""
    for one, other in itertools.zip_longest(before, now):
        if one is None or other is None or (one.start, one.medium.key) != (other.start, other.medium.key):
            return min(span.start for span in (one, other) if span is not None)
    return end


def read_media(
    bundle: Bundle, files: Sequence[MediaFile | Medium], allowed: Collection[str] | None = None
) -> list[Medium]:
    """Read the files into the towers' inputs, in order; a sound that is too long is split, with a warning in the log.

    BundleError if the bundle lacks a tower, UsageError if the tower is not among the allowed groups.
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
        _log.warning("%s is %s: it is split into %d pieces", name, limit, len(pieces))
    return pieces


def user_message(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Message:
    """The user's turn; its images and sounds come before the text, unless the text has placeholders for them."""
    return Message("user", text, () if _is_placed(bundle, tokenizer, text) else tuple(m.group for m in media))


def chat_prompt(
    bundle: Bundle,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    media: Sequence[Medium] = (),
    *,
    thinking: bool = False,
) -> Prompt:
    """The prompt of a conversation by the bundle's chat template, up to the beginning of the model's answer.

    `thinking`: let the model think first.
    """
    template = bundle.chat_template(tokenizer)
    return _build(bundle, tokenizer, partial(template.render, messages, thinking=thinking), media)


def raw_prompt(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Prompt:
    """The prompt of a text without a chat template, after `<bos>`; images and sounds are placed as in a turn."""
    if not _is_placed(bundle, tokenizer, text):
        text = "".join(soft_tokens(bundle, tokenizer, medium.group).placeholder for medium in media) + text
    return build_prompt(bundle, tokenizer, text, media).beginning_with(bundle.manifest.text.bos_token_id)


def _is_placed(bundle: Bundle, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text contains placeholders."""
    return any(soft_tokens(bundle, tokenizer, group).placeholder in text for group in TOWERS)


def read_image(source: MediaSource, vision: VisionRecord) -> Medium:
    """Read and scale an image; UsageError if it is not one."""
    from toolkit.media.image import load_levels  # imports Pillow, which a prompt without images does not need

    return image_medium(load_levels(source, vision.image_size))


def image_medium(levels: NDArray[np.uint8]) -> Medium:
    """The tower's input for an image; levels: uint8[1, size, size, 3]."""
    return Medium("vision", hashlib.sha256(levels.data).hexdigest(), levels)


def read_sound(source: MediaSource, audio: AudioRecord) -> tuple[Medium, ...]:
    """Read a sound, as several pieces of about equal length if it is longer than the tower's maximum.

    UsageError if it is not a sound, or too short for a mel frame.
    """
    from toolkit.media.sound import load_sound, split_sound  # imports libsndfile and soxr, likewise

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
    """The tower's input for a sound; samples: f32[n] at 16 kHz, at most the tower's maximum."""
    mel, mask = log_mel(samples, audio.mel_bins)
    return Medium("audio", hashlib.sha256(mel.tobytes() + mask.tobytes()).hexdigest(), mel, mask)


def longest_seconds(audio: AudioRecord) -> float:
    """The longest sound that the tower takes, in seconds."""
    return max_samples(audio.frame_lengths[-1]) / SAMPLE_RATE_HZ


def soft_tokens(bundle: Bundle, tokenizer: Tokenizer, group: TowerName) -> SoftTokens:
    """The spelling of an image or a sound in this bundle; that of Gemma 3n if the bundle lacks the group."""
    record, usual = (bundle.manifest.vision, IMAGE) if group == "vision" else (bundle.manifest.audio, SOUND)
    if record is None:
        return usual
    with errors_about(file=bundle.path / TOKENIZER):
        return tower_tokens(record, usual, tokenizer)


def build_prompt(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium] = ()) -> Prompt:
    """The prompt of a text with control tokens spelled out and a placeholder for each of `media`.

    UsageError if placeholders and media do not match, or if the text contains other tokens of a tower.
    """
    return _build(bundle, tokenizer, lambda: text, media)


def _build(bundle: Bundle, tokenizer: Tokenizer, make_text: Callable[[], str], media: Sequence[Medium]) -> Prompt:
    """The same of a text that is yet to be rendered: template and tokenizer work in one child with limits."""
    images, sounds = ([medium for medium in media if medium.group == group] for group in TOWERS)
    try:
        ids = limited("prompt", lambda: _ids(bundle, tokenizer, make_text(), len(images), len(sounds)))
    except BundleError as error:  # of the files; a UsageError is of what was asked
        error.file = error.file or str(bundle.path)
        raise
    spans = [*_spans(ids, bundle.manifest.vision, images), *_spans(ids, bundle.manifest.audio, sounds)] if media else []
    spans.sort(key=lambda span: span.start)
    bundle.require_text(tokenizer, ids, [place for span in spans for place in range(span.start, span.end + 1)])
    return Prompt(tuple(ids), tuple(spans))


def _ids(bundle: Bundle, tokenizer: Tokenizer, text: str, images: int, sounds: int) -> list[int]:
    if images or sounds:
        image, sound = (soft_tokens(bundle, tokenizer, group) for group in TOWERS)
        text = expand_placeholders(text, images, sounds, image=image, sound=sound)
    return tokenizer.encode(text, special=False)


def _spans(ids: list[int], record: VisionRecord | AudioRecord | None, media: Sequence[Medium]) -> list[Span]:
    if record is None:
        return []
    starts = soft_token_starts(ids, record.soft_token_id, record.soft_tokens)
    # There is a start for each placeholder, and a placeholder for each medium.
    return [Span(start, record.soft_tokens, medium) for start, medium in zip(starts, media, strict=True)]
