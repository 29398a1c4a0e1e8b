"""Finds LiteRT's library for the machine that is to run it.

For Linux it is `libLiteRt.so` of the installed ai-edge-litert. For Android, Google publishes it in its storage bucket,
and pip has it inside `litert-lm-api` for Android: version 0.18.1 exports LiteRT's C functions, later ones do not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_harness.programs.bucket import GOOGLE, Bucket
from device_harness.programs.build import Architecture, parse_architecture
from device_harness.programs.bundle_runner import System
from device_harness.programs.published import PublishedProgram, fetch_program
from toolkit.base.errors import EnvironmentFault, UsageError, system_reason
from toolkit.base.files import Progress, atomic_file, hash_file, locked_directory
from toolkit.runtime.weight_cache import default_directory

LIBRARY = "libLiteRt.so"
INSTEAD = "give --library PATH"

WHEEL, WHEEL_VERSION, WHEEL_TAG = "litert-lm-api", "0.18.1", "android_23_arm64_v8a"
WHEEL_SHA256 = "95826534a48f79a8fbcc6b47838d1a85cbfdebe7f1c7939d98780167a74fb1de"
WHEEL_MEMBER = "litert_lm/liblitert-lm.so"
MEMBER_SHA256 = "704b891fe25e9a526af717682e33b8f6310355be9e566821e2530499bffb1cc9"

_MACHINES: dict[int, Architecture] = {0xB7: "aarch64", 0x3E: "x86_64"}
_ABIS: dict[Architecture, str] = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}
_NEEDED = (b"LiteRtCreateCompiledModel", b"LiteRtRunCompiledModel", b"LiteRtCreateManagedTensorBuffer")
"""Some of the functions that the program needs; it looks all of them up itself."""
_DOWNLOAD_S = 600.0


@dataclass(frozen=True, slots=True)
class LibraryChoice:
    """Which library the user wants; neither: the usual one for the machine."""

    path: Path | None = None
    version: str | None = None
    """A version in Google's bucket, such as 2.3.0 or latest."""
    server: str = GOOGLE


@dataclass(frozen=True, slots=True)
class LiteRtLibrary:
    """LiteRT's library on this computer, for one machine."""

    path: Path
    runtime: str
    """What the names of weight caches depend on: the version of ai-edge-litert, or the library's hash."""
    version: str | None


def find_library(
    system: System,
    architecture: Architecture,
    choice: LibraryChoice,
    *,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> LiteRtLibrary:
    """Find the library, and download it once if it is not on this computer; EnvironmentFault, with a remedy, if not."""
    if choice.path is not None:
        return _checked(choice.path, architecture, None)
    if choice.version is not None:
        return _from_bucket(system, architecture, choice, say, progress)
    if system == "android":
        return _from_wheel(architecture, say)
    return _installed(architecture)


def _installed(architecture: Architecture) -> LiteRtLibrary:
    spec = importlib.util.find_spec("ai_edge_litert")
    path = Path(spec.origin).parent / LIBRARY if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file() or architecture != parse_architecture(os.uname().machine, "host"):
        found = f"none for {architecture} Linux on this computer"
        raise EnvironmentFault(f"LiteRT's library {LIBRARY}", found=found, remedy=INSTEAD)
    version = importlib.metadata.version("ai-edge-litert")
    return LiteRtLibrary(_checked(path, architecture, version).path, version, version)


def _from_bucket(
    system: System,
    architecture: Architecture,
    choice: LibraryChoice,
    say: Callable[[str], None],
    progress: Progress | None,
) -> LiteRtLibrary:
    if system != "android":
        found = "cannot be used here, because Google publishes the library for Android only"
        raise UsageError("--library-version", found=found, remedy="give the path of your own with --library")
    assert choice.version is not None
    published = PublishedProgram(LIBRARY, choice.version, _ABIS[architecture])
    path = fetch_program(published, Bucket(choice.server), say=say, progress=progress)
    return _checked(path, architecture, choice.version)


def _from_wheel(architecture: Architecture, say: Callable[[str], None]) -> LiteRtLibrary:
    """The library in the wheel for Android, downloaded by pip once."""
    if architecture != "aarch64":
        found = f"none is known for {architecture} Android"
        raise EnvironmentFault("LiteRT's library", found=found, remedy=INSTEAD)
    folder = default_directory() / "binaries" / f"{WHEEL}-{WHEEL_VERSION}" / WHEEL_TAG
    path = folder / Path(WHEEL_MEMBER).name
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder, exclusive=True):
        if not path.is_file():
            say(f"downloading LiteRT's library for Android ({WHEEL} {WHEEL_VERSION}, 14 MB)")
            _unpack(path)
    digest = hash_file(path).sha256
    if digest != MEMBER_SHA256:
        remedy = "remove it, so that it is downloaded again"
        raise EnvironmentFault(file=path, found=f"sha256 {digest}", wanted=MEMBER_SHA256, remedy=remedy)
    return _checked(path, architecture, f"{WHEEL} {WHEEL_VERSION}")


def _unpack(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gemma-edge-library-") as scratch:
        wheel = _download_wheel(Path(scratch))
        with zipfile.ZipFile(wheel) as archive, atomic_file(target) as unfinished:
            unfinished.write_bytes(archive.read(WHEEL_MEMBER))


def _download_wheel(folder: Path) -> Path:
    """Let pip download the wheel, which compares its hash."""
    listed = folder / "requirements.txt"
    listed.write_text(f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    options = ("--no-deps", "--only-binary=:all:", "--python-version=3.12", f"--platform={WHEEL_TAG}", "--quiet")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", *options, "-r", str(listed)]
    what = f"pip download {WHEEL}=={WHEEL_VERSION} for {WHEEL_TAG}"
    try:
        done = subprocess.run(
            [*command, "-d", str(folder)], capture_output=True, text=True, errors="replace", timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(what, found=f"it did not end within {_DOWNLOAD_S:g} s", remedy=INSTEAD) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EnvironmentFault(what, found=said[-1] if said else f"exit code {done.returncode}", remedy=INSTEAD)
    return wheels[0]


def _checked(path: Path, architecture: Architecture, version: str | None) -> LiteRtLibrary:
    """Refuse a file that is not a library for this architecture, or exports no C functions of LiteRT."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
            if len(head) < 20 or head[:5] != b"\x7fELF\x02":
                raise EnvironmentFault(file=path, found="no 64-bit ELF file", wanted="LiteRT's library")
            (machine,) = struct.unpack_from("<H", head, 18)
            if _MACHINES.get(machine) != architecture:
                raise EnvironmentFault(file=path, found=f"code for {_machine_name(machine)}", wanted=architecture)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                lacking = [name for name in _NEEDED if mapped.find(b"\0" + name + b"\0") < 0]
    except OSError as error:
        raise EnvironmentFault(file=path, found=system_reason(error), wanted="LiteRT's library") from error
    if lacking:
        remedy = f"use {LIBRARY} of LiteRT 2.3, or that of {WHEEL} {WHEEL_VERSION}: later ones export no functions"
        raise EnvironmentFault(file=path, found=f"no function {lacking[0].decode()}", remedy=remedy)
    return LiteRtLibrary(path, f"sha256:{hash_file(path).sha256}", version)


def _machine_name(machine: int) -> str:
    return _MACHINES.get(machine, f"ELF machine {machine}")
