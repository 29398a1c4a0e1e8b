"""What happens to a program's output on its way."""

from __future__ import annotations

from collections.abc import Callable


def crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


def logcat_threadtime(text: str) -> str:
    return "".join(f"11-25 15:00:00.123  4321  4330 I native  : {line}\n" for line in text.splitlines())


def logcat_brief(text: str) -> str:
    return "".join(f"I/native  ( 4321): {line}\n" for line in text.splitlines())


def noise(text: str) -> str:
    """Other lines between, before and after."""
    junk = "WARNING: linker: unsupported flags\n\nW0000 00:00:1.1  9 x.cc:2] odd: 17 ms\nhello: world\n\x1b[0m\n"
    return junk + "".join(f"{line}\n{junk}" for line in text.splitlines())


MANGLINGS: tuple[Callable[[str], str], ...] = (
    crlf,
    logcat_threadtime,
    logcat_brief,
    noise,
    lambda text: crlf(logcat_brief(noise(text))),
)
NAMES = ("CRLF", "logcat threadtime", "logcat brief", "noise", "all of them")
