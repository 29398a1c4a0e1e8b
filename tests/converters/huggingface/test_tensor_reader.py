from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoints import as_float32, safetensors_bytes
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.huggingface import tensor_reader
from converters.huggingface.safetensors import SafetensorsFile
from converters.huggingface.tensor_reader import read_tensor
from toolkit.base.errors import CheckpointError, UsageError

DTYPES = ("uint16", "float16", "float32")


EXPONENTS = {"uint16": 0x7F80, "float16": 0x7C00, "float32": 0x7F80_0000}


def random(shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    """Any finite numbers: subnormals must survive too."""
    size = np.dtype(dtype).itemsize
    data = np.random.default_rng(len(shape)).integers(0, 256, int(np.prod(shape)) * size, dtype=np.uint8)
    if dtype in EXPONENTS:
        bits = data.view(f"u{size}")
        exponent = EXPONENTS[dtype]
        bits[bits & exponent == exponent] ^= exponent & -exponent  # the exponent's last bit
    return data.view(dtype).reshape(shape)


def write(directory: Path, **tensors: NDArray[np.generic]) -> SafetensorsFile:
    path = directory / "model.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    return SafetensorsFile(path)


def same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    """Equal numbers of the same shape, as float32."""
    return found.dtype == np.float32 and found.shape == wanted.shape and np.array_equal(found, wanted)


def ranges(size: int) -> st.SearchStrategy[tuple[int, int] | None]:
    pairs = st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda pair: (min(pair), max(pair)))
    return st.none() | pairs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_any_rectangle_is_the_same_as_numpy_cuts(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject
) -> None:
    tensor = random((13, 21), dtype)
    file = write(tmp_path_factory.getbasetemp(), front=random((3,), "uint8"), a=tensor)
    rows, columns = data.draw(ranges(13)), data.draw(ranges(21))
    piece, least = data.draw(st.sampled_from([1, 50, 1 << 18])), data.draw(st.sampled_from([1, 4096]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_reader, "_PIECE_BYTES", piece + 4)
        patch.setattr(tensor_reader, "_LEAST_STRIDED_BYTES", least)
        found = read_tensor(file, file.tensors["a"], rows, columns)
    file.close()
    assert same(found, as_float32(tensor)[slice(*(rows or (0, 13))), slice(*(columns or (0, 21)))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 0), (0, 5), (4, 1), (3, 4, 5), (2, 3, 1, 6)])
def test_every_number_of_axes_is_read_whole(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = random(shape, dtype)
    file = write(tmp_path, a=tensor)
    assert same(read_tensor(file, file.tensors["a"], None, None), as_float32(tensor))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_columns_are_the_first_and_the_last_axis(tmp_path: Path, dtype: str) -> None:
    tensor = random((4, 3, 2, 6), dtype)
    file = write(tmp_path, a=tensor)
    found = read_tensor(file, file.tensors["a"], (1, 3), (2, 5))
    assert same(found, as_float32(tensor)[1:3, :, :, 2:5])


def test_rows_of_a_vector_are_its_elements(tmp_path: Path) -> None:
    tensor = random((10,), "uint16")
    file = write(tmp_path, a=tensor)
    assert same(read_tensor(file, file.tensors["a"], (2, 5), None), as_float32(tensor)[2:5])
    with pytest.raises(UsageError, match=r"it has one axis"):
        read_tensor(file, file.tensors["a"], None, (2, 5))


def test_a_scalar_has_no_ranges(tmp_path: Path) -> None:
    file = write(tmp_path, a=np.array(3, np.float32))
    assert read_tensor(file, file.tensors["a"], None, None) == 3
    with pytest.raises(UsageError, match=r"a tensor without axes"):
        read_tensor(file, file.tensors["a"], (0, 1), None)


@pytest.mark.parametrize("part", [(-1, 2), (2, 1), (0, 14), (14, 14)])
def test_a_range_outside_the_tensor_is_refused(tmp_path: Path, part: tuple[int, int]) -> None:
    file = write(tmp_path, a=random((13, 13), "uint16"))
    with pytest.raises(UsageError, match=r"wanted one within 0..13"):
        read_tensor(file, file.tensors["a"], part, None)
    with pytest.raises(UsageError, match=r"wanted one within 0..13"):
        read_tensor(file, file.tensors["a"], None, part)


def test_integers_are_not_read_as_weights(tmp_path: Path) -> None:
    file = write(tmp_path, a=np.arange(3))
    with pytest.raises(CheckpointError, match=r"a: found I64, wanted BF16 or F16 or F32"):
        read_tensor(file, file.tensors["a"], None, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_bytes_asked_for_are_read(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random((64, 8192), dtype)
    file = write(tmp_path, a=tensor)
    counted: list[int] = []
    read_into = SafetensorsFile.read_into

    def count(self: SafetensorsFile, buffer: NDArray[np.generic], offset: int) -> None:
        counted.append(buffer.nbytes)
        read_into(self, buffer, offset)

    monkeypatch.setattr(SafetensorsFile, "read_into", count)
    for rows, columns, elements in (
        ((3, 5), None, 2 * 8192),
        (None, (0, 4096), 64 * 4096),
        ((1, 2), (4096, 8192), 4096),
    ):
        counted.clear()
        found = read_tensor(file, file.tensors["a"], rows, columns)
        assert sum(counted) == elements * tensor.itemsize
        assert same(found, as_float32(tensor)[slice(*(rows or (0, 64))), slice(*(columns or (0, 8192)))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan], ids=["nan", "inf", "-inf", "-nan"])
@pytest.mark.parametrize("least", [1, 4096], ids=["parts of rows", "whole rows"])
def test_a_number_that_is_not_finite_is_named_with_its_file_its_tensor_and_its_row(
    tmp_path: Path, dtype: str, value: float, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = random((6, 2, 20), dtype)
    bits = np.float32(value).view(np.uint32) >> 16
    tensor[4, 1, 3] = bits if dtype == "uint16" else value
    file = write(tmp_path, a=tensor)
    monkeypatch.setattr(tensor_reader, "_LEAST_STRIDED_BYTES", least)
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", 100)
    shown = "nan" if np.isnan(value) else str(value)
    words = rf"model\.safetensors, tensor a, row 4: {shown}, not a finite number"
    for rows, columns in ((None, None), ((4, 5), None), (None, (3, 4)), ((3, 6), (0, 12))):
        with pytest.raises(CheckpointError, match=words):
            read_tensor(file, file.tensors["a"], rows, columns)
    for rows, columns in (((0, 4), None), ((5, 6), None), (None, (4, 20)), (None, (0, 3))):
        read_tensor(file, file.tensors["a"], rows, columns)


def test_the_largest_numbers_of_a_type_are_finite(tmp_path: Path) -> None:
    largest = {"uint16": 0x7F7F, "float16": np.finfo(np.float16).max, "float32": np.finfo(np.float32).max}
    for dtype, value in largest.items():
        tensor = np.array([value, value], dtype)
        tensor.view(f"u{tensor.itemsize}")[1] |= 1 << (8 * tensor.itemsize - 1)
        file = write(tmp_path, a=tensor)
        assert same(read_tensor(file, file.tensors["a"], None, None), as_float32(tensor))


def test_threads_read_without_disturbing_each_other(tmp_path: Path) -> None:
    tensor = random((64, 1000), "uint16")
    file = write(tmp_path, a=tensor)
    wrong: list[int] = []

    def work(start: int) -> None:
        for row in range(start, 64, 4):
            if not same(read_tensor(file, file.tensors["a"], (row, row + 1), None), as_float32(tensor)[row : row + 1]):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
