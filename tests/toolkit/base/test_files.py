"""Atomic writes, hashes and names: what is promised when things go wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from paths import REPOSITORY

from toolkit.base import directory_swap, files
from toolkit.base.errors import EnvironmentFault, UsageError


def only(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_finished_file_replaces_the_old_one_and_leaves_no_sibling(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with files.atomic_file(target) as partial:
        assert partial.parent == tmp_path
        partial.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert only(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_keeps_the_old_file_and_removes_the_partial_one(
    tmp_path: Path, fault: type[BaseException]
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(fault), files.atomic_file(target) as partial:
        partial.write_bytes(b"half")
        raise fault
    assert target.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


def test_a_file_that_fails_its_verification_is_never_seen(tmp_path: Path) -> None:
    def verify(partial: Path) -> None:
        assert partial.read_bytes() == b"data"
        raise EnvironmentFault("disk", found="rot", wanted="data")

    with pytest.raises(EnvironmentFault), files.atomic_file(tmp_path / "a.bin", verify=verify) as partial:
        partial.write_bytes(b"data")
    assert only(tmp_path) == []


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_bytes(tmp_path / "ours", b"x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_symbolic_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_missing_parent_is_named_with_the_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"no directory .*nowhere.*create it"),
        files.atomic_file(tmp_path / "nowhere" / "a"),
    ):
        pass


def test_a_directory_is_no_target_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a directory"), files.atomic_file(tmp_path):
        pass


def test_a_full_disk_is_an_environment_fault(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentFault, match="no space left on device; free some space"),
        files.atomic_file(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert only(tmp_path) == []


def test_a_missing_input_of_the_caller_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError), files.atomic_file(tmp_path / "out" / "a"):
        (tmp_path / "input").read_bytes()


def test_a_written_file_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"rot")
    with pytest.raises(EnvironmentFault, match="read back"):
        files.write_bytes(tmp_path / "a", b"data")
    assert only(tmp_path) == []


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with files.atomic_directory(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_bytes(b"1")
        assert not target.exists()
    assert (target / "sub" / "a").read_bytes() == b"1"
    assert only(tmp_path) == ["bundle"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_an_interrupted_directory_keeps_the_old_one(tmp_path: Path, fault: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with pytest.raises(fault), files.atomic_directory(target, replace=True) as partial:
        (partial / "new").write_bytes(b"half")
        raise fault
    assert only(target) == ["old"]
    assert only(tmp_path) == ["bundle"]


def test_a_replaced_directory_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with files.atomic_directory(target, replace=True) as partial:
        (partial / "new").write_bytes(b"new")
    assert only(target) == ["new"]
    assert only(tmp_path) == ["bundle"]


def test_a_failed_swap_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    replace = os.replace

    def refuse_partial(source: Path, destination: Path) -> None:
        if (Path(source) / "new").exists():
            raise OSError(errno.EIO, "broken")
        replace(source, destination)

    monkeypatch.setattr(directory_swap, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "replace", refuse_partial)
    with pytest.raises(OSError, match="broken"), files.atomic_directory(target, replace=True) as partial:
        (partial / "new").write_bytes(b"new")
    assert only(target) == ["old"]
    assert only(tmp_path) == ["bundle"]


def test_a_full_directory_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="files in it"), files.atomic_directory(tmp_path / "photos"):
        pass


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with files.atomic_directory(tmp_path / "bundle") as partial:
        (partial / "a").write_bytes(b"1")
    assert only(tmp_path / "bundle") == ["a"]


@pytest.mark.parametrize("name", ["bundle", "[a].litertlm"])
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path, name: str) -> None:
    others = [".bundle.partial", ".bundle.12345678.ol", ".bundle2.12345678.partial", f".{name}.1234567x.partial"]
    for left in (*others, f".{name}.0a0a0a0a.partial"):
        (tmp_path / left).write_bytes(b"x")
    (tmp_path / f".{name}.12345678.partial").mkdir()
    (tmp_path / f".{name}.12345678.partial" / "weights").write_bytes(b"x")
    with files.scratch_beside(tmp_path / name), files.atomic_file(tmp_path / name) as partial:
        partial.write_bytes(b"1")
        files.require_room(tmp_path / name, 1)
        assert len(only(tmp_path)) == len(others) + 2, "our own two are in use"
    assert only(tmp_path) == sorted([*others, name])


def test_a_sibling_that_was_taken_for_abandoned_before_it_was_locked_is_made_again(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        os.mkdir(path)
        made.append(path)
        if len(made) == 1:
            files._remove_abandoned(tmp_path / "bundle")

    with files._new_sibling(tmp_path / "bundle", make) as partial:
        assert partial == made[1] and partial.is_dir() and not made[0].exists()
    assert only(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("at_once", [5, 64])
def test_hashes_of_the_whole_and_of_chunks_agree_with_hashlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, at_once: int
) -> None:
    """Also where the system reads less at once than it is asked for."""
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: read(fd, min(count, at_once)))
    monkeypatch.setattr(files, "CHUNK_BYTES", 16)
    data = bytes(range(size))
    (tmp_path / "a").write_bytes(data)
    found = files.hash_file(tmp_path / "a")
    assert found.size == size
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.chunks == tuple(hashlib.sha256(data[i : i + 16]).hexdigest() for i in range(0, size, 16))


def test_files_are_hashed_in_the_background_or_when_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with files.BackgroundHasher() as hasher:
        hasher.add(tmp_path / "a")
        assert [hasher.hash(tmp_path / name) for name in ("a", "b")] == [
            files.hash_file(tmp_path / name) for name in ("a", "b")
        ]


def test_hashing_in_the_background_ends_with_the_work_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 16)
    monkeypatch.setattr(files, "sync", lambda path: pytest.fail("hashed to its end"))
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(RuntimeError, match="interrupted"), files.BackgroundHasher() as hasher:
        hasher.add(tmp_path / "endless")
        raise RuntimeError("interrupted")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


def test_write_at_writes_all_of_it_however_little_one_call_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    target = tmp_path / "target"
    target.write_bytes(b"." * 14)
    with open(target, "r+b") as file:
        files.write_at(file.fileno(), b"0123456789", 3)
    assert target.read_bytes() == b"...0123456789."


def test_free_space_is_asked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: usage(100, 90, 10))
    files.require_free_space(tmp_path, 10)
    with pytest.raises(EnvironmentFault, match="found 10 bytes of free disk space, wanted 11"):
        files.require_free_space(tmp_path, 11)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", ".hidden", "-o", "a\n", "a\0", "ä", "/etc/passwd", "a" * 129]
)
def test_unsafe_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="manifest"):
        files.safe_name(name, "manifest")


@pytest.mark.parametrize("name", ["a", "0.bin", "text_decoder.tflite", "E2.54B-x_1", "a" * 128])
def test_safe_names_are_returned(name: str) -> None:
    assert files.safe_name(name, "manifest") == name


def test_chunks_are_as_long_as_the_manifests_document_says() -> None:
    """Hashes in every manifest, and what a push sends again, depend on it."""
    document = REPOSITORY / "docs" / "formats" / "manifest.md"
    assert f"hash of each {files.CHUNK_BYTES:,} bytes" in document.read_text(encoding="utf-8")
