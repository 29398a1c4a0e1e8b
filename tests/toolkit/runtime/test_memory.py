"""Memory by kind and by group, against what a process is made to hold."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.runtime.bundle import Bundle
from toolkit.runtime.memory import PLE_GROUP, FilePages, Memory, StagePeaks, page_cache_bytes, read_memory
from toolkit.runtime.session import Session, SessionSettings

MIB = 1 << 20

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


def test_pages_of_a_file_that_nobody_needs_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = file_of(tmp_path / "read once", 4 * MIB)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = bytes(mapped)
        FilePages(path).release()
        assert read_memory({"text": [path]}).groups["text"].resident_bytes == 0
        assert bytes(mapped) == before


def test_pages_that_were_written_are_kept(tmp_path: Path) -> None:
    path = file_of(tmp_path / "private", 4 * MIB)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"mine"
        FilePages(path).release()
        assert mapped[:4] == b"mine"


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
