"""Soft tokens, which stand for images and sounds in a prompt, as transformers' Gemma3nProcessor places them.

A chat template writes one placeholder for each image and sound. Placeholders are expanded in the text before it is
tokenised, because the newlines around a block may form one token with newlines of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.base.errors import UsageError


@dataclass(frozen=True, slots=True)
class SoftTokens:
    """The spelling of one image or sound: `count` soft tokens between two markers."""

    kind: str
    placeholder: str
    begin: str
    end: str
    count: int

    def block(self) -> str:
        """The text that replaces a placeholder; the soft token has the same text as the placeholder.

        >>> SoftTokens("image", "<i>", "<begin>", "<end>", 2).block()
        '\\n\\n<begin><i><i><end>\\n\\n'
        """
        return f"\n\n{self.begin}{self.placeholder * self.count}{self.end}\n\n"


IMAGE = SoftTokens("image", "<image_soft_token>", "<start_of_image>", "<end_of_image>", 256)
SOUND = SoftTokens("sound", "<audio_soft_token>", "<start_of_audio>", "<end_of_audio>", 188)
"""The spellings are from tokenizer_config.json of google/gemma-3n-E2B-it, the counts from processor_config.json."""


def expand_placeholders(
    text: str, images: int = 0, sounds: int = 0, *, image: SoftTokens = IMAGE, sound: SoftTokens = SOUND
) -> str:
    """Replace each placeholder in `text` by its block of soft tokens.

    UsageError unless the text has `images` placeholders for images and `sounds` for sounds.

    >>> from dataclasses import replace
    >>> expand_placeholders("See <image_soft_token>.", 1, image=replace(IMAGE, count=1))
    'See \\n\\n<start_of_image><image_soft_token><end_of_image>\\n\\n.'
    """
    for soft, given in ((image, images), (sound, sounds)):
        found = text.count(soft.placeholder)
        if found != given:
            wanted = f"{given}, one for each {soft.kind} given"
            remedy = None if given or not found else f"do not write {soft.placeholder} yourself"
            raise UsageError(
                f"prompt's {soft.kind}s", found=f"{found} placeholders {soft.placeholder}", wanted=wanted, remedy=remedy
            )
    blocks = {soft.placeholder: soft.block() for soft in (image, sound)}
    return re.sub("|".join(map(re.escape, blocks)), lambda match: blocks[match[0]], text)


def soft_token_starts(ids: Sequence[int], soft_id: int, count: int) -> tuple[int, ...]:
    """The position of the first soft token of each image (or sound) in a prompt's ids, in order.

    UsageError if the soft tokens are not in runs of `count`.

    >>> soft_token_starts([2, 9, 7, 7, 7, 8, 9, 7, 7, 7, 8], soft_id=7, count=3)
    (2, 7)
    """
    starts: list[int] = []
    position = 0
    while position < len(ids):
        if ids[position] != soft_id:
            position += 1
            continue
        run = next((n for n, token in enumerate(ids[position:]) if token != soft_id), len(ids) - position)
        if run != count:
            found = f"{run} soft tokens of id {soft_id} at position {position}"
            raise UsageError("prompt", found=found, wanted=f"runs of {count}")
        starts.append(position)
        position += run
    return tuple(starts)
