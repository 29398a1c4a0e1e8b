"""What AOSP's own adbd makes of our side of adb: a core; what else holds on both devices is marked `full` elsewhere."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from adbd import Adbd, AdbdSettings, Peer

import device_harness.adb.port
import toolkit.base.files
from device_harness.adb.devices import list_devices, signers, tcp_endpoint
from device_harness.adb.link import Link
from device_harness.adb.transport import ConnectionLost, DeviceRefusal, Transport, Unauthorized
from device_harness.emulator.faults import Faults
from device_harness.push.program import open_program, push_program
from device_harness.push.push import push_source
from device_harness.push.source import open_source

Connect = Callable[[Peer], Transport]

TMP = "/data/local/tmp"
CHUNK = 64 * 1024


@pytest.fixture
def aosp(adbd: Adbd, reach: Connect) -> Transport:
    adbd.set_faults(Faults())
    return reach(adbd)


def test_it_is_adbd_as_the_shell_user_with_a_network_of_its_own(aosp: Transport) -> None:
    user, *network = aosp.shell("id -u; cat /proc/net/dev", timeout=10).require("id").splitlines()
    with aosp.stream_exec("umask") as stream:
        umask = b"".join(iter(stream.read, b"")).decode().strip()
    assert {"delayed_ack", "shell_v2", "stat_v2"} <= aosp.banner.features
    assert (user, umask) == ("2000", "000")
    assert [line.split(":")[0].strip() for line in network if ":" in line] == ["lo"]


def test_commands_have_exit_codes_and_separate_streams(aosp: Transport) -> None:
    result = aosp.shell("echo out; echo err >&2; exit 7", timeout=10)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 7)


def test_files_go_and_come_back_and_a_refusal_has_its_words(aosp: Transport, adbd: Adbd, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(2_500_001)
    (tmp_path / "file").write_bytes(data)
    aosp.push_file(tmp_path / "file", f"{TMP}/file")
    assert adbd.path(f"{TMP}/file").read_bytes() == data and aosp.pull_bytes(f"{TMP}/file") == data
    with pytest.raises(DeviceRefusal, match="Read-only file system"):
        aosp.push_bytes(b"x", "/system/bin/new")  # not a link to toybox, which may be running


@pytest.mark.slow
def test_a_push_is_taken_up_after_cuts_and_then_sends_nothing(
    aosp: Transport, adbd: Adbd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(1).randbytes(40 * CHUNK + 17))
    source, target = open_source(path), f"{TMP}/cut"
    adbd.set_faults(Faults(drop_at_byte=16 * CHUNK))
    with pytest.raises(ConnectionLost):
        push_source(aosp, source, target=target, patience_s=0)
    aosp.reconnect()
    adbd.set_faults(Faults(drop_at_byte=8 * CHUNK))
    result = push_source(aosp, source, target=target)
    assert result.reconnects == 1 and result.bytes_skipped >= CHUNK
    assert adbd.path(f"{target}/model.litertlm").read_bytes() == path.read_bytes()
    assert push_source(aosp, source, target=target).bytes_sent == 0


def test_a_push_ends_with_its_last_hash_and_waits_for_no_sleep(aosp: Transport, adbd: Adbd, tmp_path: Path) -> None:
    """mksh, Android's shell, takes a signal only once its `sleep` is over, and loses one just after it has forked."""
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"small")
    sleep = adbd.path("/system/bin/sleep")
    toybox = sleep.readlink()
    sleep.unlink()
    sleep.write_text(f"#!/system/bin/sh\nuntil [ -e {TMP}/morning ]; do {toybox} sleep 0.1; done\n")
    sleep.chmod(0o755)
    try:
        assert push_source(aosp, open_source(path), target=f"{TMP}/small", patience_s=0).bytes_sent == 5
    finally:
        adbd.path(f"{TMP}/morning").touch()
        sleep.unlink()
        sleep.symlink_to(toybox)


@pytest.mark.slow
def test_only_an_accepted_key_comes_in_and_what_to_do_for_another_is_said_at_once(
    adbd_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ANDROID_USER_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "known"))
    [known] = signers()
    public = known.GetPublicKey()
    key = public if isinstance(public, bytes) else public.encode()
    with Adbd(adbd_root, AdbdSettings(keys=(key,))) as device:
        with Transport(tcp_endpoint(device.serial), [known]).connect() as transport:
            assert transport.shell("echo in", timeout=10).stdout == "in\n"
        assert not caplog.messages
        for name in ("ANDROID_USER_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.setenv(name, str(tmp_path / "stranger"))
        with pytest.raises(Unauthorized, match="allow this computer's key"):
            Transport(tcp_endpoint(device.serial), signers(), auth_timeout=1).connect()
        assert caplog.messages == [f"{device.serial}: confirm this computer's key on the device's screen"]
        [found] = list_devices([device.serial], timeout=1, scan=False)
        assert found.state == "unauthorized"


@pytest.mark.slow
@pytest.mark.parametrize("counts_bytes", [True, False])
def test_adbd_takes_no_more_into_memory_than_is_on_the_way(
    adbd_root: Path, reach: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts_bytes: bool
) -> None:
    """Without the device's counts, its OKAY after every part of a message would let all of a file into its memory."""
    path = tmp_path / "model.litertlm"
    with open(path, "wb") as file:
        file.truncate(160_000_000)
    if not counts_bytes:
        monkeypatch.setattr(device_harness.adb.port, "FEATURES", frozenset({"cmd", "shell_v2"}))
    with Adbd(adbd_root) as device:
        transport = reach(device)
        assert isinstance(transport._link, Link) and transport._link.counts_bytes == counts_bytes
        result = push_source(transport, open_source(path), target=f"{TMP}/large")
        assert result.bytes_sent == 160_000_000
        assert device.peak_bytes() < 64_000_000


def test_what_is_told_as_sent_is_what_the_device_has_stored(aosp: Transport, adbd: Adbd, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(3).randbytes(20_000_000))
    told: list[int] = []
    adbd.set_faults(Faults(drop_at_byte=15_000_000))
    with pytest.raises(ConnectionLost):
        push_source(
            aosp,
            open_source(path),
            target=f"{TMP}/told",
            patience_s=0,
            progress=lambda step, done, total: told.append(done) if step == "send" else None,
        )
    part = adbd.path(f"{TMP}/told/model.litertlm.part").stat()
    assert 0 < told[-1] <= part.st_size < 15_000_000


@pytest.mark.slow
def test_a_daemon_that_is_killed_in_mid_push_is_one_error_and_what_was_sent_is_kept(
    adbd_root: Path, reach: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(5).randbytes(20_000_000))
    with Adbd(adbd_root) as device:

        def kill(step: str, done: int, total: int) -> None:
            if step == "send" and done:
                with suppress(ProcessLookupError):
                    os.kill(device.pid, signal.SIGKILL)

        told = r"no device for 0\.3 s after it .*; connect it and push again; what was sent is kept"
        with pytest.raises(ConnectionLost, match=told):
            push_source(reach(device), open_source(path), target=f"{TMP}/killed", patience_s=0.3, progress=kill)
        part = device.path(f"{TMP}/killed/model.litertlm.part").stat()
        assert 0 < part.st_size < 20_000_000 and part.st_mode & 0o777 == 0o600


def test_no_other_user_may_write_what_a_push_leaves_though_adbd_has_no_umask(
    aosp: Transport, adbd: Adbd, tmp_path: Path
) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(4).randbytes(9_000_000))
    adbd.set_faults(Faults(drop_at_byte=5_000_000))
    with pytest.raises(ConnectionLost):
        push_source(aosp, open_source(path), target=f"{TMP}/modes", patience_s=0)
    aosp.reconnect()
    program = tmp_path / "program"
    program.write_text("#!/system/bin/sh\necho it runs\n")
    folder = push_program(aosp, open_program(program))
    assert adbd.path(f"{TMP}/modes/model.litertlm.part").stat().st_mode & 0o777 == 0o600
    assert adbd.path(f"{TMP}/modes").stat().st_mode & 0o777 == 0o755
    assert adbd.path(f"{folder}/program").stat().st_mode & 0o777 == 0o700
    assert aosp.shell(f"{folder}/program", timeout=10).stdout == "it runs\n"
