"""Text from strangers (devices, file names, records) as it may be shown to people."""

from __future__ import annotations

import re

# Control characters; marks that turn the text after them around (Trojan Source, CVE-2021-42574), that end a line or
# that nobody sees; halves of surrogate pairs, which stand for bytes of a file name that are no UTF-8; and what XML,
# and so a picture, may not hold. Joiners stay: emoji and several scripts need them.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]")


def printable(text: str, *, keep: str = "") -> str:
    """`text` on one line, with the characters that would steer a terminal or mislead a reader shown as Python writes
    them; those of `keep` stay as they are.

    >>> print(printable("Pixel\\x1b[31m 8\\n"))
    Pixel\\x1b[31m 8\\n
    >>> printable("two\\nlines", keep="\\n")
    'two\\nlines'
    """
    if text.isprintable():
        return text
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_json(text: str) -> str:
    """JSON on one line that says the same, with those characters as JSON's own escapes.

    >>> printable_json('{"name": "\u202e"}')
    '{"name": "\\\\u202e"}'
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
