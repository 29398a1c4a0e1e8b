"""Text from strangers (devices, file names, records) as it may be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, without the control characters by which a device's strings could steer a terminal.

    >>> printable("Pixel\\x1b[31m 8\\n")
    'Pixel\ufffd[31m 8\ufffd'
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
