"""Images and sounds on the command line."""

from __future__ import annotations

import argparse

from toolkit.runtime.media_prompt import MediaFile


def image_file(path: str) -> MediaFile:
    """The argparse type of an image."""
    return MediaFile("vision", path)


def sound_file(path: str) -> MediaFile:
    """The argparse type of a sound."""
    return MediaFile("audio", path)


def add_media_arguments(
    parser: argparse.ArgumentParser,
    *,
    images: str = "images, placed before the text in the order given, or where the text has <image_soft_token>",
    sounds: str = "sounds, likewise (<audio_soft_token>); one longer than 30 s is split into pieces",
) -> None:
    """Add `--image` and `--audio`, by default for a prompt; images, sounds: their help texts."""
    group = parser.add_argument_group("images and sounds")
    group.add_argument(
        "--image", metavar="FILE", dest="media", type=image_file, nargs="+", action="extend", default=[], help=images
    )
    group.add_argument(
        "--audio", metavar="FILE", dest="media", type=sound_file, nargs="+", action="extend", help=sounds
    )
