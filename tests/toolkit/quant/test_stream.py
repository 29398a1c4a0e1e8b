"""The weight stream: exact bytes at exact places, in little memory, whatever happens."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from bundles import ReadyCodes
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, EnvironmentFault, RecipeError, ToolkitError
from toolkit.base.weights import Weight, WeightPart
from toolkit.quant import stream
from toolkit.quant.packing import pack_codes, unpack_codes
from toolkit.quant.scheme import Scheme, payload_bytes, scales_bytes
from toolkit.quant.source import TensorSource
from toolkit.quant.stream import CHUNK_WEIGHTS, FileWeights, Placement, stream_files
from toolkit.quant.uniform import quantize_rows

SCHEMES = [Scheme("f32"), Scheme("int8"), Scheme("int8", 64), Scheme("int4"), Scheme("int4", 32), Scheme("int4", 64)]


def stream_weights(
    fd: int,
    placements: Sequence[Placement],
    source: TensorSource,
    *,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The scales of one file."""
    (scales,) = stream_files([FileWeights(fd, placements)], source, workers=workers, progress=progress)
    return scales


class Arrays:
    """A source of arrays that counts what is asked of it."""

    def __init__(self, **arrays: NDArray[np.float32]) -> None:
        self.arrays = arrays
        self.largest_read = 0
        self.reads = 0

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        array = self.arrays[name]
        array = array if rows is None else array[slice(*rows)]
        array = array if columns is None else array[..., slice(*columns)]
        self.reads += 1
        self.largest_read = max(self.largest_read, array.size)
        return array


def rows_of(count: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)


def place(*weights: tuple[Weight, Scheme], start: int = 5) -> list[Placement]:
    """Odd offsets: the stream aligns nothing."""
    placements = []
    for weight, scheme in weights:
        scales = scales_bytes(weight.shape, scheme)
        end = start + payload_bytes(weight.shape, scheme)
        placements.append(Placement(weight, scheme, start, end + 3 if scales else None))
        start = end + 3 + scales + 7
    return placements


def expected(w: NDArray[np.float32], scheme: Scheme) -> tuple[bytes, bytes]:
    if scheme.dtype == "f32":
        return w.tobytes(), b""
    quantized = quantize_rows(w, scheme)
    codes = pack_codes(quantized.codes, 4) if scheme.dtype == "int4" else quantized.codes
    return codes.tobytes(), b"" if scheme.block_size is None else quantized.scales.tobytes()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "weights.bin", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_that_has_its_codes_is_copied_with_their_scales(fd: int, bits: int) -> None:
    table = ReadyCodes((3000, 256), bits, 256)  # several chunks
    scheme = Scheme({2: "int2", 4: "int4", 8: "int8"}[bits])  # type: ignore[arg-type]
    joined = Weight("w", (2500, 256), (WeightPart("t", rows=(0, 500)), WeightPart("t", rows=(1000, 3000))))
    (scales,) = stream_files([FileWeights(fd, place((joined, scheme)))], table, packed=table)
    rows = np.r_[0:500, 1000:3000]
    payload = np.frombuffer(os.pread(fd, payload_bytes(joined.shape, scheme), 5), np.uint8)
    np.testing.assert_array_equal(unpack_codes(payload, bits).reshape(2500, 256), table.codes[rows])
    np.testing.assert_array_equal(scales["w"], table.scales[rows, 0])


def test_columns_of_a_weight_that_has_its_codes_are_copied(fd: int) -> None:
    table = ReadyCodes((50, 64), 4, 64)
    right = Weight("right", (50, 32), (WeightPart("t", columns=(32, 64)),))
    stream_files([FileWeights(fd, place((right, Scheme("int4"))))], table, packed=table)
    payload = np.frombuffer(os.pread(fd, 50 * 16, 5), np.uint8)
    np.testing.assert_array_equal(unpack_codes(payload, 4).reshape(50, 32), table.codes[:, 32:])


def test_a_weight_that_has_codes_of_another_type_is_quantised_from_its_numbers(fd: int) -> None:
    table = ReadyCodes((50, 64), 4, 64)
    one, two = Weight.whole("one", (50, 64)), Weight.whole("two", (50, 64))
    placements = place((one, Scheme("int8")), (two, Scheme("int4", 32)))
    (scales,) = stream_files([FileWeights(fd, placements)], table, packed=table)
    codes, _ = expected(table.values, Scheme("int8"))
    assert os.pread(fd, len(codes), placements[0].payload_offset) == codes
    np.testing.assert_array_equal(scales["one"], quantize_rows(table.values, Scheme("int8")).scales)
    codes, _ = expected(table.values, Scheme("int4", 32))
    assert os.pread(fd, len(codes), placements[1].payload_offset) == codes


def contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def check_bytes(fd: int, placement: Placement, w: NDArray[np.float32]) -> None:
    payload, scales = expected(w, placement.scheme)
    data = contents(fd)
    assert data[placement.payload_offset : placement.payload_offset + len(payload)] == payload
    if placement.scales_offset is not None:
        assert data[placement.scales_offset : placement.scales_offset + len(scales)] == scales


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 17])
def test_bytes_are_exact_on_both_sides_of_a_chunk_s_border(
    fd: int, monkeypatch: pytest.MonkeyPatch, scheme: Scheme, rows: int
) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 8 * 128 + 5)
    w = rows_of(rows, 128)
    source = Arrays(w=w)
    (placement,) = place((Weight.whole("w", w.shape), scheme))
    scales = stream_weights(fd, [placement], source)
    check_bytes(fd, placement, w)
    assert source.reads == -(-rows // 8)
    if scheme.per_channel:
        np.testing.assert_array_equal(scales["w"], quantize_rows(w, scheme).scales)
    else:
        assert scales == {}


def test_weights_do_not_touch_the_bytes_between_them(fd: int) -> None:
    w = rows_of(3, 64)
    os.pwrite(fd, b"\xaa" * 4000, 0)
    placements = place(*((Weight.whole("w", w.shape), scheme) for scheme in SCHEMES))
    stream_weights(fd, placements, Arrays(w=w))
    free = np.frombuffer(contents(fd), np.uint8).copy()
    for placement in placements:
        payload, scales = expected(w, placement.scheme)
        free[placement.payload_offset : placement.payload_offset + len(payload)] = 0xAA
        if placement.scales_offset is not None:
            free[placement.scales_offset : placement.scales_offset + len(scales)] = 0xAA
    assert (free == 0xAA).all()


def test_vectors_and_arrays_of_any_rank_are_copied_as_float32(fd: int) -> None:
    vector, kernel = rows_of(1, 33)[0], rows_of(4, 18).reshape(4, 2, 9)
    placements = place((Weight.whole("v", (33,)), Scheme("f32")), (Weight.whole("k", (4, 2, 9)), Scheme("f32")))
    stream_weights(fd, placements, Arrays(v=vector, k=kernel))
    check_bytes(fd, placements[0], vector)
    check_bytes(fd, placements[1], kernel)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parts_are_joined_along_the_rows(fd: int, monkeypatch: pytest.MonkeyPatch, scheme: Scheme) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 4 * 64)
    q, k = rows_of(10, 64, seed=1), rows_of(9, 96, seed=2)
    parts = (WeightPart("q"), WeightPart("k", rows=(2, 7), columns=(32, 96)), WeightPart("q", rows=(9, 10)))
    (placement,) = place((Weight("qk", (16, 64), parts), scheme))
    scales = stream_weights(fd, [placement], Arrays(q=q, k=k))
    joined = np.concatenate([q, k[2:7, 32:], q[9:]])
    check_bytes(fd, placement, joined)
    if scheme.per_channel:
        np.testing.assert_array_equal(scales["qk"], quantize_rows(joined, scheme).scales)


@pytest.mark.parametrize("other", [Scheme("int8"), Scheme("int4", 64), Scheme("f32")], ids=str)
def test_what_two_files_have_of_one_tensor_is_read_once(fd: int, tmp_path: Path, other: Scheme) -> None:
    w, v = rows_of(10, 64, seed=1), rows_of(3, 64, seed=2)
    source = Arrays(w=w, v=v)
    named = {name: Weight(name, w.shape, (WeightPart("w"),)) for name in ("table", "head")}
    (table,) = place((named["table"], Scheme("int8")))
    head, rest = place((named["head"], other), (Weight.whole("v", v.shape), Scheme("int8")))
    with open(tmp_path / "second.bin", "w+b") as second:
        scales = stream_files([FileWeights(fd, [table]), FileWeights(second.fileno(), [head, rest])], source)
        check_bytes(fd, table, w)
        check_bytes(second.fileno(), head, w)
        check_bytes(second.fileno(), rest, v)
    assert source.reads == 2
    assert [sorted(found) for found in scales] == [["table"], ["head", "v"] if other.per_channel else ["v"]]
    np.testing.assert_array_equal(scales[0]["table"], quantize_rows(w, Scheme("int8")).scales)


def test_bytes_do_not_depend_on_the_number_of_workers(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 1 << 10)
    w = rows_of(100, 256)
    placements = place(*((Weight.whole("w", w.shape), scheme) for scheme in SCHEMES))
    results = []
    for workers in (1, 2, 5):
        os.ftruncate(fd, 0)
        scales = stream_weights(fd, placements, Arrays(w=w), workers=workers)
        results.append((contents(fd), {name: s.tobytes() for name, s in scales.items()}))
    assert results[0] == results[1] == results[2]


def test_progress_adds_up_to_the_payload_and_comes_in_the_calling_thread(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 1 << 10)
    w = rows_of(30, 256)
    seen: list[tuple[int, int]] = []
    placements = place(*((Weight.whole("w", w.shape), scheme) for scheme in SCHEMES))
    stream_weights(fd, placements, Arrays(w=w), progress=lambda n: seen.append((n, threading.get_ident())))
    assert sum(n for n, _ in seen) == sum(payload_bytes(w.shape, scheme) for scheme in SCHEMES)
    assert {thread for _, thread in seen} == {threading.get_ident()}
    assert len(seen) > len(SCHEMES)


class Endless:
    """A table far larger than memory ought to be; each read makes its rows anew."""

    def __init__(self, rows: int, columns: int) -> None:
        self._shape = (rows, columns)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        assert rows is not None
        return np.full((rows[1] - rows[0], self._shape[1]), 0.5, np.float32)


@pytest.mark.parametrize("scheme", [Scheme("int4", 128, "absmax"), Scheme("f32")], ids=str)
def test_memory_stays_below_24_mb_for_a_table_of_120_mb(fd: int, scheme: Scheme) -> None:
    rows, columns = 3500, 8960
    tracemalloc.start()
    stream_weights(fd, place((Weight.whole("table", (rows, columns)), scheme)), Endless(rows, columns), workers=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6


def test_a_row_wider_than_a_chunk_is_read_by_itself(fd: int) -> None:
    w = rows_of(3, CHUNK_WEIGHTS + 64)
    source = Arrays(w=w)
    (placement,) = place((Weight.whole("w", w.shape), Scheme("int4", 64, "absmax")))
    stream_weights(fd, [placement], source)
    check_bytes(fd, placement, w)
    assert source.reads == 3


class Failing(Arrays):
    """Fails at two rows, at the earlier one when the later one has failed, if another thread reads that."""

    def __init__(self, failures: dict[int, BaseException], **arrays: NDArray[np.float32]) -> None:
        super().__init__(**arrays)
        self.failures = failures
        self.later_failed = threading.Event()

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        assert rows is not None
        failure = self.failures.get(rows[0])
        if failure is not None:
            if rows[0] == max(self.failures):
                self.later_failed.set()
            self.later_failed.wait(timeout=1)
            raise failure
        return super().read(name, rows, columns)


def test_the_first_error_in_file_order_is_raised_as_it_is_and_ends_the_stream(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 64)
    first = CheckpointError("first", found=1, wanted=2)
    source = Failing({3: first, 4: CheckpointError("second", found=1, wanted=2)}, w=rows_of(1000, 64))
    with pytest.raises(ToolkitError) as caught:
        stream_weights(fd, place((Weight.whole("w", (1000, 64)), Scheme("int8"))), source)
    assert caught.value is first
    assert source.reads < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("quantise")]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("stop")])
def test_an_interrupt_stops_promptly_and_leaves_no_thread(
    fd: int, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 64)
    source = Arrays(w=rows_of(1000, 64))

    def interrupt(count: int) -> None:
        raise failure

    with pytest.raises(type(failure)):
        stream_weights(fd, place((Weight.whole("w", (1000, 64)), Scheme("int8"))), source, progress=interrupt)
    assert source.reads < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("quantise")]


def test_a_weight_that_is_not_finite_is_named_with_its_row_in_the_weight(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", 128)
    w = rows_of(10, 64)
    w[6, 1] = np.nan
    weight = Weight("both", (20, 64), (WeightPart("good"), WeightPart("w")))
    with pytest.raises(CheckpointError, match="weight both, row 16: nan, not a finite number"):
        stream_weights(fd, place((weight, Scheme("int8"))), Arrays(good=rows_of(10, 64), w=w))


def test_short_writes_are_continued(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:1000], offset))
    w = rows_of(20, 512)
    (placement,) = place((Weight.whole("w", w.shape), Scheme("f32")))
    stream_weights(fd, [placement], Arrays(w=w))
    check_bytes(fd, placement, w)


def test_a_full_disk_is_an_environment_fault_that_names_the_file(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EnvironmentFault, match=r"weights\.bin, weight w: no space left on device at byte"):
        stream_weights(fd, place((Weight.whole("w", (4, 64)), Scheme("int8"))), Arrays(w=rows_of(4, 64)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((WeightPart("w"),), "10 rows, wanted 8"),
        ((WeightPart("w", rows=(4, 11)), WeightPart("w", rows=(0, 1))), "tensor w of weight x: found shape"),
        ((WeightPart("w", rows=(0, 8), columns=(0, 32)),), "tensor w of weight x: found shape"),
        ((WeightPart("w", rows=(0, 8), columns=(32, 96)),), "tensor w of weight x: found shape"),
    ],
)
def test_parts_that_do_not_make_up_the_weight_are_refused_before_anything_is_written(
    fd: int, parts: tuple[WeightPart, ...], message: str
) -> None:
    source = Arrays(w=rows_of(10, 64))
    good = (Weight("good", (10, 64), (WeightPart("w"),)), Scheme("int8"))
    with pytest.raises(CheckpointError, match=message):
        stream_weights(fd, place(good, (Weight("x", (8, 64), parts), Scheme("int8"))), source)
    assert source.reads == 0 and contents(fd) == b""


def test_a_scheme_that_does_not_fit_is_refused_before_anything_is_written(fd: int) -> None:
    source = Arrays(w=rows_of(4, 96))
    placement = Placement(Weight.whole("w", (4, 96)), Scheme("int4", 64), 0, 4096)
    with pytest.raises(RecipeError, match="a multiple of 64"):
        stream_weights(fd, [placement], source)
    assert source.reads == 0


def test_no_weights_are_no_work(fd: int) -> None:
    assert stream_weights(fd, [], Arrays()) == {}
