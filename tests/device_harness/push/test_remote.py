"""What commands on the device print, as records."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from device_harness.adb.transport import DeviceRefusal, Transport
from device_harness.emulator.device import Emulator
from device_harness.push.remote import RemoteFolder, parse_df
from device_harness.push.scripts import FAILED, ChunkRun, parse_digests, store_script, sync_command
from device_harness.push.source import PushFile

DIGEST = "0123456789abcdef" * 4
TOYBOX = (
    "Filesystem       1K-blocks     Used Available Use% Mounted on\n"
    "/dev/block/dm-7  113455172 57701380  55622720  51% /data\n"
)


@pytest.mark.parametrize(
    "text",
    [
        TOYBOX,
        TOYBOX.replace("\n", "\r\n"),
        TOYBOX.replace("/dev/block/dm-7  ", "/dev/block/dm-7\n                 "),
        TOYBOX.replace("/data\n", "/mnt/a b\n"),
    ],
)
def test_free_space_is_read_from_df(text: str) -> None:
    assert parse_df(text, "device") == 55622720 * 1024


@pytest.mark.parametrize(
    "text", ["", TOYBOX.split("\n")[0], "df: no such tool", TOYBOX.replace("55622720", "?"), TOYBOX * 2]
)
def test_other_output_of_df_is_an_error(text: str) -> None:
    with pytest.raises(DeviceRefusal, match="device: df"):
        parse_df(text, "device")


def test_holes_take_no_storage(folder_device: Emulator, transport: Transport) -> None:
    folder = RemoteFolder(transport, "/data/local/tmp/holes")
    folder.create()
    with open(folder_device.path(folder.path("a.part")), "wb") as file:
        file.seek(1 << 20)
        file.write(bytes(1 << 16))
    assert folder.sizes(["a.part", "b.part"]) == {"a.part": (1 << 20) + (1 << 16)}
    stored = folder.stored_bytes(["a.part", "b.part"])
    assert stored.keys() == {"a.part"} and 1 << 16 <= stored["a.part"] < 1 << 19


def test_digests_are_found_among_noise() -> None:
    lines = ["", "WARNING: linker: x", f"a-b.bin 12 {DIGEST}  -\r", f"a.bin x {DIGEST}", f"a.bin 1 {DIGEST[:-1]}"]
    assert list(parse_digests(lines)) == [("a-b.bin", 12, DIGEST)]


# --- the storage -------------------------------------------------------------------------------------------------

SHELL = "/bin/sh"


def fake_programs(folder: Path, said: dict[str, str]) -> Path:
    """Programs that fail with a message, or succeed if there is none."""
    folder.mkdir()
    for name, words in said.items():
        (folder / name).write_text(f"#!{SHELL}\n" + (f'echo "{words}" >&2; exit 1\n' if words else ""))
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"fsync": "", "sync": "unused"}, None),
        ({"fsync": "fsync: a.part: Operation not permitted", "sync": ""}, None),
        ({"sync": ""}, None),
        ({"fsync": "fsync: can't sync 'a.part': I/O error", "sync": ""}, "I/O error"),
        ({"fsync": "fsync: a.part: Quota exceeded", "sync": ""}, "Quota exceeded"),
        ({"sync": "sync: error syncing 'a.part': Input/output error"}, "Input/output error"),
        ({"sync": "sync: error syncing 'a.part': No space left on device"}, "No space left"),
        ({"sync": "sync: error syncing 'a.part': Disk quota exceeded"}, "Disk quota"),
        ({}, "not found"),
    ],
)
def test_a_sync_fails_only_if_the_storage_does(said: dict[str, str], fault: str | None, tmp_path: Path) -> None:
    path = fake_programs(tmp_path / "bin", said)
    command = f"true && {sync_command('a.part')}"
    done = subprocess.run([SHELL, "-c", command], env={"PATH": str(path)}, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, fault is None or fault in done.stderr) == (fault is None, True), done


def test_a_chunk_that_the_storage_could_not_take_fails_though_its_hash_is_right(tmp_path: Path) -> None:
    data = b"abc" * 100
    path = fake_programs(tmp_path / "bin", {"fsync": "fsync: a.part: I/O error"})
    file = PushFile("a", tmp_path / "a", len(data), (hashlib.sha256(data).hexdigest(),), 4096)
    done = subprocess.run(
        [SHELL, "-c", f"{{ {store_script([ChunkRun(file, 0, 1)], None)}; }} 2>&1"],
        input=data, cwd=tmp_path, env={"PATH": f"{path}:{os.environ['PATH']}"}, capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert FAILED in lines and "fsync: a.part: I/O error" in lines
    assert list(parse_digests(lines)) == [("a.part", 0, file.chunks[0])]
