"""Programs of a newer Debian than this one: their packages are downloaded and unpacked, never installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_S = 150


class Unavailable(Exception):
    """Why a program cannot be had here."""


@dataclass(frozen=True, slots=True)
class UnpackedPackages:
    """Packages of a Debian release for amd64, unpacked in a folder of the user's cache."""

    name: str
    """Of the folder, and in errors."""
    suite: str
    packages: tuple[str, ...]
    with_dependencies: bool = True

    def folder(self) -> Path:
        """Where they stay."""
        base = os.environ.get("XDG_CACHE_HOME")
        key = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:8]
        return (Path(base) if base else Path.home() / ".cache") / "gemma-edge-tests" / f"{self.name}-{key}"

    def fetch(self) -> Path:
        """Download and unpack, once; the root of the unpacked packages. Unavailable with the reason."""
        folder = self.folder()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            root = folder / "root"
            if not root.is_dir():
                self._require_tools()
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    self._download(Path(scratch))
                    unpacked = Path(scratch) / "root"
                    for package in sorted((Path(scratch) / "cache/archives").glob("*.deb")):
                        subprocess.run(["dpkg", "-x", package, unpacked], check=True)
                    unpacked.rename(root)
        return root

    def _require_tools(self) -> None:
        missing = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
        if missing or not _KEYRING.is_file():
            tools = " and ".join(missing) or _KEYRING
            raise Unavailable(f"{self.name} is fetched from Debian with {tools}, which is not here")
        if os.uname().machine != "x86_64":
            raise Unavailable(f"{self.name} is fetched for x86_64, not {os.uname().machine}")

    def _download(self, scratch: Path) -> None:
        """By apt-get with folders of its own: this machine's lists and packages stay as they are."""
        shown = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
        places = subprocess.run(shown, capture_output=True, text=True, check=False).stdout.split()
        if not places:
            raise Unavailable(f"{self.name} is fetched from Debian, and this machine's apt-get knows no Debian")
        (scratch / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {places[0]} {self.suite} main\n")
        archives = scratch / "cache/archives"
        for folder in (scratch / "state/lists/partial", archives / "partial"):
            folder.mkdir(parents=True)
        self._apt(scratch, archives, ["update"])
        if self.with_dependencies:
            self._apt(scratch, archives, ["--yes", "--download-only", "install", *self.packages])
        else:
            self._apt(scratch, archives, ["download", *self.packages])

    def _apt(self, scratch: Path, working: Path, words: Sequence[str]) -> None:
        options = {
            "Dir::Etc::sourcelist": scratch / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State": scratch / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": scratch / "cache",
            "Debug::NoLocking": "1",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "0",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "1",
            "Acquire::http::Timeout": "20",
        }
        apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
        try:
            done = subprocess.run(
                [*apt, *words], cwd=working, capture_output=True, text=True, check=False, timeout=_FETCH_S
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{self.name} could not be fetched within {_FETCH_S} s") from error
        if done.returncode:
            raise Unavailable(f"{self.name} could not be fetched: {(done.stderr.strip() or '?').splitlines()[-1]}")
