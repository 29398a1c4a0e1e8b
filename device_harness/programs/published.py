"""Downloads Google's programs, each with its libraries, to a folder in the user's cache.

The first download is trusted, and its hashes are recorded (docs/formats/binaries.md); later, only the same bytes are
accepted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from device_harness.programs.bucket import INSTEAD, MAX_FILE_BYTES, Bucket
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.base.files import (
    Advance,
    Progress,
    disk_faults,
    hash_file,
    locked_directory,
    require_free_space,
    safe_name,
    write_bytes,
)
from toolkit.base.strict_json import JsonObject, read_json_file
from toolkit.runtime.weight_cache import default_directory

LOCK_FORMAT = "gemma-edge-binaries/1"

_PLATFORMS = {"arm64-v8a": "android_arm64", "x86_64": "android_x86_64"}
_LANGUAGE_MODELS = "litert_lm/"
"""The folder of programs that need libraries in it; benchmark_model is above it, and needs some only for NPUs."""
_LIBRARY = ".so"
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class PublishedProgram:
    """A published program; `version`: in the bucket's words, such as 2.2.0 or latest; `abi`: Android's name."""

    name: str
    version: str
    abi: str | None
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hashes from the caller by file name, which these files must have even in the first download."""

    @property
    def platform(self) -> str:
        """The bucket's name for the ABI; EnvironmentFault if nothing is published for it."""
        found = _PLATFORMS.get(self.abi or "")
        if found is None:
            wanted = " or ".join(_PLATFORMS)
            remedy = "build the program for it, and give --binary PATH"
            raise EnvironmentFault("the device's ABI", found=self.abi, wanted=wanted, remedy=remedy)
        return found

    @property
    def folder(self) -> str:
        """The program's folder in the bucket.

        >>> PublishedProgram("litert_lm_main", "latest", "arm64-v8a").folder
        'binaries/latest/android_arm64/litert_lm/'
        """
        version = safe_name(self.version, "--binary-version")
        return f"binaries/{version}/{self.platform}/{_LANGUAGE_MODELS if self.has_libraries else ''}"

    @property
    def has_libraries(self) -> bool:
        """Whether the program loads libraries from its own folder."""
        return self.name in ("litert_lm_main", "litert_lm_advanced_main")


@dataclass(frozen=True, slots=True)
class _Expected:
    """The size and hash that a file must have, according to the lock or the bucket's listing."""

    name: str
    size: int
    sha256: str | None
    md5: str | None = None


def fetch_program(
    program: PublishedProgram,
    bucket: Bucket,
    *,
    say: Callable[[str], None],
    progress: Progress | None = None,
    directory: Path | None = None,
) -> Path:
    """Return the program's path in the cache (`directory`; None: the user's), and download it first if it is missing.

    EnvironmentFault if the bucket cannot be reached or lacks the program, or if a file's hash has changed.
    """
    version = safe_name(program.version, "--binary-version")
    folder = (directory or default_directory()) / "binaries" / version / program.platform / program.name
    cached = _CachedProgram(program, bucket, folder, folder.with_name(f"{program.name}.lock.json"))
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked_directory(folder.parent, exclusive=True):
            return cached.complete(say, progress)


def require_sha256(program: Path, wanted: Mapping[str, str]) -> None:
    """Compare a program and its libraries with the user's hashes; EnvironmentFault or UsageError if they differ."""
    _require_named(wanted, [program.name, *(path.name for path in program.parent.glob(f"*{_LIBRARY}"))])
    for name in wanted:
        path = program.parent / name
        _require_digest(str(path), hash_file(path).sha256, wanted[name], "--binary-sha256")


@dataclass(frozen=True, slots=True)
class _CachedProgram:
    """A program's folder in the cache, and its lock file; this process has locked the folder."""

    program: PublishedProgram
    bucket: Bucket
    folder: Path
    lock: Path

    def complete(self, say: Callable[[str], None], progress: Progress | None) -> Path:
        """Verify existing files, and download missing ones; return the program's path."""
        name = self.program.name
        is_first = not self.lock.exists()
        files = _listed(self.program, self.bucket) if is_first else _read_lock(self.lock, name)
        _require_named(self.program.sha256, [file.name for file in files])
        self._rid_of_strangers(files, is_first=is_first)
        missing = [file for file in files if not _is_there(self.folder / file.name, file)]
        total = sum(file.size for file in missing)
        if missing:
            require_free_space(self.folder, total)
            count = f"{len(missing)} files, {total:,} bytes"
            say(f"downloading {name} {self.program.version} ({count}) from {self.bucket.server}")
        advance = Advance(total, progress)
        digests = {file.name: self._download(file, advance) if file in missing else self._kept(file) for file in files}
        if is_first:
            source = self.bucket.address(self.program.folder)
            _write_lock(self.lock, source, [replace(file, sha256=digests[file.name]) for file in files])
            say(f"{self.folder} is trusted as it is now; {self.lock.name} beside it records the hashes")
        path = self.folder / name
        path.chmod(0o755)
        return path

    def _kept(self, file: _Expected) -> str:
        """Verify an existing file, and return its sha256."""
        path = self.folder / file.name
        digest = hash_file(path).sha256
        remedy = f"if you have changed it, remove {self.folder}, so that it is downloaded again"
        _require_digest(str(path), digest, file.sha256, str(self.lock), remedy)
        _require_digest(str(path), digest, self.program.sha256.get(file.name), "--binary-sha256")
        return digest

    def _download(self, file: _Expected, advance: Callable[[int], None]) -> str:
        """Download a file under a temporary name, verify it, and rename it; return its sha256."""
        url = self.bucket.address(self.program.folder, file.name)
        part = self._part(file)
        self.bucket.download(url, part, file.size, advance)
        digest = hash_file(part).sha256
        try:
            if file.md5 not in (found := _md5(part), None):
                raise EnvironmentFault(url, found=f"md5 {found}", wanted=f"{file.md5} as listed", remedy="run it again")
            remedy = f"what is published has changed; to trust it, remove {self.folder} and {self.lock}"
            _require_digest(url, digest, file.sha256, str(self.lock), remedy)
            _require_digest(url, digest, self.program.sha256.get(file.name), "--binary-sha256")
        except EnvironmentFault:
            part.unlink()
            raise
        part.replace(self.folder / file.name)
        return digest

    def _part(self, file: _Expected) -> Path:
        """The temporary path, named after the expected hash; removes temporary files of other content."""
        key = file.sha256 or file.md5
        part = self.folder / f".{file.name}.{(key or 'unknown')[:_KEY_DIGITS]}.part"
        for other in self.folder.glob(f".{file.name}.*.part"):
            if other != part or key is None or other.stat().st_size > file.size:
                other.unlink()
        return part

    def _rid_of_strangers(self, files: Sequence[_Expected], *, is_first: bool) -> None:
        """EnvironmentFault for an unknown library, because all libraries in the folder are copied to the device.

        In a first download, unknown libraries are left from an interrupted one, and are removed.
        """
        known = {file.name for file in files}
        for path in sorted(self.folder.glob(f"*{_LIBRARY}")):
            if path.name not in known and not is_first:
                raise EnvironmentFault(file=path, found="a library", wanted=f"those of {self.lock}", remedy="remove it")
            if path.name not in known:
                path.unlink()


def _is_there(path: Path, file: _Expected) -> bool:
    """Whether the file exists, and in a first download, which may have been interrupted before, is as listed."""
    if not path.is_file():
        return False
    if file.sha256 is not None:
        return True
    return path.stat().st_size == file.size and _md5(path) == file.md5


def _md5(path: Path) -> str:
    """The MD5 of a file, only for comparison with a server's; trust is based on sha256."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _listed(program: PublishedProgram, bucket: Bucket) -> tuple[_Expected, ...]:
    url = bucket.address(program.folder)
    listed = bucket.files(program.folder)
    if program.name not in [file.name for file in listed]:
        found = ", ".join(file.name for file in listed[:8]) or "nothing"
        remedy = f"try another --binary-version, or {INSTEAD}"
        raise EnvironmentFault(url, found=found, wanted=program.name, remedy=remedy)

    def is_wanted(name: str) -> bool:
        return name == program.name or (program.has_libraries and name.endswith(_LIBRARY))

    return tuple(_Expected(file.name, file.size, None, file.md5) for file in listed if is_wanted(file.name))


def _require_named(wanted: Mapping[str, str], names: list[str]) -> None:
    for name in wanted:
        if name not in names:
            raise UsageError("--binary-sha256", found=name, wanted=f"one of {', '.join(sorted(names))}")


def _require_digest(what: str, found: str, wanted: str | None, source: str, remedy: str | None = None) -> None:
    if wanted not in (found, None):
        raise EnvironmentFault(what, found=f"sha256 {found}", wanted=f"{wanted} by {source}", remedy=remedy)


def _read_lock(path: Path, program: str) -> tuple[_Expected, ...]:
    lock = JsonObject(read_json_file(path, EnvironmentFault), str(path), EnvironmentFault)
    if lock.string("format") != LOCK_FORMAT:
        lock.refuse("format", lock.string("format"), LOCK_FORMAT)
    lock.string("source")
    entries = lock.child("files")
    files = []
    for name in entries.names():
        if safe_name(name, f"{path} files") != program and not name.endswith(_LIBRARY):
            entries.refuse(name, "such a file", f"{program} and *{_LIBRARY}")
        entry = entries.child(name)
        digest = entry.string("sha256")
        if _SHA256.fullmatch(digest) is None:
            entry.refuse("sha256", digest, "64 hexadecimal digits")
        files.append(_Expected(name, entry.integer("bytes", 1, MAX_FILE_BYTES), digest))
        entry.finish()
    lock.finish()
    if program not in [file.name for file in files]:
        lock.refuse("files", ", ".join(file.name for file in files), program)
    return tuple(files)


def _write_lock(path: Path, source: str, files: Sequence[_Expected]) -> None:
    entries = {file.name: {"bytes": file.size, "sha256": file.sha256} for file in files}
    value = {"format": LOCK_FORMAT, "source": source, "files": entries}
    write_bytes(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
