"""Images and sounds on the command line."""

from __future__ import annotations

import argparse

from toolkit.runtime.media_prompt import MediaFile


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
