"""This computer as a machine that benchmarks run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from adbd import Peer

from device_harness.adb.faults import ConnectionLost, DeviceTimeout
from device_harness.adb.shell import ShellResult
from device_harness.adb.transport import Transport
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.push.source import open_source

Connect = Callable[[Peer], Transport]


def test_the_host_tells_output_and_exit_code() -> None:
    result = Host().shell("echo out; echo err >&2; exit 3", timeout=20)
    assert (result.stdout, result.exit_code) == ("out\nerr\n", 3)


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: object) -> None:
    mark = f"sleep 61.{id(tmp_path)}"
    with pytest.raises(DeviceTimeout, match=r"ran over 0.5 s and was killed"):
        Host().shell(f"{mark} & {mark}", timeout=0.5)
    assert mark not in Host().shell("ps -eo args | grep -v grep", timeout=20).stdout


def test_a_command_that_is_killed_before_its_time_limit_has_an_exit_code() -> None:
    assert Host().shell("echo out; kill -KILL $$", timeout=20) == ShellResult("out\n", "", 137)


def test_a_command_that_is_left_is_ended() -> None:
    with Host().stream_shell("echo begun; sleep 62.5", timeout=60) as running:
        assert next(iter(running)) == ("stdout", b"begun\n")
    assert "sleep 62.5" not in Host().shell("ps -eo args | grep -v grep", timeout=20).stdout


def test_a_connected_device_is_a_machine(peer: Peer, reach: Connect) -> None:
    checked: Machine = AdbDevice(reach(peer))
    assert checked.shell("echo hello", timeout=20).stdout == "hello\n"


def test_files_of_this_computer_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"model")
    assert Host().place_files(open_source(path)) == str(tmp_path)


def test_a_device_that_was_cut_off_recovers_and_this_computer_needs_to_do_nothing(peer: Peer, reach: Connect) -> None:
    machine = AdbDevice(reach(peer))
    peer.set_faults(Faults(drop_at_byte=0))
    with pytest.raises(ConnectionLost):
        machine.shell("echo lost", timeout=20)
    peer.set_faults(Faults())
    for either in (machine, Host()):
        either.recover(timeout=20)
        assert either.available
        with either.second_connection() as other:
            assert other.shell("echo back", timeout=20).stdout == "back\n"
