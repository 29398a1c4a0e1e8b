"""Makes untrusted text (from devices, file names, records) safe to show to people."""

from __future__ import annotations

import re

# Control characters; marks that change the direction of text (Trojan Source, CVE-2021-42574), end a line or are
# invisible; lone surrogates, which stand for bytes of a file name that are not UTF-8; and characters that XML, and so
# an SVG plot, may not contain. Joiners are kept: emoji and several scripts need them.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str, *, keep: str = "") -> str:
    """Escape, as Python does, the characters of `text` that could control a terminal or mislead a reader.

    The result is one line. Characters in `keep` are not escaped.

    >>> print(printable("Pixel\\x1b[31m 8\\n"))
    Pixel\\x1b[31m 8\\n
    >>> printable("two\\nlines", keep="\\n")
    'two\\nlines'
    """
    if text.isprintable():
        return text
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_json(text: str) -> str:
    """Escape the same characters in a JSON text, with JSON's own escapes, so that its value stays the same.

    >>> printable_json('{"name": "\u202e"}')
    '{"name": "\\\\u202e"}'
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spreadsheet_text(text: str) -> str:
    """`printable` for a cell of CSV, with an apostrophe before what a spreadsheet would take for a formula.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("1 + 1")
    ("'=1+1", '1 + 1')
    """
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
