"""This computer as a machine that benchmarks run on."""

from __future__ import annotations

import time

import pytest

from device_harness.adb.faults import DeviceTimeout
from device_harness.adb.transport import Transport
from device_harness.machines.machine import Host, Machine


def test_the_host_tells_output_and_exit_code() -> None:
    result = Host().shell("echo out; echo err >&2; exit 3", timeout=20)
    assert (result.stdout, result.exit_code) == ("out\nerr\n", 3)


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: object) -> None:
    mark = f"sleep 61.{id(tmp_path)}"
    started = time.monotonic()
    with pytest.raises(DeviceTimeout):
        Host().shell(f"{mark} & {mark}", timeout=0.5)
    assert time.monotonic() - started < 20
    assert mark not in Host().shell("ps -eo args | grep -v grep", timeout=20).stdout


def test_a_command_that_is_left_is_ended() -> None:
    with Host().stream_shell("echo begun; sleep 62.5", timeout=60) as running:
        assert next(iter(running)) == ("stdout", b"begun\n")
    assert "sleep 62.5" not in Host().shell("ps -eo args | grep -v grep", timeout=20).stdout


def test_a_connected_device_is_a_machine(transport: Transport) -> None:
    machine: Machine = transport
    assert machine.shell("echo hello", timeout=20).stdout == "hello\n"
