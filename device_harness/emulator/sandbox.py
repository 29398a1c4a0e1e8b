"""One bubblewrap sandbox for all programs of an emulated device.

A first program, the holder, keeps the namespaces alive. Each command joins its user and process namespaces, so that a
sampler can read another command's processes, and gets its own mounts, network, IPC and host name. When the holder ends,
all commands end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.errors import EnvironmentFault

SHELL_UID = 2000
"""AID_SHELL of Android's android_filesystem_config.h."""

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_UNSHARED = ("--unshare-ipc", "--unshare-uts", "--unshare-net", "--hostname", "emulated")


class Sandbox:
    """The namespaces of a device whose files are at `root`; EnvironmentFault if they cannot be made."""

    def __init__(self, root: Path, visible: Sequence[str]) -> None:
        """`visible`: folders of the host that programs see, read-only, in addition to /usr."""
        bubblewrap = shutil.which("bwrap")
        if bubblewrap is None:
            raise _fault("no bwrap")
        self._bubblewrap = bubblewrap
        self._view = _view(root, visible)
        self.fds: tuple[int, ...] = ()
        self._holder = self._hold()

    def argv(self) -> list[str]:
        """The words to put before a command; it needs the file descriptors `fds` of this process."""
        users, processes = self.fds
        joined = ["--userns", str(users), "--pidns", str(processes)]
        return [self._bubblewrap, *joined, *_UNSHARED, *self._view]

    def close(self) -> None:
        """End all programs."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        if self._holder.stdin is not None and self._holder.stdout is not None:
            self._holder.stdin.close()
            self._holder.stdout.close()
        self._holder.kill()
        self._holder.wait()

    def _hold(self) -> subprocess.Popen[bytes]:
        """Start the holder, which ends with its input: with this process, however that ends."""
        ids = ["--uid", str(SHELL_UID), "--gid", str(SHELL_UID)]
        told, tell = os.pipe()
        options = ["--unshare-user", "--unshare-pid", *ids, "--info-fd", str(tell), *_UNSHARED, *self._view]
        try:
            holder = subprocess.Popen(
                [self._bubblewrap, *options, "/bin/sh", "-c", "echo ready; read -r line"],
                pass_fds=[tell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        finally:
            os.close(tell)
        assert holder.stdin is not None and holder.stdout is not None
        with os.fdopen(told) as information:
            said = holder.stdout.readline().decode("utf-8", "replace").strip()
            text = information.read() if said == "ready" else ""
        try:
            child = int(json.loads(text)["child-pid"])
            self.fds = tuple(
                os.open(f"/proc/{child}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "pid")
            )
            self._require_joining()
        except (ValueError, KeyError, OSError, EnvironmentFault) as error:
            self._holder = holder
            self.close()
            raise _fault(said if said != "ready" else str(error)) from error
        return holder

    def _require_joining(self) -> None:
        """EnvironmentFault if commands cannot join: with old versions of bubblewrap and some kernels, nobody can."""
        done = subprocess.run(
            [*self.argv(), "/bin/sh", "-c", ":"], pass_fds=self.fds, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise _fault(done.stderr.strip())


def _view(root: Path, visible: Sequence[str]) -> list[str]:
    """The file system that programs see. No --dev: it would put the user into yet another namespace."""
    options = ["--chdir", "/", "--ro-bind", "/usr", "/usr", "--tmpfs", "/tmp", "--proc", "/proc", "--tmpfs", "/dev/shm"]
    for name in _DEVICES:
        options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    options += ["--symlink", "/proc/self/fd", "/dev/fd"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            options += ["--ro-bind", name, name]
    options += ["--ro-bind", str(root / "etc"), "/etc"]
    for name in ("/etc/alternatives", "/etc/ld.so.cache"):
        options += ["--ro-bind-try", name, name]
    for name in ("data", "sdcard"):
        options += ["--bind", str(root / name), f"/{name}"]
    for name in ("system", "sys"):
        options += ["--ro-bind", str(root / name), f"/{name}"]
    for name in visible:
        options += ["--ro-bind", name, name]
    return options


def _fault(found: str) -> EnvironmentFault:
    remedy = "apt-get install bubblewrap, or --isolation folder"
    return EnvironmentFault("bubblewrap", found=found or "an unknown failure", wanted="a sandbox", remedy=remedy)
