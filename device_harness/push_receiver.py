"""The program that takes a push on the device, in place of the device's own ones: found, built, brought there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from device_harness.native.build import PUSH_RECEIVER, NativeProgram, built_program, native_program, parse_architecture
from device_harness.push import DEFAULT_FOLDER
from device_harness.runners.binaries import place_binary
from device_harness.transport import DeviceFault, Transport, quote, remote_path

Receiver = Literal["auto", "shell", "native"]
"""``native``: our program, built if need be; ``shell``: the device's own; ``auto``: ours if it has been built."""

_ASK_S = 30.0


def place_receiver(device: Transport, kind: Receiver, *, say: Callable[[str], None] | None = None) -> str | None:
    """Where the program lies on the device, by its hash; None: the device's own programs do it.

    ``say`` is told that a build begins. EnvironmentFault if ``native`` is wanted and cannot be had.
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
    for digest, _, path in (line.partition("  ") for line in there):
        if digest == program.sha256:
            return remote_path(folder, *path.strip().split("/"))
    return place_binary(device, program.path).program


def _program(kind: Receiver, machine: str, serial: str, say: Callable[[str], None] | None) -> NativeProgram | None:
    """None: it has not been built, or a device of this kind cannot have one."""
    if kind == "native":
        return native_program(PUSH_RECEIVER, parse_architecture(machine, serial), say=say)
    try:
        return built_program(PUSH_RECEIVER, parse_architecture(machine, serial))
    except DeviceFault:
        return None
