"""The values of a manifest's fields: their limits, and what a name or a text may be (docs/formats/manifest.md)."""

from __future__ import annotations

import re
from typing import Annotated

from toolkit.base.elements import element_names
from toolkit.base.files import is_safe_name
from toolkit.base.json_types import Fits, Matches, Range

MAX_SIZE_NAME_CHARACTERS = 64
MAX_TEXT_CHARACTERS = 256
MAX_VOCAB = 2**24
MAX_WIDTH = 2**16
MAX_LAYERS = 1024
MAX_DIMENSION = 2**20
MAX_BYTES = 2**50
MAX_FRAMES_PER_TOKEN = 2**12
MAX_DRAFT_TOKENS = 255
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0


def is_size_name(name: str) -> bool:
    """Whether a size may have this name; official sizes have names such as "E2.98B (block-level)".

    >>> [is_size_name(name) for name in ("E2B", "E2.98B (block-level)", "", "a/b", "\\n")]
    [True, True, False, False, False]
    """
    return 0 < len(name) <= MAX_SIZE_NAME_CHARACTERS and name.isascii() and name.isprintable() and "/" not in name


def _is_prefix(text: str) -> bool:
    return not text or is_safe_name(text)


def _is_text(text: str) -> bool:
    return 0 < len(text) <= MAX_TEXT_CHARACTERS and text.isprintable()


def _is_element(name: str) -> bool:
    return name in element_names()


Text = Annotated[str, Fits(_is_text, f"1 to {MAX_TEXT_CHARACTERS} printable characters")]
Name = Annotated[str, Fits(is_safe_name, "a name of letters, digits and . _ -")]
SizeName = Annotated[str, Fits(is_size_name, f"1 to {MAX_SIZE_NAME_CHARACTERS} printable characters without a slash")]
Prefix = Annotated[str, Fits(_is_prefix, "nothing, or a name of letters, digits and . _ -")]
Element = Annotated[str, Fits(_is_element, " or ".join(element_names()))]
Sha256 = Annotated[str, Matches(re.compile(r"[0-9a-f]{64}", re.ASCII), "64 lower-case hexadecimal digits")]
TokenId = Annotated[int, Range(0, MAX_VOCAB)]
VocabSize = Annotated[int, Range(1, MAX_VOCAB)]
Width = Annotated[int, Range(1, MAX_WIDTH)]
Dimension = Annotated[int, Range(1, MAX_DIMENSION)]
Bytes = Annotated[int, Range(0, MAX_BYTES)]
Positions = Annotated[int, Range(2, MAX_DIMENSION)]
"""The length of a step or of a context."""
DraftTokens = Annotated[int, Range(1, MAX_DRAFT_TOKENS)]
