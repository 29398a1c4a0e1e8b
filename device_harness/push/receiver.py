"""Finds, builds and pushes our program that stores and hashes files on the device in place of the device's tools."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from device_harness.adb.transport import DeviceFault, DeviceRefusal, Transport, quote, remote_path
from device_harness.programs.build import (
    PUSH_RECEIVER,
    NativeProgram,
    built_program,
    native_program,
    parse_architecture,
)
from device_harness.push.program import place_small_program
from device_harness.push.push import DEFAULT_FOLDER

Receiver = Literal["auto", "shell", "native"]
"""`native`: our program, built if needed; `shell`: the device's own tools; `auto`: ours if it has been built."""

_ASK_S = 30.0
_PLACED = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_KEY_DIGITS = 16
_USAGE = f"usage: {PUSH_RECEIVER} "
"""The program's output without arguments."""


def place_receiver(device: Transport, kind: Receiver, *, say: Callable[[str], None] | None = None) -> str | None:
    """Return the program's path on the device, pushing it if needed; None if the device's own tools are to be used.

    `say` gets one line when a build begins, and one if the device cannot run the program. EnvironmentFault if `kind`
    is `native` and the program cannot be built or run.
    """
    if kind == "shell":
        return None
    folder = remote_path(DEFAULT_FOLDER, "bin")
    command = f"uname -m; cd {quote(folder)} 2>/dev/null && sha256sum */{PUSH_RECEIVER}-* 2>/dev/null; true"
    what = f"{device.serial} {PUSH_RECEIVER}"
    machine, *there = device.shell(command, timeout=_ASK_S).require(what).strip().split("\n")
    program = _program(kind, machine, device.serial, say)
    if program is None:
        return None
    listed = ((digest, path.strip()) for digest, _, path in (line.partition("  ") for line in there))
    found = [path for digest, path in listed if digest == program.sha256 and _PLACED.fullmatch(path)]
    try:
        if found:
            placed = remote_path(folder, *found[0].split("/"))
        else:
            placed = place_small_program(device, program.path, remote_path(folder, program.sha256[:_KEY_DIGITS]))
        tried = device.shell(quote(placed), timeout=_ASK_S)
        if tried.stdout.startswith(_USAGE):
            return placed
        words = tried.stderr.strip() or f"exit code {tried.exit_code}"
        raise DeviceRefusal(what, found=words, wanted="a program that runs")
    except DeviceRefusal as error:
        if kind == "native":
            raise
        if say is not None:
            say(f"{error}; the device's own tools store and hash instead")
        return None


def _program(kind: Receiver, machine: str, serial: str, say: Callable[[str], None] | None) -> NativeProgram | None:
    """The program for this kind of device; None if it has not been built, or cannot be built for it."""
    if kind == "native":
        return native_program(PUSH_RECEIVER, parse_architecture(machine, serial), say=say)
    try:
        return built_program(PUSH_RECEIVER, parse_architecture(machine, serial))
    except DeviceFault:
        return None
