"""Takes away what Linux alone has, as macOS would: a plugin of pytest and of child processes.

Only where the environment has WITHOUT_LINUX=1: `WITHOUT_LINUX=1 PYTHONPATH=tests/support python -m pytest -p
without_linux`.

It shows that our code goes on, or says what is not measured; it does not make a Mac of this computer: libraries, file
systems and signals stay Linux's. /proc and /sys are hidden from Python only, since compiled libraries need them.

Sources: the availability that the documentation of Python's os, socket, resource and time modules states.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

REMOVED: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (
        os,
        (
            "O_DIRECT",
            "copy_file_range",
            "eventfd",
            "memfd_create",
            "pidfd_open",
            "pipe2",
            "posix_fadvise",
            "posix_fallocate",
            "preadv",
            "sched_getaffinity",
            "sched_setaffinity",
            "splice",
            "unshare",
        ),
    ),
    (socket, ("MSG_MORE",)),
    (resource, ("RUSAGE_THREAD", "prlimit")),
    (time, ("CLOCK_BOOTTIME",)),
    (fcntl, ("F_SETPIPE_SZ", "F_GETPIPE_SZ")),
    (signal, ("pidfd_send_signal",)),
)
"""Names that macOS's Python lacks, by module; preadv too, which it has from macOS 11 on."""
C_FUNCTIONS = ("renameat2", "malloc_trim", "mallopt", "posix_fadvise")
"""What the C library of macOS lacks of what we look up in it."""
HIDDEN = ("/proc", "/sys")
SWITCH = "WITHOUT_LINUX"


def take_away() -> None:
    """Remove the names, hide the folders, and let Python processes that this one starts do the same."""
    for module, names in REMOVED:
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    hide(os, "open", "stat", "lstat", "listdir", "scandir", "readlink", "access")
    hide(builtins, "open")
    hide(io, "open")
    hide(os.path, "exists", "isfile", "isdir", "lexists", answer=False)
    _without_functions()
    os.environ[SWITCH] = "1"
    folder = str(Path(__file__).parent / "without_linux_start")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])


def hide(module: ModuleType, *names: str, answer: bool | None = None) -> None:
    """Let functions find nothing in /proc and /sys; answer: what they return then, instead of an error."""
    for name in names:
        setattr(module, name, _hiding(getattr(module, name), answer))


def _hiding(function: Callable[..., Any], answer: bool | None) -> Callable[..., Any]:
    def hidden(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if isinstance(path, (str, bytes, os.PathLike)):
            text = os.fsdecode(os.fspath(path))
            if any(text == folder or text.startswith(f"{folder}/") for folder in HIDDEN) and _is_ours():
                if answer is not None:
                    return answer
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
        return function(path, *arguments, **options)

    return hidden


def _is_ours() -> bool:
    """Whether our code asks, and not a library that knows Linux by sys.platform: pathlib is passed over."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and Path(frame.f_code.co_filename).name in ("pathlib.py", "_local.py", "glob.py", "os.py"):
        frame = frame.f_back
    return frame is None or "site-packages" not in frame.f_code.co_filename


def _without_functions() -> None:
    whole = ctypes.CDLL

    class Library(whole):  # type: ignore[misc, valid-type]
        def __getattr__(self, name: str) -> Any:
            if name in C_FUNCTIONS:
                raise AttributeError(name)
            return super().__getattr__(name)

    ctypes.CDLL = Library  # type: ignore[misc]


if os.environ.get(SWITCH):  # not whenever it is imported: pytest imports every module, in search of doctests
    take_away()
