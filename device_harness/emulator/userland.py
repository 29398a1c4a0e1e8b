"""The emulated device's files and programs: a folder that looks like Android's, and a shell that sees it.

With bubblewrap, programs run in a sandbox (user 2000, no network, own processes, the host's programs read-only).
Without it, the host's shell runs them, with the paths in each command moved below the folder, and nothing is isolated.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import device_harness
from device_harness.emulator import templates
from device_harness.emulator.faults import Faults
from device_harness.emulator.memory import MemoryLimit
from device_harness.emulator.power import PlayedPower
from device_harness.emulator.sandbox import SHELL_UID, Sandbox
from toolkit.base.errors import EnvironmentFault
from toolkit.base.outputs import OutputKind

Isolation = Literal["auto", "bubblewrap", "folder"]

_TREE = (
    "data/local/tmp",
    "data/misc/perfetto-traces",
    "data/system/settings",
    "sdcard",
    "etc/alternatives",
    "system/bin",
    "system/state/dumpsys",
    "sys",
)
_OURS = re.compile(r"(?<![\w./-])/(data|sdcard|system|sys)(?![\w.-])", re.ASCII)
_MARK = "GEMMA_EDGE_EMULATOR"
_CPU = Path("/sys/devices/system/cpu")
_GLOBAL_PROC = re.compile(r"/proc/[a-z]+", re.ASCII)
_MOST_LINKS = 40
"""MAXSYMLINKS of the kernel."""
_GIVE_UP_S = 5.0
_PASSWD = f"shell:x:{SHELL_UID}:{SHELL_UID}::/data/local/tmp:/system/bin/sh\n"


def _stranger(root: Path) -> str | None:
    """What a directory is if it contains files that no emulated device made; None otherwise."""
    try:
        made = (root / "etc/passwd").read_text(encoding="utf-8") == _PASSWD
    except (OSError, ValueError):
        made = False
    return None if made else "a directory with files in it that no emulated device made"


DEVICE_FILES = OutputKind("the files of an emulated device", _stranger, is_directory=True)


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute, and with which environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    fds: tuple[int, ...] = ()
    """File descriptors that the program inherits."""


class Userland:
    """A device's file tree at `root`, and how its commands run."""

    def __init__(
        self, root: Path, serial: str, *, isolation: Isolation, memory: MemoryLimit | None, limits_storage: bool
    ) -> None:
        self.root = root.resolve()
        self._serial = serial
        self._memory = memory
        self._mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._power = PlayedPower(self.root, self._write_state)
        self._make_tree(limits_storage=limits_storage)
        self._sandbox = self._isolate(isolation)
        self._search_path = [self._path("/system/bin"), "/usr/local/bin", "/usr/bin", "/bin"]

    def program(self, command: str) -> Program:
        """`sh -c COMMAND` as this device runs it; a shell that reads its input if there is no command."""
        shell = ["sh", "-c", self._translated(command)] if command else ["sh"]
        if self._sandbox is not None:
            argv = [*self._sandbox.argv(), *shell]
        else:
            argv = [self._path("/system/bin/sh"), *shell[1:]]
        if self._memory is not None:
            argv = [*self._memory.entering(), *argv]
        return Program(tuple(argv), self._environment(), self._sandbox.fds if self._sandbox else ())

    @property
    def is_isolated(self) -> bool:
        """Whether its programs are kept from the host's files, processes and network."""
        return self._sandbox is not None

    def close(self) -> None:
        """End all programs; none can be started afterwards."""
        self._power.close()
        self.end_programs()
        if self._sandbox is not None:
            self._sandbox.close()

    @property
    def output_prefix(self) -> bytes:
        """What to remove from a command's output, so that it shows the device's paths; empty if it does so anyway."""
        return b"" if self.is_isolated else str(self.root).encode()

    def local(self, path: str, *, follow: bool = True) -> Path:
        """The host's path for one on the device, where links see the device's `/`. `follow`: resolve a last link too.

        In /proc, files about the whole system are the host's. PermissionError for the rest of it; OSError for a loop.
        """
        if _GLOBAL_PROC.fullmatch(path):
            found = Path(path)
            if found.is_file() and found.stat().st_mode & 0o004:
                return found
        return self._walk(path, follow=follow)

    def _walk(self, path: str, *, follow: bool) -> Path:
        left = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        at, links = self.root, 0
        while left:
            part = left.pop()
            if part == "..":
                at = at.parent if at != self.root else at
                continue
            here = at / part
            if not here.is_symlink() or not (left or follow):
                at = here
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            # Without a sandbox, links that the device's programs make contain paths of this computer.
            target = os.readlink(here).removeprefix(str(self.root))
            left += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            at = self.root if target.startswith("/") else at
        if at == self.root / "proc" or self.root / "proc" in at.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return at

    def is_writable(self, path: Path) -> bool:
        """Whether the device's shell user may write there."""
        return any(self.root / name in path.parents for name in ("data", "sdcard"))

    def stored_bytes(self) -> int:
        """Bytes of all files in /data and /sdcard."""
        total = 0
        for name in ("data", "sdcard"):
            for folder, _, files in os.walk(self.root / name):
                for file in files:
                    try:
                        total += os.lstat(os.path.join(folder, file)).st_size
                    except FileNotFoundError:
                        continue
        return total

    def show_storage(self, total: int, used: int) -> None:
        """Set the storage that df reports from now on."""
        self._write_state("storage", f"{total} {used}\n")

    def show_faults(self, faults: Faults) -> None:
        """What dumpsys and the thermal zone report from now on."""
        celsius = templates.skin_celsius(faults.thermal_status)
        self._write_state("dumpsys/thermalservice", templates.thermal(faults.thermal_status))
        self._power.show(faults)
        self._write_state("dumpsys/power", templates.power(is_screen_on=faults.is_screen_on))
        zone = self.root / "sys/class/thermal/thermal_zone0"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "type").write_text("skin\n")
        (zone / "temp").write_text(f"{round(1000 * celsius)}\n")

    def end_programs(self) -> None:
        """Kill whatever the device still runs, recognised by a mark in its environment."""
        deadline = time.monotonic() + _GIVE_UP_S
        while (found := self._running()) and time.monotonic() < deadline:
            for process in found:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    def _running(self) -> list[int]:
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
        return found

    def _make_tree(self, *, limits_storage: bool) -> None:
        for name in _TREE:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        scripts = {"dumpsys": templates.DUMPSYS, "getprop": templates.GETPROP, "settings": templates.SETTINGS}
        scripts |= {"cmd": templates.CMD, "perfetto": templates.PERFETTO}
        scripts |= {"python3": templates.PYTHON} | ({"df": templates.DF} if limits_storage else {})
        folder = self.root / "system/bin"
        for name, text in scripts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        _link_programs(folder)
        (self.root / "etc/passwd").write_text(_PASSWD)
        (self.root / "etc/ld.so.cache").touch()  # a mount point for the host's
        (self.root / "etc/group").write_text(f"shell:x:{SHELL_UID}:\n")
        for name, value in templates.settings().items():
            (self.root / "data/system/settings" / name).write_text(value + "\n")
        properties = templates.properties(self._serial)
        self._write_state("props", "".join(f"{name}={value}\n" for name, value in properties.items()))
        self._copy_cpus()
        self.show_faults(Faults())

    def _copy_cpus(self) -> None:
        """Copy the host's files about its CPUs, whose number LiteRT reads there, and add a cluster with a governor."""
        target = self.root / "sys/devices/system/cpu"
        target.mkdir(parents=True, exist_ok=True)
        for name in ("possible", "present", "online", "kernel_max"):
            if (_CPU / name).is_file():
                (target / name).write_text((_CPU / name).read_text())
        cpus = range(os.cpu_count() or 1)
        for frequency in (target / "cpufreq/policy0", *(target / f"cpu{cpu}/cpufreq" for cpu in cpus)):
            frequency.mkdir(parents=True, exist_ok=True)
            for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq"):
                (frequency / name).write_text("2000000\n")
            (frequency / "scaling_governor").write_text("schedutil\n")
        (target / "cpufreq/policy0/related_cpus").write_text(" ".join(map(str, cpus)) + "\n")

    def _write_state(self, name: str, text: str) -> None:
        """Replace a file in one step, because a command may be reading it."""
        path = self.root / "system/state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".new")
        partial.write_text(text)
        partial.replace(path)

    def _path(self, path: str) -> str:
        return path if self.is_isolated else str(self.root) + path

    def _translated(self, command: str) -> str:
        return command if self.is_isolated else _OURS.sub(lambda match: f"{self.root}/{match[1]}", command)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": ":".join(self._search_path),
            "HOME": self._path("/data/local/tmp"),
            "TMPDIR": self._path("/data/local/tmp"),
            "LC_ALL": "C.UTF-8",  # Android's C library knows nothing else
            "USER": "shell",
            "LOGNAME": "shell",
            "SHELL": self._path("/system/bin/sh"),
            "ANDROID_ROOT": self._path("/system"),
            "ANDROID_DATA": self._path("/data"),
            "STATE": self._path("/system/state"),
            "DATA": self._path("/data"),
            "HOST_PYTHON": sys.executable,
            "HOST_DF": shutil.which("df") or "df",
            "PYTHONPATH": str(_packages()),
            _MARK: self._mark,
        }

    def _isolate(self, isolation: Isolation) -> Sandbox | None:
        """A sandbox, if one is wanted and possible; EnvironmentFault if it is required and not possible."""
        if isolation == "folder":
            return None
        prefixes = sorted({sys.prefix, sys.base_prefix, str(_packages())})
        try:
            return Sandbox(self.root, [prefix for prefix in prefixes if not Path(prefix).is_relative_to("/usr")])
        except EnvironmentFault:
            if isolation == "bubblewrap":
                raise
            return None


def _link_programs(folder: Path) -> None:
    """Link toybox's commands, as on Android, if the host has it; the host's own come later on the search path."""
    shell = shutil.which("mksh") or "/bin/sh"
    _link(folder / "sh", shell)
    toybox = shutil.which("toybox")
    if toybox is None:
        return
    names = subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if not (folder / name).exists() and "/" not in name:
            _link(folder / name, toybox)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _packages() -> Path:
    """The folder of gemma-edge's own packages, for runners written in Python."""
    return Path(device_harness.__file__).resolve().parents[1]
