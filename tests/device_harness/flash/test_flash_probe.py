"""The flash probe's C program, under the compiler's sanitizers: what it refuses, and what it reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE_S

from device_harness.flash.probe import ReadMeasure, parse_probe
from device_harness.programs import build
from toolkit.base.errors import BundleError, ResultsError
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, check_sequence, read_header
from toolkit.bundle.ple_writer import write_ple_shards

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc (apt-get install gcc)")

SOURCE = Path(build.__file__).parent / "native" / "flash_probe.c"
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "PATH": "/usr/bin:/bin"}
QUICK = ("--reads", "20", "--batch", "8", "--batches", "2")
LAYOUT = PleLayout(vocab_size=300, layers=3, width=8, bits=8)
FIELDS = struct.Struct("<8sIIQQQIIIIII32s")
"""As docs/formats/ple_shard.md has them."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Noise:
    """A table of random numbers."""

    def shape(self, name: str) -> tuple[int, ...]:
        return (LAYOUT.vocab_size, LAYOUT.layers * LAYOUT.width)

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        values = np.random.default_rng(3).standard_normal(self.shape(name), dtype=np.float32)
        first, last = rows or (0, LAYOUT.vocab_size)
        return values[first:last]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as gcc with its sanitizers builds it."""
    path = tmp_path_factory.mktemp("native") / "flash_probe"
    warnings = ("-std=c99", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
    subprocess.run(["gcc", *warnings, *SANITIZED, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def run(program: Path) -> Run:
    """Runs it on files; a sanitizer's complaint fails the test."""

    def start(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S)
        assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
        assert done.returncode in (0, 2, 3), done
        assert (done.returncode == 0) == (done.stderr == "") and done.stderr.count("\n") <= 1, done.stderr
        return done

    return start


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Four shards of 80, 80, 80 and 60 rows."""
    names = write_ple_shards(tmp_path, Noise(), "ple", LAYOUT, shard_bytes=HEADER_BYTES + 80 * LAYOUT.row_bytes)
    assert len(names) == 4
    return [tmp_path / name for name in names]


def with_fields(path: Path, **values: int) -> None:
    """Set header fields, under a header hash that fits."""
    names = "magic version header_bytes first_token row_count vocab_size layers width bits row_bytes shard shard_count"
    page = bytearray(path.read_bytes()[:HEADER_BYTES])
    fields = dict(zip([*names.split(), "rows_sha256"], FIELDS.unpack(page[: FIELDS.size]), strict=True))
    packed = FIELDS.pack(*{**fields, **values}.values())
    page[: FIELDS.size + 32] = packed + hashlib.sha256(packed).digest()
    with open(path, "r+b") as file:
        file.write(page)


def reader_takes(paths: list[Path]) -> bool:
    """What the toolkit's own reader says."""
    try:
        check_sequence(paths, [read_header(path) for path in paths])
    except BundleError:
        return False
    return True


# --- what it reads ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_way_to_read_is_measured_in_both_states(run: Run, shards: list[Path]) -> None:
    table, measures = parse_probe(run(*QUICK, *shards).stdout, "probe")
    assert (table.shards, table.rows, table.row_bytes, table.bits) == (4, 300, LAYOUT.row_bytes, 8)
    assert table.table_bytes == sum(path.stat().st_size for path in shards)
    ways = {(measure.access, measure.pattern, measure.state == "warm") for measure in measures}
    rows = {"pread", "pread_random", "mmap", "mmap_random"}
    batches = {*rows, "pread_readahead", "mmap_willneed"}
    assert ways == {
        (access, pattern, warm)
        for pattern, accesses in (("row", rows), ("batch", batches))
        for access in accesses
        for warm in (False, True)
    }
    for measure in measures:
        assert measure.reads == (20 if measure.pattern == "row" else 2)
        assert measure.row_bytes_read == measure.rows * LAYOUT.row_bytes
        latencies = [getattr(measure, f"latency_{name}_us") for name in ("p50", "p90", "p99", "max")]
        assert latencies[0] > 0 and latencies == sorted(latencies)
        # The mean is printed in whole nanoseconds, so each read may be off by half of one; the rate in whole bytes; the
        # time exactly.
        total_us = pytest.approx(measure.latency_mean_us * measure.reads, rel=0, abs=0.000501 * measure.reads)
        assert measure.read_s * 1e6 == total_us
        rate = pytest.approx(measure.row_bytes_read / measure.read_s, rel=1e-9, abs=0.5)
        assert measure.bandwidth_bytes_per_s == rate


def test_cold_reads_fetch_pages_and_warm_ones_find_them(run: Run, shards: list[Path]) -> None:
    table, measures = parse_probe(run(*QUICK, *shards).stdout, "probe")
    if any(measure.state == "not_cold" for measure in measures):
        pytest.skip("pages of this file system cannot be dropped")
    for measure in measures:
        assert measure.resident_pages_after <= table.table_pages
        if measure.state == "cold":
            assert measure.resident_pages_before == 0 < measure.resident_pages_after
            if measure.access in ("mmap", "mmap_random"):
                assert measure.major_faults > 0
        else:
            assert measure.resident_pages_before > 0 and measure.major_faults == 0
            assert measure.storage_read_bytes in (0, None)
    calm = next(measure for measure in measures if measure.access == "pread_random")
    eager = next(measure for measure in measures if measure.access == "mmap")
    assert calm.resident_pages_after <= 20 < eager.resident_pages_after


def test_one_seed_reads_the_same_tokens_and_a_batch_holds_each_once(run: Run, shards: list[Path]) -> None:
    def rows(seed: int) -> list[int]:
        options = ("--seed", seed, "--reads", 1, "--batch", 100, "--batches", 3)
        return [measure.rows for measure in parse_probe(run(*options, *shards).stdout, "probe")[1]]

    first = rows(5)
    assert first == rows(5) != rows(6)
    assert 1 < max(first) < 300  # 3 x 100 draws of 300 meet some twice


def test_listed_tokens_are_read_in_turn_and_strangers_read_row_0(run: Run, shards: list[Path], tmp_path: Path) -> None:
    listed = tmp_path / "tokens"
    listed.write_text("7 7\n299 -1 99999999999\n")
    done = run("--tokens", listed, "--reads", 5, "--batch", 5, "--batches", 1, *shards)
    table, measures = parse_probe(done.stdout, "probe")
    assert table.listed_tokens == 5
    assert {measure.rows for measure in measures if measure.pattern == "batch"} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("token", [0, 79, 80, 299])
def test_the_row_of_a_token_is_the_one_that_is_read(run: Run, shards: list[Path], tmp_path: Path, token: int) -> None:
    path = shards[token // 80]
    damaged = bytearray(path.read_bytes())
    damaged[HEADER_BYTES + token % 80 * LAYOUT.row_bytes + 5] ^= 1
    path.write_bytes(damaged)
    listed = tmp_path / "tokens"
    listed.write_text(" ".join(str(other) for other in range(300) if other != token))
    assert run("--tokens", listed, "--reads", 299, *QUICK[2:], *shards).returncode == 0
    listed.write_text(f"1 {token}")
    done = run("--tokens", listed, *QUICK, *shards)
    assert done.returncode == 2 and f"{path} row of token {token}: found damaged bytes" in done.stderr


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_one_state_alone_can_be_asked_for(run: Run, shards: list[Path], state: str) -> None:
    _, measures = parse_probe(run("--state", state, *QUICK, *shards).stdout, "probe")
    assert len(measures) == 10 and all((measure.state == "warm") == (state == "warm") for measure in measures)


def test_tables_with_scales_in_float32_and_codes_of_2_bits_are_read(run: Run, shards: list[Path]) -> None:
    for path in shards:
        with_fields(path, version=2, bits=2)
    assert reader_takes(shards)
    table, _ = parse_probe(run(*QUICK, *shards).stdout, "probe")
    assert (table.bits, table.rows) == (2, 300)
    with_fields(shards[0], version=1)
    done = run(*QUICK, *shards)
    assert done.returncode == 2 and "another table's layout" in done.stderr and not reader_takes(shards)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("header_bytes", 0),
        ("first_token", 2**64 - 1),
        ("row_count", 0),
        ("row_count", 2**64 - 1),
        ("row_count", 2**63),
        ("vocab_size", 0),
        ("vocab_size", 2**64 - 1),
        ("layers", 0),
        ("layers", 2**32 - 1),
        ("width", 0),
        ("width", 2**32 - 1),
        ("bits", 0),
        ("bits", 2**32 - 1),
        ("row_bytes", 0),
        ("row_bytes", 2**32 - 512),
        ("shard", 1),
        ("shard", 2**32 - 1),
        ("shard_count", 0),
        ("shard_count", 2**32 - 1),
    ],
)
def test_a_header_with_a_hostile_field_is_refused_by_name(run: Run, shards: list[Path], field: str, value: int) -> None:
    with_fields(shards[0], **{field: value})
    done = run(*QUICK, *shards)
    assert done.returncode == 2 and done.stdout == "" and str(shards[0]) in done.stderr
    if field not in ("vocab_size", "first_token"):
        assert f"header {field}: found {value}" in done.stderr


@pytest.mark.slow
def test_mangled_headers_are_refused_where_the_toolkits_reader_refuses_them(run: Run, shards: list[Path]) -> None:
    dice = random.Random(1)
    sound = [path.read_bytes() for path in shards]
    names = [name for name in ("first_token", "row_count", "vocab_size", "layers", "width", "bits", "row_bytes")]
    taken = 0
    for turn in range(80):
        at = dice.randrange(4)
        if turn % 2:
            field, wide = dice.choice(names), 64
            bits = wide if field in names[:3] else 32
            with_fields(shards[at], **{field: min(2**bits - 1, dice.choice([1, 3, 8, 80, 300, 512, 2**31, 2**64 - 1]))})
        else:
            data = bytearray(sound[at])
            place = dice.choice([dice.randrange(160), dice.randrange(HEADER_BYTES), len(data) - 1])
            data[place] ^= 1 << dice.randrange(8)
            shards[at].write_bytes(data[: dice.choice([len(data), len(data), dice.randrange(len(data))])])
        done = run("--reads", 1, "--batch", 2, "--batches", 1, *shards)
        # A damaged row is no fault of the header's: it shows only when that row is read.
        assert (done.returncode == 0 or "row of token" in done.stderr) == reader_takes(shards), done.stderr
        taken += done.returncode == 0
        shards[at].write_bytes(sound[at])
    assert 0 < taken < 60


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "found no file of at least 4096 bytes"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(9000)), "no PLE shard"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "wanted 45056"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "found 45057 bytes"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "found no file"),
    ],
)
def test_a_foreign_or_cut_file_is_refused(
    run: Run, shards: list[Path], make: Callable[[Path], object], words: str
) -> None:
    make(shards[0])
    done = run(*QUICK, *shards)
    assert done.returncode == 2 and words in done.stderr and str(shards[0]) in done.stderr


def test_shards_out_of_order_missing_or_of_two_tables_are_refused(run: Run, shards: list[Path], tmp_path: Path) -> None:
    assert run(*QUICK, *shards[::-1]).returncode == 2
    assert "found 3 with 240 rows, wanted 4 with 300" in run(*QUICK, *shards[:3]).stderr
    assert run(*QUICK).returncode == 2
    other = tmp_path / "other"
    other.mkdir()
    layout = dataclasses.replace(LAYOUT, layers=2, width=12)
    write_ple_shards(other, Noise(), "ple", layout, shard_bytes=HEADER_BYTES + 80 * layout.row_bytes)
    done = run(*QUICK, *shards[:3], other / shards[3].name)
    assert done.returncode == 2 and "another table's layout" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--reads", "0"), ("--reads", "-1"), ("--reads", "1048577"), ("--reads", ""), ("--reads", "1x"),
        ("--batch", "1"), ("--batches", "99999999999999999999999"), ("--seed", "18446744073709551616"),
        ("--state", "hot"), ("--nonsense", "1"), ("--reads",), ("--tokens", "/nonexistent"), ("--tokens", "/dev/null"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_error(run: Run, shards: list[Path], options: tuple[str, ...]) -> None:
    done = run(*options) if len(options) == 1 else run(*options, *shards)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("text", ["1 two", "1.5", "9" * 40, "0x10", "1,2"])
def test_a_token_file_with_anything_else_is_refused(run: Run, shards: list[Path], tmp_path: Path, text: str) -> None:
    listed = tmp_path / "tokens"
    listed.write_text(text)
    done = run("--tokens", listed, *QUICK, *shards)
    assert done.returncode == 2 and str(listed) in done.stderr


def test_it_ends_when_nobody_reads_its_results_any_more(program: Path, shards: list[Path]) -> None:
    command = [str(program), "--reads", "1000000", *map(str, shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) != 0


# --- its results ------------------------------------------------------------------------------------------------------


def test_results_are_read_among_noise_and_refused_if_cut_or_changed(run: Run, shards: list[Path]) -> None:
    text = run(*QUICK, *shards).stdout
    wanted = parse_probe(text, "probe")
    noisy = "WARNING: linker: x\n" + text.replace("\n", "\r\n") + "\nbye"
    assert parse_probe(noisy, "probe") == wanted
    lines = text.splitlines()
    for broken in ("", "\n".join(lines[:-1]), "\n".join(lines[1:]), text + lines[0], text[: len(text) // 2]):
        with pytest.raises(ResultsError):
            parse_probe(broken, "probe")
    record = json.loads(lines[1])
    for change in ({"reads": -1}, {"access": "dd"}, {"latency_p50_us": "1"}, {"more": 1}, {"record": "table"}):
        with pytest.raises(ResultsError):
            parse_probe("\n".join([lines[0], json.dumps({**record, **change}), *lines[2:]]), "probe")
    fields = {field.name for field in dataclasses.fields(ReadMeasure)}
    assert record.keys() == fields | {"record"}


# --- files taken out of memory ----------------------------------------------------------------------------------------


def resident_bytes(path: Path) -> int:
    """By util-linux."""
    done = subprocess.run(["fincore", "-b", "-n", "-o", "RES", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(shutil.which("fincore") is None, reason="needs fincore (apt-get install util-linux)")
def test_dropped_files_are_out_of_memory_unless_someone_holds_them(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("free", "held", "empty")]
    for path, size in zip(paths, (1_000_000, 300_000, 0), strict=True):
        path.write_bytes(bytes(size))
    with open(paths[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert held[::4096].count(0)
        said = json.loads(run("--drop", *paths).stdout)
        assert said == {
            "record": "dropped", "files": 3, "bytes": 1_300_000,
            "resident_bytes": sum(map(resident_bytes, paths[:2])),
        }  # fmt: skip
        assert said["resident_bytes"] >= 300_000
    if resident_bytes(paths[0]):
        pytest.skip("the temporary folder lies in memory")
    assert json.loads(run("--drop", *paths).stdout)["resident_bytes"] == 0 == resident_bytes(paths[1])


@pytest.mark.parametrize("words", [("--drop",), ("--drop", "/nope"), ("--drop", "/"), ("--drop", "/dev/null")])
def test_only_files_are_dropped(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words).returncode == 2
