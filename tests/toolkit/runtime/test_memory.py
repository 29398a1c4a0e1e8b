"""Memory by kind and by group, against what a process is made to hold."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from toolkit.base.procfs import parse_shared_maps
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.memory import PLE_GROUP, FilePages, Memory, StagePeaks, page_cache_bytes, read_memory
from toolkit.runtime.session import Session, SessionSettings

MIB = 1 << 20
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")


def file_of(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def test_touched_pages_of_a_groups_files_are_its_resident_memory(tmp_path: Path) -> None:
    touched, untouched = file_of(tmp_path / "a", 4 * MIB), file_of(tmp_path / "b", 4 * MIB)
    with open(touched, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(bytes(mapped)) == 4 * MIB
        memory = read_memory({"text": [touched], PLE_GROUP: [untouched]})
    text, ple = memory.groups["text"], memory.groups[PLE_GROUP]
    assert (text.mapped_bytes, text.resident_bytes) == (4 * MIB, 4 * MIB)
    assert (ple.mapped_bytes, ple.resident_bytes) == (0, 0)
    assert text.page_cache_bytes == ple.page_cache_bytes == 4 * MIB


def test_the_shards_pages_are_not_effective_memory_but_every_other_file_is(tmp_path: Path) -> None:
    path = file_of(tmp_path / "rows", 16 * MIB)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(bytes(mapped)) == 16 * MIB
        as_ple, as_text = read_memory({PLE_GROUP: [path]}), read_memory({"text": [path]})
    assert resident(as_ple) - effective(as_ple) == 16 * MIB
    assert effective(as_text) == resident(as_text)


def test_another_process_is_read_by_its_id() -> None:
    code = "import sys; held = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory = read_memory({}, child.pid)
        child.communicate()
    assert 64 * MIB < (memory.process.rss_anonymous_bytes or 0) < 128 * MIB


def test_the_page_cache_of_a_file_is_counted_apart_from_who_maps_it(tmp_path: Path) -> None:
    path = file_of(tmp_path / "file", 2 * MIB + 1)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        assert page_cache_bytes(path) == 2 * MIB + mmap.PAGESIZE
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert page_cache_bytes(path) == 0 or not _drops_pages(path)
    assert page_cache_bytes(file_of(tmp_path / "empty", 0)) == 0
    assert page_cache_bytes(tmp_path / "missing") is None


def test_each_stage_has_the_peak_of_its_own(tmp_path: Path) -> None:
    peaks = StagePeaks()
    peaks.end("what other tests held")
    peaks.end("before")
    # Not from the heap, which other tests may have left with large holes: those stay resident once they were used.
    with mmap.mmap(-1, 128 * MIB) as held:
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        peaks.end("large")
    peaks.end("freed")
    peaks.end("after")
    assert peaks.stages["large"] - peaks.stages["before"] > 100 * MIB
    assert peaks.stages["large"] - peaks.stages["after"] > 100 * MIB
    assert peaks.peak_rss_bytes == max(peaks.stages.values())


def test_a_session_says_what_its_groups_hold(random_bundle: Path, tmp_path: Path) -> None:
    settings = SessionSettings(threads=1, weight_cache=tmp_path)
    with Session(Bundle(random_bundle), settings) as session:
        session.feed([2, *range(3, 40)])
        memory = session.memory()
        groups = memory.groups
        assert set(groups) == set(session.bundle.manifest.groups)
        shards = sum(path.stat().st_size for path in session.bundle.ple_shards())
    (packed,) = tmp_path.glob("*.xnnpack")
    assert groups["text"].resident_bytes >= packed.stat().st_size
    assert groups["text"].mapped_bytes > packed.stat().st_size
    assert groups[PLE_GROUP].mapped_bytes >= shards > 0
    assert 0 < effective(memory) <= resident(memory)


def test_a_cache_that_cannot_be_looked_into_is_like_none(
    random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Like a directory that may not be searched, but for root too.
    folder = tmp_path / ("long" * 100)
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(folder))
    with Session(Bundle(random_bundle), SessionSettings(threads=1)) as session:
        assert set(session.memory().groups) == set(session.bundle.manifest.groups)


def test_pages_of_a_file_that_nobody_needs_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = file_of(tmp_path / "read once", 4 * MIB)
    with open(path, "rb") as file:
        with FilePages(path) as pages:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        before = bytes(mapped)
        pages.release()
        assert read_memory({"text": [path]}).groups["text"].resident_bytes == 0
        assert bytes(mapped) == before
        mapped.close()


def test_pages_that_were_written_are_kept(tmp_path: Path) -> None:
    path = file_of(tmp_path / "private", 4 * MIB)
    with open(path, "rb") as file:
        with FilePages(path) as pages:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped[:4] = b"mine"
        pages.release()
        assert mapped[:4] == b"mine"
        mapped.close()


def test_pages_of_a_mapping_that_somebody_else_made_are_left_alone(tmp_path: Path) -> None:
    path = file_of(tmp_path / "read by two", 4 * MIB)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as theirs:
        with FilePages(path) as pages:
            ours = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert bytes(theirs) == bytes(ours)
        pages.release()
        assert read_memory({"text": [path]}).groups["text"].resident_bytes == 4 * MIB
        ours.close()


def test_two_threads_that_map_one_file_at_once_each_get_their_own_pages(tmp_path: Path) -> None:
    path = file_of(tmp_path / "opened twice", MIB)
    start, found = threading.Barrier(2), list[list[tuple[int, int]]]()

    def use() -> None:
        with open(path, "rb") as file:
            start.wait()
            with FilePages(path) as pages:
                time.sleep(0.01)
                kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                time.sleep(0.01)
            found.append(pages._spans)

    kept: list[mmap.mmap] = []
    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = found
    assert len(one) == len(other) == 1 and one != other


def test_what_is_mapped_in_the_place_of_another_session_keeps_its_content(random_bundle: Path) -> None:
    settings = SessionSettings(threads=1, weight_cache="memory")
    embedder = str((random_bundle / "embedder.tflite").resolve())
    first = Session(Bundle(random_bundle), settings)
    (begin, end), *_ = parse_shared_maps(Path("/proc/self/maps").read_text())[embedder]
    with Session(Bundle(random_bundle), settings) as second:
        first.close()
        pages = [at for at in map(page_at, range(begin, end, mmap.PAGESIZE)) if at is not None]
        assert pages, "something else took all of the first session's addresses"
        second.feed([2, 5])
        assert all(ctypes.string_at(at, 4) == b"mine" for at in pages)
        for at in pages:
            assert LIBC.munmap(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE)) == 0


def page_at(address: int) -> int | None:
    """A page of memory at this address, which is returned; None if something is there."""
    fixed_if_free = 0x100000  # MAP_FIXED_NOREPLACE, which Python's mmap lacks
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_if_free
    access = mmap.PROT_READ | mmap.PROT_WRITE
    wanted, size = ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE)
    if LIBC.mmap(wanted, size, access, flags, -1, ctypes.c_long(0)) != address:
        return None
    ctypes.memmove(address, b"mine", 4)
    return address


def test_a_session_keeps_no_pages_of_the_weights_that_it_rearranged(random_bundle: Path, tmp_path: Path) -> None:
    with Session(Bundle(random_bundle), SessionSettings(threads=1, weight_cache=tmp_path)) as session:
        path = random_bundle / "text_decoder.tflite"
        decoder = read_memory({"decoder": [path]}).groups["decoder"]
        assert decoder.mapped_bytes >= path.stat().st_size and decoder.resident_bytes == 0
        session.feed([2, 3, 4])


def test_a_session_keeps_no_pages_of_the_embedding_table(random_bundle: Path) -> None:
    with Session(Bundle(random_bundle), SessionSettings(threads=1, weight_cache="off")) as session:
        session.feed([2, *range(3, 40)])
        table = read_memory({"table": [random_bundle / "embedder.tflite"]}).groups["table"]
        assert table.mapped_bytes > 0 and table.resident_bytes == 0


def resident(memory: Memory) -> int:
    assert memory.process.rss_bytes is not None
    return memory.process.rss_bytes


def effective(memory: Memory) -> int:
    assert memory.effective_bytes is not None
    return memory.effective_bytes


def _drops_pages(path: Path) -> bool:
    """A file system in memory keeps them."""
    done = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip() not in {"tmpfs", "ramfs"}
