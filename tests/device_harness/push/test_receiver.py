"""The program that stores a push on the device, by itself: what it stores, and the hashes that it tells."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from device_harness.programs import build
from device_harness.programs.build import PUSH_RECEIVER, native_program, parse_architecture
from device_harness.push.scripts import PIECE_BYTES
from toolkit.base.errors import EnvironmentFault

SOURCES = Path(build.__file__).parent / "native"
CHUNK = 320 << 10
"""More than one of the program's blocks, and no whole number of them."""


WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
NOTHING: Mapping[str, str] = {}
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture(scope="module", params=["static", "address,undefined", "thread"])
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as it is brought to devices, and as gcc with its sanitizers builds it."""
    if request.param == "static":
        try:
            return native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host")).path
        except EnvironmentFault as fault:
            pytest.skip(str(fault))
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc)")
    path = tmp_path_factory.mktemp("native") / PUSH_RECEIVER
    sanitizer = (f"-fsanitize={request.param}", "-fno-sanitize-recover=all")
    command = ["gcc", *WARNINGS, "-O1", "-g", *sanitizer, "-pthread", "-o", str(path)]
    subprocess.run([*command, str(SOURCES / f"{PUSH_RECEIVER}.c")], check=True)
    return path


def digests(data: bytes, chunk: int, first: int = 0, name: str = "a.part") -> list[str]:
    """The lines that are wanted, in the order of the chunks."""
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    return [f"{name} {first + n} {hashlib.sha256(piece).hexdigest()}" for n, piece in enumerate(pieces)]


def in_order(output: bytes) -> list[str]:
    """The lines with hashes; beside them only "next", which each chunk that is stored here says once."""
    lines = [line for line in output.decode().splitlines() if line != "next"]
    return sorted(lines, key=lambda line: int(line.split()[1]))


def start(
    program: Path,
    folder: Path,
    words: Sequence[object],
    data: bytes = b"",
    environment: Mapping[str, str] = NOTHING,
) -> subprocess.CompletedProcess[bytes]:
    """Run it; a sanitizer's complaint, or any other word on standard error, fails the test."""
    command = [str(program), *map(str, words)]
    known = {**os.environ, **ENVIRONMENT, **environment}
    done = subprocess.run(command, input=data, cwd=folder, capture_output=True, env=known, timeout=PATIENCE_S)
    assert done.stderr == b"" and done.returncode in (0, 1, 2), done
    return done


def place(data: bytes, chunk: int = CHUNK, first: int = 0) -> tuple[int, int, int, int]:
    """CHUNK FIRST STOP LAST of so many bytes."""
    count = -(-len(data) // chunk)
    return chunk, first, first + count, len(data) - (count - 1) * chunk


def receive(
    program: Path, folder: Path, data: bytes, chunk: int, first: int = 0, environment: Mapping[str, str] = NOTHING
) -> subprocess.CompletedProcess[bytes]:
    (folder / "a.part").touch()
    return start(program, folder, ("store", "a.part", *place(data, chunk, first)), data, environment)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [{}, {"PUSH_RECEIVER_PLAIN": "1"}], ids=["instructions", "plain"])
@pytest.mark.parametrize(
    "size",
    [1, 55, 56, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 9, 11 * CHUNK, 12 * CHUNK + 777],
)
def test_every_chunk_is_stored_and_hashed_alone_or_beside_another(
    receiver: Path, tmp_path: Path, size: int, plain: dict[str, str]
) -> None:
    data = random.Random(size).randbytes(size)
    done = receive(receiver, tmp_path, data, CHUNK, environment=plain)
    assert done.returncode == 0
    assert in_order(done.stdout) == digests(data, CHUNK)
    assert (tmp_path / "a.part").read_bytes() == data
    hashed = start(receiver, tmp_path, ("hash", "a.part", *place(data)), environment=plain)
    assert hashed.returncode == 0 and in_order(hashed.stdout) == digests(data, CHUNK)


@pytest.mark.slow
def test_it_says_next_after_each_piece_of_a_chunk_and_its_rest(receiver: Path, tmp_path: Path) -> None:
    chunk = 2 * PIECE_BYTES + 1
    done = receive(receiver, tmp_path, bytes(2 * chunk), chunk)
    assert done.stdout.splitlines().count(b"next") == 6
    assert in_order(done.stdout) == digests(bytes(2 * chunk), chunk)


def test_a_run_in_the_middle_leaves_the_rest_of_the_file(receiver: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    before, data = chance.randbytes(9 * CHUNK), chance.randbytes(5 * CHUNK + 64)
    (tmp_path / "a.part").write_bytes(before)
    done = receive(receiver, tmp_path, data, CHUNK, first=2)
    assert in_order(done.stdout) == digests(data, CHUNK, 2)
    assert done.stdout.splitlines().count(b"next") == 6
    stored = (tmp_path / "a.part").read_bytes()
    assert stored == before[: 2 * CHUNK] + data + before[2 * CHUNK + len(data) :]


def test_an_end_too_early_is_told_and_what_came_is_kept(receiver: Path, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3 * CHUNK)
    (tmp_path / "a.part").touch()
    done = start(receiver, tmp_path, ("store", "a.part", CHUNK, 0, 3, CHUNK), data[: 2 * CHUNK + 100])
    assert done.returncode == 1
    assert b"the connection: an end before all was stored\nfailed\n" in done.stdout
    assert (tmp_path / "a.part").read_bytes()[: 2 * CHUNK] == data[: 2 * CHUNK]


def test_a_copy_takes_the_same_places_of_another_file_and_is_read_back(receiver: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    old, part = chance.randbytes(8 * CHUNK + 5), chance.randbytes(9 * CHUNK)
    (tmp_path / "a").write_bytes(old)
    (tmp_path / "a.part").write_bytes(part)
    done = start(receiver, tmp_path, ("copy", "a.part", CHUNK, 3, 9, 5, "a"))
    assert done.returncode == 0 and in_order(done.stdout) == digests(old[3 * CHUNK :], CHUNK, 3)
    assert (tmp_path / "a.part").read_bytes() == part[: 3 * CHUNK] + old[3 * CHUNK :] + part[8 * CHUNK + 5 :]
    assert (tmp_path / "a").read_bytes() == old


def test_a_copy_that_meets_an_end_too_early_fails(receiver: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * CHUNK))
    (tmp_path / "a.part").touch()
    done = start(receiver, tmp_path, ("copy", "a.part", CHUNK, 0, 3, CHUNK, "a"))
    assert done.returncode == 1 and b"a: an end before all was stored\nfailed\n" in done.stdout


def test_what_cannot_be_read_has_no_hash_and_the_rest_has(receiver: Path, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * CHUNK - 1)
    (tmp_path / "a.part").write_bytes(data)
    done = start(receiver, tmp_path, ("hash", "a.part", CHUNK, 0, 5, CHUNK))
    rest = [f"a.part {n} unreadable" for n in (2, 3, 4)]
    assert done.returncode == 0 and in_order(done.stdout) == [*digests(data[: 2 * CHUNK], CHUNK), *rest]
    assert (tmp_path / "a.part").read_bytes() == data
    absent = start(receiver, tmp_path, ("hash", "none", CHUNK, 0, 2, 1))
    assert absent.returncode == 0 and in_order(absent.stdout) == ["none 0 unreadable", "none 1 unreadable"]


def test_chunks_that_cannot_be_read_are_not_hashed(receiver: Path, tmp_path: Path) -> None:
    """Their last bytes would be those behind a block, which for the last hasher is behind its memory."""
    count = 400
    done = start(receiver, tmp_path, ("hash", "none", CHUNK + 63, 0, count, 1))
    assert in_order(done.stdout) == [f"none {n} unreadable" for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "absent"])
def test_only_files_are_taken(receiver: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "whole").write_bytes(bytes(CHUNK))
    path = tmp_path / "a.part"
    if kind == "link":
        path.symlink_to("other")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    for words in (["store", "a.part"], ["copy", "a.part", "whole"], ["copy", "whole", "a.part"]):
        mode, name, *source = words
        done = start(receiver, tmp_path, (mode, name, CHUNK, 0, 1, CHUNK, *source), bytes(CHUNK))
        assert done.returncode == 1 and done.stdout.startswith(b"a.part: ")
        assert done.stdout.endswith(b"\nfailed\n")
    hashed = start(receiver, tmp_path, ("hash", "a.part", CHUNK, 0, 1, CHUNK))
    assert hashed.stdout == b"a.part 0 unreadable\n"
    assert (tmp_path / "other").read_bytes() == b""


@pytest.mark.parametrize(
    "words",
    [
        "",
        "store",
        "store a.part 16 0 1",
        "store a.part 16 0 1 16 whole",
        "copy a.part 16 0 1 16",
        "hash a.part 16 0 1 16 whole",
        "sums a.part 16 0 1 16",
        "hash a.part 0 0 1 16",
        "hash a.part 16 0 0 16",
        "hash a.part 16 1 1 16",
        "hash a.part 16 2 1 16",
        "hash a.part 16 0 1 0",
        "hash a.part 16 0 1 17",
        "hash a.part -16 0 1 16",
        "hash a.part 16 -1 1 16",
        "hash a.part 16 0x0 1 16",
        "hash a.part 16 0 1 16k",
        "hash a.part 16 0 99999999999999999999 16",
        "hash a.part 99999999999999999999 0 1 16",
        "hash a.part 2199023255552 0 1 16",
        "hash a.part 16 0 4194305 16",
        f"hash {'n' * 256} 16 0 1 16",
        f"copy a.part 16 0 1 16 {'n' * 256}",
    ],
)
def test_wrong_words_are_refused_before_anything_is_touched(receiver: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "a.part").write_bytes(b"before")
    done = start(receiver, tmp_path, words.split(), bytes(16))
    assert done.returncode == 2 and done.stdout.startswith(b"usage: push_receiver")
    assert (tmp_path / "a.part").read_bytes() == b"before"


def test_the_largest_numbers_stay_within_bounds(receiver: Path, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"before")
    most = 1 << 40
    done = start(receiver, tmp_path, ("hash", "a.part", most, (1 << 22) - 1, 1 << 22, most))
    assert done.stdout == f"a.part {(1 << 22) - 1} unreadable\n".encode()


def test_a_copy_that_nobody_listens_to_ends(receiver: Path, tmp_path: Path) -> None:
    """After a cut, nothing goes on writing into the file that the next push takes up."""
    size = 256
    (tmp_path / "a").write_bytes(bytes(size * CHUNK))
    (tmp_path / "a.part").touch()
    command = [str(receiver), "copy", "a.part", *map(str, (CHUNK, 0, size, CHUNK)), "a"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT}
    )
    assert process.stdout is not None and process.stdout.readline().startswith(b"a.part ")
    process.stdout.close()
    assert process.wait(60) != 0
    assert (tmp_path / "a.part").stat().st_size < size * CHUNK


@pytest.mark.parametrize(
    ("fault", "code"), [("EIO", 1), ("ENOSPC", 1), ("EDQUOT", 1), ("ENOSYS", 0), ("EINVAL", 0), ("ESPIPE", 0)]
)
def test_bytes_that_the_storage_refuses_are_an_error(failing: Path, tmp_path: Path, fault: str, code: int) -> None:
    number = getattr(errno, fault)
    done = receive(failing, tmp_path, bytes(2 * CHUNK), CHUNK, environment={"SYNC_FAULT": str(number)})
    assert done.returncode == code
    assert done.stdout.endswith(f"a.part: {os.strerror(number)}\nfailed\n".encode()) == bool(code)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program on a system whose sync_file_range fails as the environment says."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc)")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "fault.c").write_text(
        "#include <errno.h>\n#include <stdlib.h>\n"
        'int fail_to_sync(void) { errno = atoi(getenv("SYNC_FAULT")); return -1; }\n'
    )
    sources = [SOURCES / f"{PUSH_RECEIVER}.c", folder / "fault.c"]
    command = ["gcc", "-Dsync_file_range=fail_to_sync", "-pthread", *map(str, sources), "-o", str(folder / "failing")]
    subprocess.run(command, check=True)
    return folder / "failing"


def test_another_header_is_another_program(tmp_path: Path) -> None:
    for path in SOURCES.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    before = build._key(tmp_path / "push_receiver.c", "1", "aarch64")
    assert before == build._key(SOURCES / "push_receiver.c", "1", "aarch64")
    with open(tmp_path / "sha256.h", "a") as header:
        header.write("\n")
    assert build._key(tmp_path / "push_receiver.c", "1", "aarch64") != before
