"""The program that stores a push on the device, by itself: what it stores, and the hashes that it tells."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import device_harness.native
from device_harness.native import build
from device_harness.native.build import PUSH_RECEIVER, native_program, parse_architecture
from toolkit.errors import EnvironmentFault

SOURCES = Path(device_harness.native.__file__).parent
CHUNK = 1 << 20


@pytest.fixture(scope="module")
def receiver() -> Path:
    try:
        return native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host")).path
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


def digests(data: bytes, chunk: int, first: int = 0) -> list[str]:
    """The lines that are wanted, in the order of the chunks."""
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    return [f"a.part {first + n} {hashlib.sha256(piece).hexdigest()}" for n, piece in enumerate(pieces)]


def receive(
    program: Path, folder: Path, data: bytes, chunk: int, first: int = 0, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    (folder / "a.part").touch()
    count = -(-len(data) // chunk)
    last = len(data) - (count - 1) * chunk
    words = [str(program), "a.part", *map(str, (chunk, first, first + count, last))]
    return subprocess.run(words, input=data, cwd=folder, capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("plain", [{}, {"PUSH_RECEIVER_PLAIN": "1"}], ids=["instructions", "plain"])
@pytest.mark.parametrize(
    "size",
    [1, 55, 56, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 9, 11 * CHUNK, 12 * CHUNK + 777],
)
def test_every_chunk_is_stored_and_hashed_alone_or_beside_another(
    receiver: Path, tmp_path: Path, size: int, plain: dict[str, str]
) -> None:
    data = random.Random(size).randbytes(size)
    done = receive(receiver, tmp_path, data, CHUNK, **plain)
    assert done.returncode == 0
    lines = sorted(done.stdout.decode().splitlines(), key=lambda line: int(line.split()[1]))
    assert lines == digests(data, CHUNK)
    assert (tmp_path / "a.part").read_bytes() == data


def test_a_run_in_the_middle_leaves_the_rest_of_the_file(receiver: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    before, data = chance.randbytes(9 * CHUNK), chance.randbytes(5 * CHUNK + 64)
    (tmp_path / "a.part").write_bytes(before)
    done = receive(receiver, tmp_path, data, CHUNK, first=2)
    assert sorted(done.stdout.decode().splitlines()) == digests(data, CHUNK, 2)
    stored = (tmp_path / "a.part").read_bytes()
    assert stored == before[: 2 * CHUNK] + data + before[2 * CHUNK + len(data) :]


def test_an_end_too_early_is_told_and_what_came_is_kept(receiver: Path, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3 * CHUNK)
    (tmp_path / "a.part").touch()
    words = [str(receiver), "a.part", str(CHUNK), "0", "3", str(CHUNK)]
    done = subprocess.run(words, input=data[: 2 * CHUNK + 100], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.decode().endswith("a.part: the connection's end\nfailed\n")
    assert (tmp_path / "a.part").read_bytes()[: 2 * CHUNK] == data[: 2 * CHUNK]


def test_a_link_is_not_followed(receiver: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "a.part").symlink_to("other")
    done = receive(receiver, tmp_path, b"data", CHUNK)
    assert done.returncode == 1 and done.stdout.endswith(b"failed\n")
    assert (tmp_path / "other").read_bytes() == b""


def test_another_header_is_another_program(tmp_path: Path) -> None:
    for path in SOURCES.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    before = build._key(tmp_path / "push_receiver.c", "1", "aarch64")
    assert before == build._key(SOURCES / "push_receiver.c", "1", "aarch64")
    with open(tmp_path / "sha256.h", "a") as header:
        header.write("\n")
    assert build._key(tmp_path / "push_receiver.c", "1", "aarch64") != before
