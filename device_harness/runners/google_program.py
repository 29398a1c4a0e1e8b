"""Finds the Google program that a runner needs: at a given path, or downloaded and cached."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from device_harness.programs.bucket import GOOGLE, Bucket
from device_harness.programs.published import PublishedProgram, fetch_program, require_sha256
from device_harness.runners.program_options import SERVER_VARIABLE
from device_harness.runners.spec import RunnerOptions, RunnerRequest
from toolkit.base.errors import UsageError
from toolkit.base.files import safe_name

_SHA256 = re.compile(r"(?:([^=]+)=)?([0-9a-fA-F]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class GoogleProgram:
    """A program on this computer, built for the machine that will run it, with its libraries in the same folder."""

    path: Path
    version: str | None = None
    """The program's version, for the record."""
    arguments: tuple[str, ...] = ()
    """Additional arguments from the user."""


def check_program(name: str, options: RunnerOptions) -> None:
    """UsageError if the options do not name a program, or are invalid."""
    version = options.text("binary_version")
    if options.text("binary") is not None:
        if options.text("binary_server"):
            raise UsageError("--binary-server", found="cannot be used with --binary")
    elif version is None:
        remedy = "give the path of one built for the machine, or let --binary-version latest download Android's"
        raise UsageError("--binary", found=f"the runner needs the program {name}", remedy=remedy)
    else:
        safe_name(version, "--binary-version")
        Bucket(_server(options))
    _parse_sha256(options.texts("binary_sha256"), name)


def google_program(name: str, request: RunnerRequest) -> GoogleProgram:
    """Find the program `name`, download it if necessary, and compare it with the given hashes."""
    options = request.options
    version, arguments = options.text("binary_version"), options.texts("runner_arg")
    if (binary := options.text("binary")) is not None:
        path = Path(binary)
        sha256 = _parse_sha256(options.texts("binary_sha256"), path.name)
        if sha256 and path.is_file():
            require_sha256(path, sha256)
        return GoogleProgram(path, version, arguments)
    assert version is not None, "check_program was asked first"
    if request.device.kind == "host":
        found = "cannot be used with --host, because Google publishes its programs for Android only"
        raise UsageError("--binary-version", found=found, remedy="give the path of your own with --binary")
    sha256 = _parse_sha256(options.texts("binary_sha256"), name)
    published = PublishedProgram(name, version, request.device.abi, sha256)
    with request.listener.downloading(name) as progress:
        path = fetch_program(published, Bucket(_server(options)), say=request.listener.note, progress=progress)
    return GoogleProgram(path, version, arguments)


def _server(options: RunnerOptions) -> str:
    return options.text("binary_server") or os.environ.get(SERVER_VARIABLE) or GOOGLE


def _parse_sha256(texts: Iterable[str], program: str) -> dict[str, str]:
    """Parse hashes by file name; a hash without a name is the program's."""
    wanted: dict[str, str] = {}
    for text in texts:
        match = _SHA256.fullmatch(text)
        if match is None:
            raise UsageError("--binary-sha256", found=repr(text), wanted="64 hexadecimal digits, or NAME=them")
        name = match[1] or program
        if wanted.setdefault(name, match[2].lower()) != match[2].lower():
            raise UsageError("--binary-sha256", found=f"two hashes of {name}", wanted="one")
    return wanted
