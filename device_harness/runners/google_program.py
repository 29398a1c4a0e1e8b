"""Which program of Google's a runner runs: one that lies here, or one that is downloaded and kept."""

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
    """A program on this computer, built for the machine that is to run it, its libraries beside it."""

    path: Path
    version: str | None = None
    """Which version it is, for the record."""
    arguments: tuple[str, ...] = ()
    """More arguments for it, which we have no word for."""


def check_program(name: str, options: RunnerOptions) -> None:
    """UsageError unless the options say which program, in a way that can be followed."""
    version = options.text("binary_version")
    if options.text("binary") is not None:
        if options.text("binary_server"):
            raise UsageError("--binary-server", found="cannot be used with --binary")
    elif version is None:
        remedy = "give the path of one built for the device, or let --binary-version latest download it"
        raise UsageError("--binary", found=f"the runner needs the program {name}", remedy=remedy)
    else:
        safe_name(version, "--binary-version")
        Bucket(_server(options))
    _parse_sha256(options.texts("binary_sha256"), name)


def google_program(name: str, request: RunnerRequest) -> GoogleProgram:
    """The program `name`, downloaded if need be, and held against the hashes that were given."""
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
        found = "cannot be used with --host, for Google publishes its programs for Android only"
        raise UsageError("--binary-version", found=found, remedy="give the path of your own with --binary")
    sha256 = _parse_sha256(options.texts("binary_sha256"), name)
    published = PublishedProgram(name, version, request.device.abi, sha256)
    with request.listener.downloading(name) as progress:
        path = fetch_program(published, Bucket(_server(options)), say=request.listener.note, progress=progress)
    return GoogleProgram(path, version, arguments)


def _server(options: RunnerOptions) -> str:
    return options.text("binary_server") or os.environ.get(SERVER_VARIABLE) or GOOGLE


def _parse_sha256(texts: Iterable[str], program: str) -> dict[str, str]:
    """File name to hash; a hash without a name is the program's."""
    wanted: dict[str, str] = {}
    for text in texts:
        match = _SHA256.fullmatch(text)
        if match is None:
            raise UsageError("--binary-sha256", found=repr(text), wanted="64 hexadecimal digits, or NAME=them")
        name = match[1] or program
        if wanted.setdefault(name, match[2].lower()) != match[2].lower():
            raise UsageError("--binary-sha256", found=f"two hashes of {name}", wanted="one")
    return wanted
