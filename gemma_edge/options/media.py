"""Images and sounds on the command line, and which groups they may load."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from gemma_edge.terminal import Terminal
from toolkit.base.errors import UsageError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.chat import Message
from toolkit.runtime.media_prompt import (
    TOWERS,
    Medium,
    Prompt,
    TowerName,
    build_prompt,
    longest_seconds,
    read_image,
    read_sound,
    soft_tokens,
)
from toolkit.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file and the group that takes it."""

    group: TowerName
    path: str


def image_file(path: str) -> MediaFile:
    """argparse's type of an image."""
    return MediaFile("vision", path)


def sound_file(path: str) -> MediaFile:
    """argparse's type of a sound."""
    return MediaFile("audio", path)


def add_media_arguments(
    parser: argparse.ArgumentParser,
    *,
    images: str = "images, before the text in the order given, or where it says <image_soft_token>",
    sounds: str = "sounds, likewise (<audio_soft_token>); a long one is cut into pieces",
) -> None:
    """Files of both kinds, by default what a prompt shows besides its text; the help of each."""
    group = parser.add_argument_group("images and sounds")
    group.add_argument(
        "--image", metavar="FILE", dest="media", type=image_file, nargs="+", action="extend", default=[], help=images
    )
    group.add_argument(
        "--audio", metavar="FILE", dest="media", type=sound_file, nargs="+", action="extend", help=sounds
    )


def allowed_groups(bundle: Bundle, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """`--groups`, each of them a group of the bundle; None for all."""
    groups = bundle.manifest.groups
    for name in names or ():
        if name not in groups:
            raise UsageError(f"group {name}", found="no such group in the bundle", wanted=" or ".join(groups))
    return None if names is None else tuple(names)


def read_media(
    bundle: Bundle, files: Sequence[MediaFile], allowed: Sequence[str] | None, terminal: Terminal
) -> list[Medium]:
    """Every file as its tower takes it, in order; of a sound that is too long it says into how many pieces it goes."""
    vision, audio = bundle.manifest.vision, bundle.manifest.audio
    media: list[Medium] = []
    for file in files:
        bundle.require_group(file.group, file.path, allowed)
        if file.group == "vision":
            assert vision is not None
            media.append(read_image(file.path, vision))
            continue
        assert audio is not None
        pieces = read_sound(file.path, audio)
        if len(pieces) > 1:
            limit = f"longer than the {longest_seconds(audio):g} s that the model hears at once"
            terminal.warn(f"{file.path} is {limit}: it is cut into {len(pieces)} pieces")
        media += pieces
    return media


def user_message(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium]) -> Message:
    """A turn with its images and sounds: before its text, unless that says where they belong."""
    return Message("user", text, () if _is_placed(bundle, tokenizer, text) else tuple(m.group for m in media))


def raw_prompt(bundle: Bundle, tokenizer: Tokenizer, text: str, media: Sequence[Medium]) -> Prompt:
    """The text as it is behind the token that begins every text, with its images and sounds as in a turn."""
    if not _is_placed(bundle, tokenizer, text):
        text = "".join(soft_tokens(bundle, tokenizer, medium.group).placeholder for medium in media) + text
    return build_prompt(bundle, tokenizer, text, media).beginning_with(bundle.manifest.text.bos_token_id)


def _is_placed(bundle: Bundle, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text has placeholders of its own."""
    return any(soft_tokens(bundle, tokenizer, group).placeholder in text for group in TOWERS)
