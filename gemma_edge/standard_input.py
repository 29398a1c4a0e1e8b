"""Reads text from standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from toolkit.base.errors import UsageError


def read_all() -> str:
    """All of standard input; UsageError if its bytes cannot be read as text.

    Bytes that are not UTF-8 become lone surrogates, whatever Python was told to do with them: `require_unicode` finds
    them where the text is used, and says where they are.
    """
    return _read(lambda: sys.stdin.read())


def read_line() -> str | None:
    """The next line without its end, or None at the end of the input; otherwise as `read_all`."""
    line = _read(lambda: sys.stdin.readline())
    return line.removesuffix("\n") if line else None


def _read(read: Callable[[], str]) -> str:
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        return read()
    except UnicodeDecodeError as error:  # an encoding such as UTF-16, whose bytes cannot be escaped
        raise UsageError("standard input", found=f"not {error.encoding} text ({error})") from error
