"""Texts of /proc/PID as kernels write them: this machine's own, older ones, and what a shell makes of them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from toolkit.base.errors import EnvironmentFault
from toolkit.base.procfs import (
    MemoryMapping,
    ProcessIo,
    ProcessStat,
    ProcessStatus,
    SmapsRollup,
    parse_io,
    parse_shared_maps,
    parse_smaps,
    parse_smaps_rollup,
    parse_stat,
    parse_status,
)

STATUS = """Name:\tgemma edge: x
State:\tS (sleeping)
Pid:\t4711
VmHWM:\t  204800 kB
VmRSS:\t  102400 kB
RssAnon:\t   51200 kB
RssFile:\t   49152 kB
RssShmem:\t    2048 kB
VmSwap:\t     512 kB
Speculation_Store_Bypass:\tvulnerable
"""

ROLLUP = """55d0c5b0e000-7ffd4a9f1000 ---p 00000000 00:00 0                          [rollup]
Rss:                9000 kB
Pss:                5000 kB
Pss_Dirty:          3000 kB
Pss_Anon:           3000 kB
Pss_File:           1500 kB
Pss_Shmem:           500 kB
Private_Clean:      1000 kB
Private_Dirty:      3000 kB
Anonymous:          3000 kB
Swap:                 64 kB
SwapPss:              32 kB
"""

SMAPS = """7f0000000000-7f0010001000 r--s 00001000 fe:00 260386                     /data/my models/ple_00000.bin
Size:             262148 kB
Rss:                  16 kB
Pss:                   8 kB
Anonymous:             0 kB
THPeligible:           0
VmFlags: rd mr mw me rr
7f0020000000-7f0020002000 rw-p 00000000 00:00 0
Size:                  8 kB
Rss:                   8 kB
Pss:                   8 kB
Anonymous:             8 kB
"""

STAT = (
    "4711 (a (b) c d) S 1 4711 4711 0 -1 4194304 1234 0 56 0 7 8 0 0 20 0 1 0 987654 3133440 371 18446744073709551615\n"
)
IO = "rchar: 6976\nwchar: 0\nsyscr: 10\nsyscw: 0\nread_bytes: 4096\nwrite_bytes: 0\ncancelled_write_bytes: 0\n"

MIB = 1 << 20


def test_shared_mappings_of_a_file_are_told_from_private_ones() -> None:
    lines = (
        "7f0000000000-7f0010001000 r--s 00001000 fe:00 260386                     /data/my models/a.tflite",
        "7f0020000000-7f0020002000 rw-p 00000000 fe:00 260386                     /data/my models/a.tflite",
        "7f0020002000-7f0020003000 r--s 10001000 fe:00 260386                     /data/my models/a.tflite",
        "7f0030000000-7f0030002000 rw-p 00000000 00:00 0 ",
        "",
    )
    assert parse_shared_maps("\n".join(lines)) == {
        "/data/my models/a.tflite": [(0x7F0000000000, 0x7F0010001000), (0x7F0020002000, 0x7F0020003000)]
    }
    assert parse_shared_maps("") == {}
    with pytest.raises(EnvironmentFault, match="maps"):
        parse_shared_maps("cat: no such file\n")


def test_every_kind_of_memory_is_read_in_bytes() -> None:
    assert parse_status(STATUS) == ProcessStatus(100 * MIB, 200 * MIB, MIB // 2, 50 * MIB, 48 * MIB, 2 * MIB)
    assert parse_smaps_rollup(ROLLUP) == SmapsRollup(
        *(kilobytes * 1024 for kilobytes in (9000, 5000, 3000, 1500, 500, 1000, 3000, 64, 32))
    )
    assert parse_smaps(SMAPS) == (
        MemoryMapping(0x7F0000000000, 0x7F0010001000, "/data/my models/ple_00000.bin", 16384, 8192, 0, 4096),
        MemoryMapping(0x7F0020000000, 0x7F0020002000, "", 8192, 8192, 8192),
    )
    assert parse_smaps(SMAPS)[0].size_bytes == 256 * MIB + 4096
    assert parse_stat(STAT) == ProcessStat(4711, 1234, 56, 987654)
    assert parse_io(IO) == ProcessIo(6976, 4096)


def test_lines_may_end_as_a_shell_over_adb_ends_them() -> None:
    for parse, text in ((parse_status, STATUS), (parse_smaps_rollup, ROLLUP), (parse_smaps, SMAPS), (parse_io, IO)):
        assert parse(text.replace("\n", "\r\n")) == parse(text)
    assert parse_stat(STAT.replace("\n", "\r\n")) == parse_stat(STAT)


def test_what_a_kernel_leaves_out_is_unknown_and_not_zero() -> None:
    zombie = parse_status("Name:\tx\nState:\tZ (zombie)\nPid:\t1\n")
    assert zombie == ProcessStatus(None, None, None, None, None, None)
    old = parse_smaps_rollup("".join(line for line in ROLLUP.splitlines(True) if "Pss_" not in line))
    assert (old.pss_anonymous_bytes, old.pss_bytes) == (None, 5000 * 1024)
    assert parse_io("read_bytes: 5\n") == ProcessIo(None, 5)
    assert parse_smaps("") == ()


def test_texts_that_are_something_else_are_refused_with_what_was_found() -> None:
    shell = "cat: /proc/1/status: Permission denied\n"
    for parse in (parse_status, parse_smaps_rollup, parse_smaps, parse_stat, parse_io):
        with pytest.raises(EnvironmentFault, match="Permission denied"):
            parse(shell)
    for parse in (parse_status, parse_smaps_rollup, parse_stat, parse_io):
        with pytest.raises(EnvironmentFault, match="found ''"):
            parse("")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (STATUS.replace("51200 kB", "51200"), "RssAnon: found '51200', wanted a number of kB"),
        (STATUS.replace("51200 kB", "-1 kB"), "RssAnon: found '-1 kB'"),
        (STATUS.replace("51200 kB", "lots kB"), "RssAnon: found 'lots kB'"),
        (STATUS + "VmRSS:\t 1 kB\n", "VmRSS: a duplicate key"),
        (STATUS + "VmS", "found 'VmS', wanted KEY: VALUE"),
    ],
)
def test_nonsense_in_a_status_is_named(text: str, found: str) -> None:
    with pytest.raises(EnvironmentFault, match=found):
        parse_status(text)


def test_nonsense_in_mappings_counters_and_times_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="smaps 7f0000000000: the end 7e0010001000 is not after the beginning"):
        parse_smaps(SMAPS.replace("7f0010001000", "7e0010001000"))
    with pytest.raises(EnvironmentFault, match="Rss: found '16 MB'"):
        parse_smaps(SMAPS.replace("16 kB", "16 MB"))
    with pytest.raises(EnvironmentFault, match="read_bytes: found 'many'"):
        parse_io(IO.replace("4096", "many"))
    with pytest.raises(EnvironmentFault, match="at least 19 numbers"):
        parse_stat(STAT[:40])


def test_this_process_reads_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(bytes(64 * mmap.PAGESIZE))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        mappings = parse_smaps(_own("smaps"))
    (ours,) = (mapping for mapping in mappings if mapping.path == str(path))
    assert (ours.size_bytes, ours.rss_bytes, ours.anonymous_bytes) == (64 * mmap.PAGESIZE, 64 * mmap.PAGESIZE, 0)
    status = parse_status(_own("status"))
    assert status.rss_bytes is not None and status.peak_rss_bytes is not None
    assert 0 < status.rss_bytes <= status.peak_rss_bytes
    assert parse_stat(_own("stat")).pid == os.getpid()
    assert (parse_io(_own("io")).rchar_bytes or 0) > 0


def _own(name: str) -> str:
    return Path(f"/proc/self/{name}").read_text(encoding="utf-8")
