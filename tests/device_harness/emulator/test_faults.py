"""Every fault of the emulated device ends in one clear error, or in recovery to the same bytes."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from adbd import Peer
from waiting import wait_until

from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import ConnectionLost, DeviceRefusal, DeviceTimeout, ServiceRefused, Transport
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults, parse_faults, parse_size
from toolkit.base.errors import EnvironmentFault, UsageError

MakeDevice = Callable[[EmulatorSettings], Emulator]
Connect = Callable[[Peer], Transport]

TMP = "/data/local/tmp"
DATA = random.Random(0).randbytes(2_500_000)


def stored_bytes(device: Peer, path: str) -> int:
    """The size of a file on the device; 0 if there is none."""
    file = device.path(path)
    return file.stat().st_size if file.exists() else 0


def append(transport: Transport, data: bytes, path: str) -> str:
    """Add to a file's end by `exec:`; what the device says."""
    with transport.stream_exec(f"head -c {len(data)} >> {path} && echo written || echo failed") as stream:
        stream.write(data)
        return b"".join(iter(stream.read, b"")).decode()


@pytest.mark.parametrize("seed", range(6))
def test_a_push_cut_at_any_byte_resumes_to_the_same_bytes(peer: Peer, reach: Connect, seed: int) -> None:
    transport = reach(peer)
    cut = random.Random(seed).randrange(len(DATA))
    peer.set_faults(Faults(drop_at_byte=cut))
    with pytest.raises(ConnectionLost):
        transport.push_bytes(DATA, f"{TMP}/cut{seed}")
    assert not transport.available
    transport.reconnect(timeout=20)
    size = stored_bytes(peer, f"{TMP}/cut{seed}")
    assert size <= cut
    assert append(transport, DATA[size:], f"{TMP}/cut{seed}") == "written\n"
    assert peer.path(f"{TMP}/cut{seed}").read_bytes() == DATA


def test_an_append_that_is_cut_resumes_too(peer: Peer, reach: Connect) -> None:
    transport = reach(peer)
    peer.set_faults(Faults(drop_at_byte=1_234_567))
    with pytest.raises(ConnectionLost):
        append(transport, DATA, f"{TMP}/poured")
    transport.reconnect(timeout=20)
    # What the device has read may still be on its way to the file.
    running = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' ' | grep -c 'head -[c] [0-9]* >> .*/poured'"
    wait_until(lambda: transport.shell(running, timeout=10).stdout.strip() == "0")
    # The command is hung up on, perhaps before it has made the file.
    written = stored_bytes(peer, f"{TMP}/poured")
    assert append(transport, DATA[written:], f"{TMP}/poured") == "written\n"
    assert peer.path(f"{TMP}/poured").read_bytes() == DATA


@pytest.mark.parametrize("settings", [{"storage_bytes": 1_000_000}, {"faults": Faults(disk_full_at_byte=1_000_000)}])
def test_a_full_disk_refuses_pushes_and_appends_in_words(
    make_device: MakeDevice, reach: Connect, settings: dict[str, object]
) -> None:
    device = make_device(EmulatorSettings(isolation="folder", **settings))  # type: ignore[arg-type]
    transport = reach(device)
    with pytest.raises(DeviceRefusal, match="No space left on device"):
        transport.push_bytes(DATA, f"{TMP}/full")
    assert device.path(f"{TMP}/full").stat().st_size <= 1_000_000
    assert "No space left on device" in append(transport, DATA, f"{TMP}/full")
    assert transport.shell("echo on", timeout=10).stdout == "on\n"


def test_df_shows_the_storage_limit_and_what_is_left_of_it(
    make_device: MakeDevice, reach: Connect, tmp_path: Path
) -> None:
    # The device's folder is part of df's arguments: its name must not read as an option.
    settings = EmulatorSettings(isolation="folder", storage_bytes=10 * 2**20, root=tmp_path / "emulated-here")
    transport = reach(make_device(settings))
    transport.push_bytes(bytes(2**20), f"{TMP}/one")
    words = transport.shell(f"df -k {TMP}", timeout=10).require("df").splitlines()[1].split()
    assert (words[1], words[3], words[5]) == ("10240", "9215", "/data")


def test_a_refused_service_is_refused_at_once(make_device: MakeDevice, reach: Connect) -> None:
    faults = Faults(refused_services=("sync:", "shell,v2,raw:cat"))
    transport = reach(make_device(EmulatorSettings(isolation="folder", faults=faults)))
    with pytest.raises(ServiceRefused, match="sync:"):
        transport.push_bytes(b"", f"{TMP}/a")
    with pytest.raises(ServiceRefused, match="shell,v2,raw:"):
        transport.stream_exec("cat")
    assert transport.shell("echo on", timeout=10).stdout == "on\n"


def test_a_corrupted_block_differs_in_one_bit_which_a_hash_finds(folder_device: Emulator, transport: Transport) -> None:
    folder_device.set_faults(Faults(corrupt_at_byte=777_777))
    transport.push_bytes(DATA, f"{TMP}/corrupt")
    stored = folder_device.path(f"{TMP}/corrupt").read_bytes()
    assert [at for at in range(len(DATA)) if stored[at] != DATA[at]] == [777_777]
    digest = transport.shell(f"sha256sum {TMP}/corrupt", timeout=20).stdout.split()[0]
    assert digest != hashlib.sha256(DATA).hexdigest()
    transport.push_bytes(DATA, f"{TMP}/corrupt")
    assert folder_device.path(f"{TMP}/corrupt").read_bytes() == DATA


def test_a_slow_link_takes_the_time_its_rate_asks_for(
    make_device: MakeDevice, reach: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        waited.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("device_harness.emulator.daemon.asyncio.sleep", counted)
    transport = reach(make_device(EmulatorSettings(isolation="folder", faults=Faults(bytes_per_s=1_000_000))))
    transport.push_bytes(DATA[:300_000], f"{TMP}/slow")
    assert 0.3 <= sum(waited) < 0.31


def test_a_silent_device_is_a_timeout_and_not_a_hang(make_device: MakeDevice) -> None:
    device = make_device(EmulatorSettings(isolation="folder", faults=Faults(is_silent=True)))
    with pytest.raises(DeviceTimeout, match="no answer"):
        Transport(tcp_endpoint(device.serial)).connect(timeout=0.3)


def test_throttling_shows_in_dumpsys_and_the_thermal_zone(folder_device: Emulator, transport: Transport) -> None:
    folder_device.set_faults(Faults(thermal_status=3))
    text = transport.shell("dumpsys thermalservice", timeout=10).stdout
    zone = transport.shell("cat /sys/class/thermal/thermal_zone0/temp", timeout=10).stdout
    folder_device.set_faults(Faults())
    cached, _, current = text.partition("Current temperatures from HAL:")
    assert "Thermal Status: 3" in cached and "mValue=34.0, mType=3, mName=SKIN, mStatus=0" in cached
    assert "mValue=45.0, mType=3, mName=SKIN, mStatus=3" in current
    assert int(zone) == 45_000
    assert "Thermal Status: 0" in transport.shell("dumpsys thermalservice", timeout=10).stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fault", "service"])
def test_a_reboot_ends_programs_and_connections_and_keeps_files(
    make_device: MakeDevice, reach: Connect, how: str
) -> None:
    device = make_device(EmulatorSettings(isolation="folder"))
    transport = reach(device)
    transport.push_bytes(b"kept", f"{TMP}/kept")
    transport.shell("setsid sleep 62.5 > /dev/null 2>&1 < /dev/null &", timeout=10)
    assert device.userland._running()
    if how == "fault":
        device.set_faults(Faults(reboot_at_byte=1_000_000))
        with pytest.raises(ConnectionLost):
            transport.push_bytes(DATA, f"{TMP}/broken")
    else:
        with pytest.raises(ConnectionLost):
            transport._link.open("reboot:", timeout=5).read(timeout=5)
    transport.reconnect(timeout=20)
    assert device.reboots == 1
    assert not device.userland._running()
    assert transport.pull_bytes(f"{TMP}/kept") == b"kept"


def test_a_memory_limit_ends_the_program_that_breaks_it(make_device: MakeDevice, reach: Connect) -> None:
    try:
        device = make_device(EmulatorSettings(isolation="folder", memory_bytes=64 * 2**20))
    except EnvironmentFault as error:
        pytest.skip(str(error))
    transport = reach(device)
    program = "python3 -S -c 'print(len(b\"x\" * %d))'"
    assert transport.shell(program % 10_000_000, timeout=20).stdout == "10000000\n"
    assert transport.shell(program % 300_000_000, timeout=20).exit_code == 137


def test_a_memory_limit_that_cannot_be_set_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("_V1", "_V2"):
        monkeypatch.setattr(f"device_harness.emulator.memory.{name}", tmp_path)
    with pytest.raises(EnvironmentFault, match="memory limit: found no memory controller"):
        Emulator(EmulatorSettings(memory_bytes=10**9)).__enter__()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drop",
        "drop=x",
        "drop=1XB",
        "thermal=hot",
        "refuse=",
        "slow=0",
        "silent=1",
        "drop=-1",
        "explode=1",
        "battery=101",
        "battery=-1",
        "battery=",
        "screen-on=1",
    ],
)
def test_a_fault_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--fault"):
        parse_faults([text])


def test_faults_add_up() -> None:
    faults = parse_faults(["drop=1MB", "reboot=2MB", "corrupt=3", "disk-full=4kB", "slow=5MB/s", "refuse=a"])
    assert faults == Faults(10**6, 2 * 10**6, 3, 4000, 5 * 10**6, ("a",))
    assert parse_faults(["battery=15", "screen-on"]) == Faults(battery_percent=15, is_screen_on=True)
    assert parse_size("1GiB", "x") == 2**30
