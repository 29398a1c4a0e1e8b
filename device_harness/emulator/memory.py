"""A memory limit for all programs of an emulated device, enforced by the kernel's control groups."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from toolkit.base.errors import EnvironmentFault

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0" && exec "$@"'


class MemoryLimit:
    """A control group with a memory limit; file pages count too, as on a phone with little memory."""

    def __init__(self, limit_bytes: int) -> None:
        """EnvironmentFault if this user may not create control groups."""
        self._folder = _new_group(limit_bytes)

    def entering(self) -> list[str]:
        """The words to put before a command so that it and its children count."""
        return ["/bin/sh", "-c", _ENTER, str(self._folder / "cgroup.procs")]

    def peak_bytes(self) -> int | None:
        """The peak memory of its programs, with pages of files that they read first; None if it is not reported."""
        for file in ("memory.max_usage_in_bytes", "memory.peak"):
            with contextlib.suppress(OSError, ValueError):
                return int((self._folder / file).read_text())
        return None

    def close(self) -> None:
        """Remove the group; its programs have ended."""
        for _ in range(100):
            try:
                self._folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                # The kernel still counts a program that was just killed.
                time.sleep(0.01)


def _new_group(limit_bytes: int) -> Path:
    name = f"gemma-edge-emulator-{os.getpid()}-{os.urandom(4).hex()}"
    reasons = []
    for parent, file in ((_V1, "memory.limit_in_bytes"), (_V2, "memory.max")):
        if not _has_memory(parent):
            reasons.append(f"no memory controller in {parent}")
            continue
        folder = parent / name
        try:
            folder.mkdir()
            (folder / file).write_text(str(limit_bytes))
            return folder
        except OSError as error:
            reasons.append(f"{error.strerror} in {parent}")
            with contextlib.suppress(OSError):
                folder.rmdir()
    raise EnvironmentFault(
        "memory limit", found="; ".join(reasons), wanted="a control group", remedy="run as root, or without --memory"
    )


def _has_memory(parent: Path) -> bool:
    if parent == _V1:
        return (parent / "memory.limit_in_bytes").is_file()
    try:
        return "memory" in (parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
