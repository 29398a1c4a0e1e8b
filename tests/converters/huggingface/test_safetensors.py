"""One broken file for each rule of the format, and a fuzzer for the rules nobody thought of."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Entry, entry_bytes, raw_bytes, safetensors_bytes
from hypothesis import given
from hypothesis import strategies as st

from converters.huggingface.safetensors import (
    DTYPE_BITS,
    INDEX_NAME,
    MAX_HEADER_BYTES,
    SafetensorsFile,
    open_safetensors,
)
from toolkit.base.errors import CheckpointError

REFERENCE = importlib.import_module("safetensors") if importlib.util.find_spec("safetensors") else None

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.uint8)
VALID = safetensors_bytes({"a": A, "b": B}, {"format": "pt"})


def open_bytes(directory: Path, data: bytes) -> SafetensorsFile:
    path = directory / "model.safetensors"
    path.write_bytes(data)
    return SafetensorsFile(path)


def refuse(directory: Path, data: bytes, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_bytes(directory, data)
    assert found in str(caught.value), str(caught.value)


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, VALID)
    assert file.tensors["a"].shape == (2, 3)
    assert file.tensors["a"].dtype == "F32"
    assert (file.tensors["b"].parameters, file.tensors["b"].stored_bytes) == (4, 4)
    data = np.empty(6, np.float32)
    file.read_into(data, file.tensors["a"].begin)
    assert np.array_equal(data, A.reshape(-1))


SIZE = 5000


@pytest.mark.parametrize(("start", "count"), [(0, SIZE), (0, 1), (1, SIZE - 1), (300, 4096), (4090, 8), (SIZE - 1, 1)])
def test_bytes_are_the_same_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, count: int
) -> None:
    monkeypatch.setattr("converters.huggingface.safetensors._LEAST_DIRECT_BYTES", 1)
    stored = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    file = open_bytes(tmp_path, safetensors_bytes({"a": stored}))
    file.bypass_page_cache()
    data = np.empty(count, np.uint8)
    file.read_into(data, file.tensors["a"].begin + start)
    assert np.array_equal(data, stored[start : start + count])


def test_a_file_that_shrinks_is_an_error_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.huggingface.safetensors._LEAST_DIRECT_BYTES", 1)
    file = open_bytes(tmp_path, safetensors_bytes({"a": np.zeros(SIZE, np.uint8)}))
    file.bypass_page_cache()
    os.truncate(file.path, 4500)
    with pytest.raises(CheckpointError, match="the file ends at byte 4500 now"):
        file.read_into(np.empty(SIZE, np.uint8), file.tensors["a"].begin)


@pytest.mark.parametrize("refusing", ["open", "preadv"])
def test_a_file_system_without_direct_reads_reads_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    file = open_bytes(tmp_path, VALID)
    plain, calls = getattr(os, refusing), 0

    def refuse_once(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(*arguments)

    monkeypatch.setattr("converters.huggingface.safetensors._LEAST_DIRECT_BYTES", 1)
    monkeypatch.setattr(os, refusing, refuse_once)
    file.bypass_page_cache()
    data = np.empty(6, np.float32)
    file.read_into(data, file.tensors["a"].begin)
    assert calls and np.array_equal(data, A.reshape(-1))


@pytest.mark.parametrize(("pages", "bypassed"), [(1, True), (1 << 20, False)])
def test_checkpoints_larger_than_half_of_memory_bypass_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, bypassed: bool
) -> None:
    (tmp_path / "model.safetensors").write_bytes(VALID)
    asked: list[SafetensorsFile] = []
    monkeypatch.setattr(SafetensorsFile, "bypass_page_cache", lambda file: asked.append(file))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 16, "SC_PHYS_PAGES": pages}.__getitem__)
    assert (list(open_safetensors(tmp_path)) == asked) == bypassed


@pytest.mark.parametrize("padding", range(9))
def test_a_header_may_end_in_spaces(tmp_path: Path, padding: int) -> None:
    header = json.dumps({"a": vars(Entry("U8", [1], [0, 1]))}) + " " * padding
    file = open_bytes(tmp_path, raw_bytes(header, b"x"))
    assert file.tensors["a"].begin == 8 + len(header)


def test_tensors_may_be_empty_scalar_or_in_any_order(tmp_path: Path) -> None:
    entries = {
        "late": Entry("F16", [2], [4, 8]),
        "empty": Entry("BF16", [0, 5], [4, 4]),
        "scalar": Entry("F32", [], [0, 4]),
        "end": Entry("F32", [3, 0], [8, 8]),
    }
    file = open_bytes(tmp_path, entry_bytes(entries, bytes(8)))
    assert [file.tensors[name].parameters for name in entries] == [2, 0, 1, 0]


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert not open_bytes(tmp_path, raw_bytes("{}")).tensors


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_of_the_format_is_known(tmp_path: Path, dtype: str) -> None:
    size = DTYPE_BITS[dtype]
    file = open_bytes(tmp_path, entry_bytes({"a": Entry(dtype, [8], [0, size])}, bytes(size)))
    assert file.tensors["a"].parameters == 8


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_its_header_length_is_refused(tmp_path: Path, size: int) -> None:
    refuse(tmp_path, VALID[:size], f"found {size} bytes, wanted at least 8")


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, struct.pack("<Q", 100) + b"{}", "found a header of 100 bytes, wanted at most 2")
    refuse(tmp_path, struct.pack("<Q", 2**64 - 1) + b"{}", "wanted at most 2")


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES * 2)
    with pytest.raises(CheckpointError, match=f"wanted at most {MAX_HEADER_BYTES}"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b" {}", b"\n{}", b"{}\n", b"{}\0", b"null", b"\xef\xbb\xbf{}", b"{", b'"{}"'],
    ids=repr,
)
def test_a_header_runs_from_brace_to_brace(tmp_path: Path, header: bytes) -> None:
    refuse(tmp_path, raw_bytes(header), "header: found")


def test_a_header_is_strict_json(tmp_path: Path) -> None:
    refuse(tmp_path, raw_bytes(b'{"\xff": 1}'), "not UTF-8")
    refuse(tmp_path, raw_bytes('{"a": 1,}'), "not JSON")
    refuse(tmp_path, raw_bytes('{"a":' * 100_000 + "1" + "}" * 100_000), "nesting too deep")
    refuse(tmp_path, raw_bytes('{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'), "not UTF-8")


def test_a_name_must_not_appear_twice(tmp_path: Path) -> None:
    entry = json.dumps(vars(Entry("U8", [1], [0, 1])))
    refuse(tmp_path, raw_bytes(f'{{"a": {entry}, "a": {entry}}}', b"x"), "the key a appears twice")
    refuse(
        tmp_path,
        raw_bytes('{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', b"x"),
        "twice",
    )


@pytest.mark.parametrize("metadata", [[], "pt", 1, {"format": 1}, {"format": None}, {"a": {"b": "c"}}], ids=repr)
def test_metadata_maps_strings_to_strings(tmp_path: Path, metadata: object) -> None:
    refuse(tmp_path, safetensors_bytes({"a": A}, metadata), "__metadata__")


def test_metadata_may_be_null_as_mlx_writes_it(tmp_path: Path) -> None:
    """The format's own library reads it as no metadata."""
    header = {"__metadata__": None, "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_bytes(json.dumps(header), b"\x01\x02"))
    assert list(SafetensorsFile(path).tensors) == ["a"]


@pytest.mark.parametrize("entry", [None, [], "F32", 1, {}, {"dtype": "U8", "shape": [1]}], ids=repr)
def test_an_entry_is_an_object_with_three_keys(tmp_path: Path, entry: object) -> None:
    refuse(tmp_path, raw_bytes(json.dumps({"a": entry}), b"x"), "header a")


def test_an_entry_has_no_other_key(tmp_path: Path) -> None:
    entry = {**vars(Entry("U8", [1], [0, 1])), "strides": [1]}
    refuse(tmp_path, raw_bytes(json.dumps({"a": entry}), b"x"), "unknown key strides")


@pytest.mark.parametrize("dtype", ["F128", "bf16", "", None, 32, ["F32"]], ids=repr)
def test_an_unknown_type_is_refused(tmp_path: Path, dtype: object) -> None:
    refuse(tmp_path, entry_bytes({"a": Entry(dtype, [1], [0, 4])}, bytes(4)), "a dtype: found")


@pytest.mark.parametrize(
    "shape",
    [None, 4, "4", [-4], [True, 4], [4.0], ["4"], [None], [[4]], {"0": 4}, [2**64], [-1, -4], [10**30]],
    ids=repr,
)
def test_a_shape_is_a_list_of_natural_numbers(tmp_path: Path, shape: object) -> None:
    data = entry_bytes({"a": Entry("U8", shape, [0, 4])}, bytes(4))
    refuse(tmp_path, data, "an integer of 31 digits" if shape == [10**30] else "a shape")


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [2**63, 4], [2**40] * 500, [2**32, 2**32, 0]], ids=lambda s: str(s)[:40]
)
def test_a_shape_that_overflows_is_refused(tmp_path: Path, shape: list[int]) -> None:
    refuse(tmp_path, entry_bytes({"a": Entry("U8", shape, [0, 0])}, b""), "wanted fewer than 2**64 bits")


def test_small_types_fill_whole_bytes(tmp_path: Path) -> None:
    refuse(tmp_path, entry_bytes({"a": Entry("F4", [3], [0, 2])}, bytes(2)), "wanted whole bytes of F4")


@pytest.mark.parametrize(
    "offsets",
    [
        None,
        4,
        [],
        [4],
        [0, 4, 4],
        [0, 3],
        [0, 5],
        [4, 0],
        [-4, 0],
        [0, 4.0],
        [False, 4],
        ["0", "4"],
        [2**64, 2**64 + 4],
    ],
    ids=repr,
)
def test_offsets_span_exactly_shape_times_type(tmp_path: Path, offsets: object) -> None:
    refuse(tmp_path, entry_bytes({"a": Entry("U8", [4], offsets)}, bytes(5)), "a data_offsets")


def test_bytes_between_tensors_are_refused(tmp_path: Path) -> None:
    entries = {"a": Entry("U8", [2], [0, 2]), "b": Entry("U8", [2], [3, 5])}
    refuse(tmp_path, entry_bytes(entries, bytes(5)), "a gap before b")
    refuse(tmp_path, entry_bytes({"a": Entry("U8", [2], [1, 3])}, bytes(3)), "a gap before a")


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entries = {"a": Entry("U8", [4], [0, 4]), "b": Entry("U8", [2], [2, 4])}
    refuse(tmp_path, entry_bytes(entries, bytes(4)), "an overlap with b")
    twice = {"a": Entry("U8", [4], [0, 4]), "b": Entry("U8", [4], [0, 4])}
    refuse(tmp_path, entry_bytes(twice, bytes(4)), "an overlap with b")


def test_an_empty_tensor_inside_another_is_refused(tmp_path: Path) -> None:
    entries = {"a": Entry("U8", [4], [0, 4]), "b": Entry("U8", [0], [2, 2])}
    refuse(tmp_path, entry_bytes(entries, bytes(4)), "an overlap with b")


@pytest.mark.parametrize("size", [-1, 1, 1000])
def test_the_tensors_end_where_the_file_ends(tmp_path: Path, size: int) -> None:
    data = VALID[:size] if size < 0 else VALID + bytes(size)
    refuse(tmp_path, data, f"found {len(data)} bytes, wanted {len(VALID)}, as its header says")


def test_bytes_after_no_tensors_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, raw_bytes("{}", b"x"), "found 11 bytes, wanted 10")


def test_a_file_that_shrinks_while_in_use_is_an_error(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, VALID)
    with open(file.path, "r+b") as handle:
        handle.truncate(len(VALID) - 3)
    with pytest.raises(CheckpointError, match=r"it has changed since it was opened"):
        file.read_into(np.empty(4, np.uint8), file.tensors["b"].begin)


def test_a_closed_file_is_an_error(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, VALID)
    file.close()
    file.close()
    with pytest.raises(CheckpointError, match=r"the file is closed"):
        file.read_into(np.empty(4, np.uint8), 0)


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_checkpoint_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    try_to_open(tmp_path_factory, data)
    try_to_open(tmp_path_factory, raw_bytes(data))


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_mutated_file_is_refused_or_still_valid(
    tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(VALID)
    for _ in range(changes):
        place = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randrange(1, 4)]
        elif kind == 2:
            data[place:place] = rng.choice([b"0", b"-", b"[", b"}", b'"', b"1e9", b"null", b" ", b"\\u0061"])
        else:
            # A digit for a digit keeps the JSON whole, and so reaches the rules behind it.
            digits = [i for i, byte in enumerate(data[8:-28], 8) if chr(byte).isdigit()]
            if digits:
                data[rng.choice(digits)] = ord(str(rng.randrange(10)))
    if rng.random() < 0.5 and len(data) > 36:
        # Without a matching length most changes would only meet the first check.
        data[:8] = struct.pack("<Q", max(0, len(data) - 36))
    try_to_open(tmp_path_factory, bytes(data))


def try_to_open(factory: pytest.TempPathFactory, data: bytes) -> None:
    try:
        file = open_bytes(factory.getbasetemp(), data)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert 8 + sum(info.stored_bytes for info in file.tensors.values()) <= len(data)
    if REFERENCE is not None:
        REFERENCE.deserialize(data)  # what we accept, the format's own library accepts
    for info in file.tensors.values():
        file.read_into(np.empty(info.stored_bytes, np.uint8), info.begin)
    file.close()


# --- the index -------------------------------------------------------------------------------------------------------

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_shards(directory: Path, index: object) -> Path:
    (directory / ONE).write_bytes(safetensors_bytes({"a": A}))
    (directory / TWO).write_bytes(safetensors_bytes({"b": B}))
    (directory / INDEX_NAME).write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("total", [28, 28.0, None])
def test_shards_are_read_through_their_index(tmp_path: Path, total: object) -> None:
    metadata = {"metadata": {"total_size": total, "total_parameters": 10}} if total else {}
    files = open_safetensors(write_shards(tmp_path, {**metadata, "weight_map": {"a": ONE, "b": TWO}}))
    assert [list(file.tensors) for file in files] == [["a"], ["b"]]


def test_a_shard_may_be_a_link_as_in_the_hub_cache(tmp_path: Path) -> None:
    directory = tmp_path / "snapshots" / "main"
    directory.mkdir(parents=True)
    write_shards(directory, {"weight_map": {"a": ONE, "b": TWO}})
    (tmp_path / "blobs").mkdir()
    (directory / ONE).rename(tmp_path / "blobs" / "0123")
    (directory / ONE).symlink_to("../../blobs/0123")
    assert len(open_safetensors(directory)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../" + ONE,
        "/etc/passwd",
        "sub/" + ONE,
        "sub\\" + ONE,
        "..",
        ".",
        "",
        ".hidden.safetensors",
        "a\0.safetensors",
        "model.bin",
    ],
    ids=repr,
)
def test_a_shard_is_a_plain_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the plain name of a .safetensors file"):
        open_safetensors(write_shards(tmp_path, {"weight_map": {"a": ONE, "b": name}}))


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ([], "found an array, wanted an object"),
        ({}, "weight_map: missing"),
        ({"weight_map": {}}, "wanted at least one tensor"),
        ({"weight_map": {"a": 1, "b": TWO}}, "weight_map a: found 1, wanted a string"),
        ({"weight_map": {"a": ONE, "b": "model-3.safetensors"}}, "model-3.safetensors: no such file"),
        ({"weight_map": {"a": ONE, "b": ONE}}, "found b in no shard, wanted it in " + ONE),
        ({"weight_map": {"a": TWO, "b": TWO}}, "found a in no shard, wanted it in " + TWO),
        ({"weight_map": {"a": TWO, "b": ONE}}, f"found a in {ONE}, wanted it in {TWO}"),
        ({"weight_map": {"a": ONE, "b": TWO, "c": TWO}}, "found c in no shard"),
        ({"weight_map": {"a": ONE, "b": TWO}, "metadata": []}, "metadata: found an array"),
        ({"weight_map": {"a": ONE, "b": TWO}, "metadata": {"total_size": 28.5}}, "wanted a whole number"),
        ({"weight_map": {"a": ONE, "b": TWO}, "metadata": {"total_size": True}}, "wanted a number"),
        ({"weight_map": {"a": ONE, "b": TWO}, "shards": 2}, "unknown key shards"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_index_and_its_shards_agree(tmp_path: Path, index: object, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(write_shards(tmp_path, index))
    assert found in str(caught.value)


def test_a_stale_total_size_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = {"weight_map": {"a": ONE, "b": TWO}, "metadata": {"total_size": 27}}
    assert len(open_safetensors(write_shards(tmp_path, index))) == 2
    assert "total_size is 27, but the tensors have 28 bytes" in caplog.text


def test_a_tensor_in_a_shard_but_not_in_the_index_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"weight_map": {"a": ONE, "b": TWO}})
    (tmp_path / TWO).write_bytes(safetensors_bytes({"b": B, "c": B}))
    with pytest.raises(CheckpointError, match=r"found c in model-00002-of-00002.safetensors, wanted it in no shard"):
        open_safetensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"weight_map": {"a": ONE, "b": TWO}})
    (tmp_path / TWO).write_bytes(safetensors_bytes({"b": B, "a": A}))
    with pytest.raises(CheckpointError, match=r"wanted each tensor once"):
        open_safetensors(tmp_path)


def test_one_file_and_an_index_together_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"weight_map": {"a": ONE, "b": TWO}})
    (tmp_path / "model.safetensors").write_bytes(VALID)
    with pytest.raises(CheckpointError, match=r"remove the stale one"):
        open_safetensors(tmp_path)


def test_a_directory_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no safetensors weights, wanted model.safetensors or"):
        open_safetensors(tmp_path)


def test_the_safetensors_package_reads_the_same(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.standard_normal((i, 3, 2)).astype(np.float32) for i in range(5)}
    package.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.tensors.keys() == tensors.keys()
    for name, info in file.tensors.items():
        data = np.empty(info.shape, np.float32)
        file.read_into(data, info.begin)
        assert np.array_equal(data, tensors[name])


def test_the_safetensors_package_accepts_our_valid_files(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    (tmp_path / "model.safetensors").write_bytes(VALID)
    assert np.array_equal(package.load_file(tmp_path / "model.safetensors")["a"], A)
