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
    several: bool = False,
    images: str = "an image, placed before the text, or where the text has <image_soft_token>; may be repeated",
    sounds: str = "a sound, placed likewise (<audio_soft_token>); may be repeated; over 30 s it is split into pieces",
) -> None:
    """Add `--image` and `--audio`, by default for a prompt; images, sounds: their help texts.

    several: whether an option takes all the files that follow, as a shell writes them for `*.jpg`.
    """
    group = parser.add_argument_group("images and sounds")
    action, count = ("extend", "+") if several else ("append", None)
    group.add_argument(
        "--image", metavar="FILE", dest="media", type=image_file, nargs=count, action=action, default=[], help=images
    )
    group.add_argument(
        "--audio", metavar="FILE", dest="media", type=sound_file, nargs=count, action=action, help=sounds
    )
