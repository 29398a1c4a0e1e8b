"""Which program of Google's ``gemma-edge bench`` runs: one that lies here, or one that is downloaded and kept."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from device_harness.programs.bucket import GOOGLE, Bucket
from device_harness.programs.published import PublishedProgram, fetch_program, require_sha256
from gemma_edge.terminal import Terminal
from toolkit.base.errors import UsageError
from toolkit.base.files import safe_name
from toolkit.results.record import DeviceRecord

PROGRAMS = ("litert_lm_advanced_main", "litert_lm_main", "benchmark_model")
SERVER_VARIABLE = "GEMMA_EDGE_BINARY_SERVER"

_OPTIONS = ("binary", "binary_version", "binary_sha256", "binary_server", "runner_arg", "signature")
_SHA256 = re.compile(r"(?:([^=]+)=)?([0-9a-fA-F]{64})", re.ASCII)


def add_program_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("programs of Google's")
    group.add_argument("--binary", metavar="FILE", type=Path, help="the program, its libraries (*.so) beside it")
    group.add_argument(
        "--binary-version", metavar="VERSION",
        help="without --binary: download the program that Google published under VERSION, such as latest, for the "
        "device, once, and keep it; with --binary: its version, for the record",
    )  # fmt: skip
    group.add_argument(
        "--binary-sha256", metavar="[NAME=]HEX", action="append", default=[],
        help="refuse the program, or the library NAME, if it has another hash; may be repeated (default: what the "
        "first download brought is recorded and trusted)",
    )  # fmt: skip
    group.add_argument(
        "--binary-server", metavar="URL",
        help=f"a mirror of Google's storage to download from (default: {SERVER_VARIABLE}, else {GOOGLE})",
    )  # fmt: skip
    group.add_argument(
        "--runner-arg", metavar="ARG", action="append", default=[], help="one more argument for it; may be repeated"
    )
    group.add_argument(
        "--signature", metavar="FILE:NAME", action="append", default=[],
        help="for benchmark_model: which signatures, such as text_decoder:decode or '*:prefill_*' (default: all)",
    )  # fmt: skip


def refuse_program_options(arguments: argparse.Namespace, runner: str) -> None:
    """For a runner that is no program of Google's."""
    for option in _OPTIONS:
        if getattr(arguments, option):
            what = f"--{option.replace('_', '-')}"
            raise UsageError(what, found=f"it with the runner {runner}", wanted="a runner that is a program")


def require_program(arguments: argparse.Namespace, runner: str) -> None:
    """UsageError unless the options say which program, in a way that can be followed."""
    if arguments.binary is not None:
        if arguments.binary_server:
            raise UsageError("--binary-server", found="it with --binary", wanted="one of them")
    elif arguments.binary_version is None:
        remedy = "give the path of one built for the device, or let --binary-version latest download it"
        raise UsageError("--binary", found="none", wanted=f"{runner} for this device", remedy=remedy)
    else:
        safe_name(arguments.binary_version, "--binary-version")
        Bucket(_server(arguments))
        if arguments.host:
            found = "it with --host and no --binary"
            raise UsageError("--binary-version", found=found, wanted="a device: Google publishes them for Android")
        if runner == "benchmark_model" and arguments.backend == "npu":
            remedy = "put the program and your SoC's libraries in one folder, and give --binary PATH"
            raise UsageError("--binary-version", found="it with --backend npu", wanted="cpu or gpu", remedy=remedy)
    _parse_sha256(arguments.binary_sha256, runner)


def program_path(arguments: argparse.Namespace, runner: str, device: DeviceRecord, terminal: Terminal) -> Path:
    """Where the program lies on this computer, downloaded if need be; with the hashes that the user gave."""
    binary: Path | None = arguments.binary
    sha256 = _parse_sha256(arguments.binary_sha256, runner if binary is None else binary.name)
    if binary is not None:
        if sha256 and binary.is_file():
            require_sha256(binary, sha256)
        return binary
    program = PublishedProgram(runner, arguments.binary_version, device.abi, sha256)
    with terminal.bar(f"downloading {runner}") as progress:
        return fetch_program(program, Bucket(_server(arguments)), say=terminal.note, progress=progress)


def _server(arguments: argparse.Namespace) -> str:
    return arguments.binary_server or os.environ.get(SERVER_VARIABLE) or GOOGLE


def _parse_sha256(texts: list[str], program: str) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for text in texts:
        match = _SHA256.fullmatch(text)
        if match is None:
            raise UsageError("--binary-sha256", found=repr(text), wanted="64 hexadecimal digits, or NAME=them")
        name = match[1] or program
        if wanted.setdefault(name, match[2].lower()) != match[2].lower():
            raise UsageError("--binary-sha256", found=f"two hashes of {name}", wanted="one")
    return wanted
