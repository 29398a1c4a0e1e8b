"""Numbers on the command line that have bounds."""

from __future__ import annotations

from toolkit.base.errors import UsageError


def within(text: str, least: int, most: int) -> int:
    """A whole number in decimal digits, from `least` (0 or more) to `most`, written with no more digits than `most`.

    >>> within("5555", 0, 65535)
    5555
    """
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))) or not least <= int(text) <= most:
        raise UsageError(found=repr(text), wanted=f"{least} to {most}")
    return int(text)
