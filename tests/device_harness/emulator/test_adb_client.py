"""Debian's adb client, which nobody here wrote, uses the emulated device as it uses AOSP's adbd."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from adbd import Peer
from waiting import PATIENCE_S, wait_until

from device_harness.emulator.auth import parse_public_key
from device_harness.emulator.daemon import Access
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb (apt-get install adb)")

TMP = "/data/local/tmp"

Adb = Callable[..., "subprocess.CompletedProcess[str]"]
MakeDevice = Callable[[EmulatorSettings], Emulator]


def client(adb_server: dict[str, str], device: Peer) -> Adb:
    """Runs adb against one device."""

    def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = ["adb", "-s", device.serial, *map(str, arguments)]
        done = subprocess.run(command, env=adb_server, input=stdin, capture_output=True, timeout=PATIENCE_S)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    connected = run("connect", device.serial)
    assert "connected to" in connected.stdout, connected
    return run


@pytest.fixture
def adb(adb_server: dict[str, str], peer: Peer) -> Adb:
    return client(adb_server, peer)


@pytest.mark.slow
def test_it_is_listed_with_its_model(adb_server: dict[str, str], folder_device: Emulator) -> None:
    adb = client(adb_server, folder_device)
    listed = adb("devices", "-l").stdout
    assert f"{folder_device.serial}" in listed and "model:emulated_device" in listed
    assert adb("get-state").stdout == "device\n"


def test_shell_gives_streams_apart_and_the_exit_code(adb: Adb) -> None:
    done = adb("shell", "echo out; echo err >&2; exit 9")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 9)


def test_shell_passes_input_on_to_its_end(adb: Adb) -> None:
    assert adb("shell", "wc -c", stdin=b"x" * 300_000).stdout.strip() == "300000"


def test_exec_out_and_exec_in_pass_raw_bytes(adb: Adb, peer: Peer) -> None:
    adb("exec-in", f"cat > {TMP}/in", stdin=b"a\r\nb\n")
    # adb leaves once it has sent all; the command goes on.
    stored = peer.path(f"{TMP}/in")
    wait_until(lambda: stored.exists() and stored.read_bytes() == b"a\r\nb\n")
    assert adb("exec-out", "printf 'a\\r\\nb'").stdout == "a\r\nb"


def test_push_and_pull_give_the_same_bytes_and_times(adb: Adb, peer: Peer, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3_000_001)
    (tmp_path / "file").write_bytes(data)
    os.utime(tmp_path / "file", (1_700_000_000, 1_700_000_000))
    pushed = adb("push", tmp_path / "file", f"{TMP}/pushed/file")
    assert pushed.returncode == 0, pushed
    stored = peer.path(f"{TMP}/pushed/file")
    assert stored.read_bytes() == data
    # AOSP's adbd says that it has the file before it sets its time.
    wait_until(lambda: int(stored.stat().st_mtime) == 1_700_000_000)
    assert adb("pull", f"{TMP}/pushed/file", tmp_path / "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == data


def test_folders_are_pushed_and_pulled_whole(adb: Adb, tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert adb("push", tmp_path / "tree", f"{TMP}/").returncode == 0
    assert adb("pull", f"{TMP}/tree", tmp_path / "again").returncode == 0
    found = sorted(str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*"))
    assert found == ["a", "b", "b/c", "b/d"]
    assert (tmp_path / "again/b/d").read_text() == "b/d"


def test_ls_shows_sizes_over_4_gib(adb: Adb, peer: Peer) -> None:
    path = peer.path(f"{TMP}/big/sparse")
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(5 * 2**30)
    listed = adb("ls", f"{TMP}/big").stdout
    path.unlink()
    assert "140000000" in listed and "sparse" in listed


def test_an_absent_file_is_an_error_in_words(adb: Adb, tmp_path: Path) -> None:
    done = adb("pull", f"{TMP}/absent", tmp_path / "x")
    assert done.returncode != 0 and "No such file" in done.stderr + done.stdout


def test_a_full_disk_is_an_error_in_words(adb_server: dict[str, str], make_device: MakeDevice, tmp_path: Path) -> None:
    device = make_device(EmulatorSettings(isolation="folder", storage_bytes=100_000))
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    done = client(adb_server, device)("push", tmp_path / "file", f"{TMP}/file")
    assert done.returncode != 0 and "No space left on device" in done.stderr + done.stdout


def test_a_cut_push_fails_and_the_device_can_be_connected_again(
    adb_server: dict[str, str], peer: Peer, tmp_path: Path
) -> None:
    adb = client(adb_server, peer)
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    peer.set_faults(Faults(drop_at_byte=1_000_000))
    assert adb("push", tmp_path / "file", f"{TMP}/file").returncode != 0
    adb("disconnect", peer.serial)
    again = client(adb_server, peer)
    assert again("push", tmp_path / "file", f"{TMP}/file").returncode == 0


def test_shell_v1_has_no_exit_code_and_works(adb_server: dict[str, str], make_device: MakeDevice) -> None:
    device = make_device(EmulatorSettings(isolation="folder", features=frozenset(), max_payload_bytes=4096))
    done = client(adb_server, device)("shell", "echo out; exit 9")
    assert (done.stdout, done.returncode) == ("out\n", 0)


def test_only_a_key_that_the_device_knows_opens_it(adb_server: dict[str, str], make_device: MakeDevice) -> None:
    key = parse_public_key(Path(adb_server["HOME"], ".android/adbkey.pub").read_bytes())
    assert key is not None
    known = make_device(EmulatorSettings(isolation="folder", access=Access(keys=(key,))))
    assert client(adb_server, known)("shell", "echo in").stdout == "in\n"
    locked = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    subprocess.run(["adb", "connect", locked.serial], env=adb_server, capture_output=True, timeout=PATIENCE_S)
    listed = subprocess.run(
        ["adb", "devices"], env=adb_server, capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout
    assert f"{locked.serial}\tunauthorized" in listed
