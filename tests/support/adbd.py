"""AOSP's own adbd as a device: Debian's build of version 34, in a sandbox with a network of its own.

`python tests/support/adbd.py` fetches it. The packages are unpacked, never installed. Two things are patched in a copy:
adbd also listens on vsock, which no network namespace hides; and it asks nobody for a key.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import pytest
from debian import Unavailable, UnpackedPackages

from device_harness.emulator.faults import Faults

SUITE = "trixie"
PACKAGES = ("adbd=34.0.5-12", "adb=1:34.0.5-12", "toybox", "mksh", "coreutils", "busybox")
ADBD = "usr/lib/android-sdk/platform-tools/adbd"
ADBD_SHA256 = "12e6493107d4c51ccc595efde96acae75838584bd1cf4d451a50e679f1498d1a"
SHELL_UID = 2000
PORT = 5555
LOCAL = "127.0.0.1"

_START_S = 15.0
_BUFFER_BYTES = 256 * 1024
_CLONE_NEWNET = 0x40000000
_ASIDE = "/debian"
"""Where the packages are in a sandbox that has this computer's programs."""
_BORROWED = ("dd", "tr", "sha256sum", "timeout", "stat", "df")
"""Programs of coreutils' in place of those that Debian's toybox lacks or has with other options than Android's."""


Userland = Literal["android", "toybox", "busybox", "host"]
"""mksh and toybox with what Android's toybox has beside Debian's; without that; busybox; this computer's programs."""


def packages() -> UnpackedPackages:
    """adbd and the programs of its userlands."""
    return UnpackedPackages("adbd-34.0.5-12", SUITE, PACKAGES)


def fetch() -> Path:
    """Download and unpack, once; the root of the unpacked packages."""
    if os.uname().machine != "x86_64":
        raise Unavailable(f"adbd is patched for x86_64, not {os.uname().machine}")
    root = packages().fetch()
    found = hashlib.sha256((root / ADBD).read_bytes()).hexdigest()
    if found != ADBD_SHA256:
        raise Unavailable(f"{root / ADBD} has other bytes (sha256 {found}) than the adbd that is patched here")
    return root


def patched(root: Path, *, asks_for_key: bool) -> bytes:
    """adbd that listens on TCP alone, and that lets everybody in or only who has a key."""
    program = bytearray((root / ADBD).read_bytes())
    at = program.find(b"vsock:%d")
    program[at : at + len(b"vsock:%d")] = b"local:%d"
    if asks_for_key:
        # `auth_required = false` of its main: mov byte [auth_required], 0.
        sequence = bytes.fromhex("488d0573ef0200c60000")
        if program.count(sequence) != 1:
            raise Unavailable("the place that turns adbd's authentication off was not found")
        program[program.find(sequence) + len(sequence) - 1] = 1
    return bytes(program)


class Peer(Protocol):
    """What tests need of a device, ours or AOSP's."""

    @property
    def serial(self) -> str: ...
    def path(self, remote: str) -> Path: ...
    def set_faults(self, faults: Faults) -> None: ...


@dataclass(frozen=True, slots=True)
class AdbdSettings:
    """What is started."""

    keys: tuple[bytes, ...] | None = None
    """Public keys that may connect; None: everybody."""
    visible: tuple[Path, ...] = field(default_factory=tuple)
    """Folders of this computer that its programs see under the same path, read-only."""
    userland: Userland = "android"
    tmp: Literal["writable", "read-only", "missing"] = "writable"
    """What /data/local/tmp is."""
    storage_bytes: int | None = None
    """What all of /data can hold; None: what this computer can."""


class Adbd:
    """A running adbd at `serial` from `__enter__` to `__exit__`; its programs are toybox's and mksh."""

    def __init__(self, root: Path, settings: AdbdSettings | None = None) -> None:
        """`root`: what `fetch` gives."""
        self._root = root
        self._settings = settings or AdbdSettings()
        self._cut_at: int | None = None
        self._received = 0
        self._counting = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()

    def __enter__(self) -> Adbd:
        if os.geteuid() != 0:
            raise Unavailable("only root reaches into the network namespace that adbd is kept in")
        if shutil.which("bwrap") is None:
            raise Unavailable("adbd is kept in a sandbox of bubblewrap's (apt-get install bubblewrap)")
        self._scratch = Path(tempfile.mkdtemp(prefix="gemma-edge-adbd-"))
        self._make_tree()
        with open(self._scratch / "log", "wb") as log:  # a pipe that nobody reads would stop adbd
            self._process = subprocess.Popen(self._argv(), stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._listener = socket.create_server((LOCAL, 0))
        self.port = self._listener.getsockname()[1]
        try:
            self.pid = self._await_adbd()
            self._serve()
            self._await_port()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        assert self._process.stdin is not None
        self._process.stdin.close()  # the shell that holds the sandbox ends with its input, and takes all with it
        self._process.wait(10)
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def serial(self) -> str:
        """HOST:PORT on this computer, from where connections are passed on into the sandbox's network."""
        return f"{LOCAL}:{self.port}"

    def path(self, remote: str) -> Path:
        """Where a path of the device lies on this computer."""
        is_inside = self._settings.storage_bytes is not None and remote.startswith("/data/")
        return (Path(f"/proc/{self.pid}/root") if is_inside else self._scratch) / remote.lstrip("/")

    def peak_bytes(self) -> int:
        """The most memory that adbd itself has had."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def set_faults(self, faults: Faults) -> None:
        """A cut is made on the way to adbd; whatever would have to go wrong inside of it skips the test."""
        if faults != Faults(drop_at_byte=faults.drop_at_byte):
            pytest.skip("AOSP's adbd makes no mistakes on request")
        with self._counting:
            self._cut_at, self._received = faults.drop_at_byte, 0

    @property
    def received(self) -> int:
        """Bytes that have come from hosts since `set_faults`."""
        return self._received

    def cut(self) -> None:
        """End all connections, as a pulled cable does."""
        for pair in list(self._pairs):
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def inside(self, *command: str) -> list[str]:
        """A command of this computer in the sandbox's network, where adbd is 127.0.0.1:5555."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def _make_tree(self) -> None:
        for name in ("data/local/tmp", "data/misc/adb", "sdcard", "system/bin", "etc"):
            (self._scratch / name).mkdir(parents=True)
        keys = self._settings.keys
        if keys is not None:
            (self._scratch / "data/misc/adb/adb_keys").write_bytes(b"\n".join(keys) + b"\n")
        program = self._scratch / "adbd"
        program.write_bytes(patched(self._root, asks_for_key=keys is not None))
        program.chmod(0o755)
        (self._scratch / "etc/passwd").write_text(f"shell:x:{SHELL_UID}:{SHELL_UID}::/data/local/tmp:/system/bin/sh\n")
        (self._scratch / "etc/group").write_text(f"shell:x:{SHELL_UID}:\n")
        if self._settings.tmp == "missing":
            (self._scratch / "data/local/tmp").rmdir()
        self._link_programs(self._scratch / "system/bin")

    def _link_programs(self, folder: Path) -> None:
        kind = self._settings.userland
        box = "busybox" if kind == "busybox" else "toybox"
        command = [f"/usr/bin/{box}", *(["--list"] if kind == "busybox" else [])]
        listed = subprocess.run(self._bare(*command), capture_output=True, text=True, check=False)
        if listed.returncode:
            raise Unavailable(f"bubblewrap makes no sandbox here: {listed.stderr.strip()}")
        names = {} if kind == "host" else {name: box for name in listed.stdout.split()}
        names |= {"sh": {"busybox": "busybox", "host": "sh"}.get(kind, "mksh")}
        names |= {name: name for name in _BORROWED} if kind == "android" else {}
        for name, target in names.items():
            (folder / name).symlink_to(f"/usr/bin/{target}")

    def _bare(self, *command: str, usr: str = "/usr") -> list[str]:
        """A sandbox with Debian's packages at `usr`, and no others."""
        ids = ["--unshare-user", "--uid", str(SHELL_UID), "--gid", str(SHELL_UID)]
        links = ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
        return [
            *("bwrap", *ids, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "adbd"),
            *("--ro-bind", str(self._root / "usr"), usr, *links, "--proc", "/proc", "--dev", "/dev", "--clearenv"),
            *command,
        ]

    def _argv(self) -> list[str]:
        is_host = self._settings.userland == "host"
        shown = ["--ro-bind", str(self._scratch / "system"), "/system"]
        shown += ["--ro-bind", str(self._scratch / "adbd"), "/adbd"]
        if is_host:
            shown += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--ro-bind", "/etc", "/etc"]
        else:
            shown += ["--symlink", "system/bin", "/bin", "--ro-bind", str(self._scratch / "etc"), "/etc"]
        for name in ("data", "sdcard"):
            shown += ["--bind", str(self._scratch / name), f"/{name}"]
        if self._settings.storage_bytes is not None:
            shown += ["--size", str(self._settings.storage_bytes), "--tmpfs", "/data"]
            shown += [word for name in ("local", "local/tmp") for word in ("--dir", f"/data/{name}")]
        if self._settings.tmp == "read-only":
            shown += ["--remount-ro", "/data"]
        for path in self._settings.visible:
            shown += ["--ro-bind", str(path), str(path)]
        shown += ["--ro-bind", "/sys", "/sys", "--tmpfs", "/tmp", "--chdir", "/"]
        search = "/usr/bin:/bin" if is_host else "/system/bin"
        variables = {"PATH": search, "HOME": "/data/local/tmp", "TMPDIR": "/data/local/tmp", "ADBD_PORT": PORT}
        for name, value in variables.items():
            shown += ["--setenv", name, str(value)]
        usr = _ASIDE if is_host else "/usr"
        lib = f"{usr}/lib/x86_64-linux-gnu"
        loader = f"{usr}/lib64/ld-linux-x86-64.so.2 --library-path {lib}:{lib}/android "
        # The sandbox ends with its input. adbd itself is not in the background, where it would ignore SIGINT for all.
        script = (
            f"exec 3<&0; {{ read -r line <&3; kill -9 -1; }} & exec {loader if is_host else ''}/adbd </dev/null 3<&-"
        )
        return self._bare(*shown, "/bin/sh" if is_host else f"{usr}/bin/mksh", "-c", script, usr=usr)

    def _await_adbd(self) -> int:
        """Its process id here, once it runs."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for process in _descendants(self._process.pid):
                with suppress(OSError):
                    words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                    if b"/adbd" in (words[0], *words[-2:-1]) and b"-c" not in words:
                        return process
            time.sleep(0.02)
        raise Unavailable(f"adbd did not start: {self._words()}")

    def _await_port(self) -> None:
        """Until adbd listens: a connection to it is not cut at once."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.create_connection((LOCAL, self.port)) as probe:
                probe.settimeout(0.3)
                try:
                    if probe.recv(1):
                        return
                except TimeoutError:
                    return
            time.sleep(0.05)
        raise Unavailable(f"adbd does not listen: {self._words()}")

    def _words(self) -> str:
        return (self._scratch / "log").read_text(errors="replace").strip()[-500:]

    def _serve(self) -> None:
        """Pass connections on: by a thread that is in the sandbox's network, with a listener that is in ours."""
        failed: list[int] = []
        entered = threading.Event()

        def run() -> None:
            with open(f"/proc/{self.pid}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    failed.append(ctypes.get_errno())
            entered.set()
            while not failed:
                try:
                    host, _ = self._listener.accept()
                except OSError:
                    return
                self._pass_on(host)

        threading.Thread(target=run, name="adbd's network", daemon=True).start()
        entered.wait()
        if failed:
            raise Unavailable(f"adbd's network namespace cannot be entered: {os.strerror(failed[0])}")

    def _pass_on(self, host: socket.socket) -> None:
        try:
            device = socket.create_connection((LOCAL, PORT))
        except OSError:
            host.close()
            return
        pair = (host, device)
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(pair)
        left = [2]
        for ends in (pair, pair[::-1]):
            threading.Thread(target=partial(self._copy, *ends, pair, left), daemon=True).start()

    def _copy(
        self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket], left: list[int]
    ) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with suppress(OSError):
            while count := source.recv_into(buffer):
                if source is pair[0]:
                    count = self._admit(count)
                target.sendall(buffer[:count])
                if self._cut_at is not None and self._received >= self._cut_at and source is pair[0]:
                    self._cut_at = None
                    self.cut()
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._counting:
            left[0] -= 1
            if not left[0]:
                self._pairs.discard(pair)
                for end in pair:
                    end.close()

    def _admit(self, count: int) -> int:
        """How many of the bytes come before the cut."""
        with self._counting:
            if self._cut_at is not None:
                count = max(0, min(count, self._cut_at - self._received))
            self._received += count
            return count


def _descendants(process: int) -> list[int]:
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def main() -> None:
    """Fetch it, so that no test has to."""
    try:
        print(f"AOSP's adbd: {fetch()}")
    except Unavailable as error:
        sys.exit(f"no adbd of AOSP's; the tests that need it are skipped: {error}")


if __name__ == "__main__":
    main()
