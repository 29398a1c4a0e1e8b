"""PLE shards as written, as read back, and damaged in every way the format names."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from bundles import OneTable, ReadyCodes
from numpy.typing import NDArray

from toolkit.base.errors import BundleError, RecipeError
from toolkit.bundle.check_shard import check_shard
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, read_header, shard_name, unpack_rows
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.litertlm.ple_graph import ROWS, layout_ple
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.runtime.ple_lookup import PleTable

VOCAB, LAYERS, WIDTH = 300, 3, 32
TABLE = "embed_tokens_per_layer.weight"


class Table(OneTable):
    """One of random rows, but for one of zeros."""

    def __init__(self, width: int = WIDTH, vocab: int = VOCAB) -> None:
        super().__init__(np.random.default_rng(5).standard_normal((vocab, LAYERS * width)).astype(np.float32))
        self.values[7] = 0


def layout(bits: int) -> PleLayout:
    return PleLayout(VOCAB, LAYERS, WIDTH, bits)


def write(directory: Path, bits: int = 4, *, rows: int = 128, workers: int = 2) -> list[Path]:
    directory.mkdir(exist_ok=True)
    size = HEADER_BYTES + rows * layout(bits).row_bytes
    names = write_ple_shards(directory, Table(), TABLE, layout(bits), shard_bytes=size, workers=workers)
    return [directory / name for name in names]


def quantized(bits: int) -> NDArray[np.float32]:
    if bits == 32:
        return Table().values.reshape(VOCAB, LAYERS, WIDTH)
    scheme = Scheme("int4" if bits == 4 else "int8", WIDTH)
    return dequantize_rows(quantize_rows(Table().values, scheme)).reshape(VOCAB, LAYERS, WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("rows", [1, 127, 128, 299, 300, 301])
def test_shards_hold_every_row_in_order(tmp_path: Path, bits: int, rows: int) -> None:
    paths = write(tmp_path, bits, rows=rows)
    headers = [read_header(path) for path in paths]
    assert [h.row_count for h in headers[:-1]] == [rows] * (len(headers) - 1)
    assert sum(h.row_count for h in headers) == VOCAB
    assert sum(path.stat().st_size for path in paths) == layout(bits).total_bytes(
        HEADER_BYTES + rows * layout(bits).row_bytes
    )
    data = b"".join(path.read_bytes()[HEADER_BYTES:] for path in paths)
    raw = np.frombuffer(data, np.uint8).reshape(VOCAB, -1)
    np.testing.assert_array_equal(unpack_rows(raw, layout(bits)), quantized(bits))


def test_a_row_takes_the_bytes_that_the_document_names() -> None:
    assert PleLayout(262144, 30, 256, 4).row_bytes == 4096
    assert PleLayout(262144, 35, 256, 4).row_bytes == 4608
    assert PleLayout(262144, 30, 256, 8).row_bytes == 8192


def test_the_hash_of_a_header_is_that_of_its_rows(tmp_path: Path) -> None:
    for path in write(tmp_path):
        assert read_header(path).rows_sha256 == hashlib.sha256(path.read_bytes()[HEADER_BYTES:]).digest()


def test_the_last_bytes_of_a_row_are_the_crc_of_all_before_them(tmp_path: Path) -> None:
    row = write(tmp_path)[0].read_bytes()[HEADER_BYTES : HEADER_BYTES + layout(4).row_bytes]
    assert int.from_bytes(row[-4:], "little") == zlib.crc32(row[:-4])


def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    one, three = write(tmp_path / "one", workers=1), write(tmp_path / "three", workers=3)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in three]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_table_that_has_its_codes_is_copied_with_float32_scales(tmp_path: Path, bits: int) -> None:
    table = ReadyCodes((VOCAB, LAYERS * WIDTH), bits, WIDTH)
    exact = PleLayout(VOCAB, LAYERS, WIDTH, bits, scale_bits=32)
    size = HEADER_BYTES + 128 * exact.row_bytes
    names = write_ple_shards(tmp_path, table, TABLE, exact, shard_bytes=size, packed=table)
    paths = [tmp_path / name for name in names]
    assert [read_header(path).layout for path in paths] == [exact] * 3
    assert all(path.read_bytes()[8] == 2 for path in paths)  # the version
    assert [fault for path in paths for fault in check_shard(path)] == []
    opened = PleTable(paths)
    want = table.values.reshape(VOCAB, LAYERS, WIDTH) * np.float32(np.sqrt(WIDTH))
    np.testing.assert_array_equal(opened.lookup(list(range(VOCAB))), want)
    opened.close()


def test_a_table_that_has_other_codes_is_quantised(tmp_path: Path) -> None:
    table = ReadyCodes((VOCAB, LAYERS * WIDTH), 4, WIDTH)
    copied, searched = (write_ple_shards(tmp_path, table, TABLE, layout(8), packed=p) for p in (table, None))
    assert copied == searched
    rows = np.frombuffer((tmp_path / copied[0]).read_bytes()[HEADER_BYTES:], np.uint8).reshape(VOCAB, -1)
    want = dequantize_rows(quantize_rows(table.values, Scheme("int8", WIDTH)))
    np.testing.assert_array_equal(unpack_rows(rows, layout(8)).reshape(VOCAB, -1), want)


def test_an_odd_row_of_four_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="21 codes of 4 bits a row, wanted whole bytes"):
        write_ple_shards(tmp_path, Table(7, 10), TABLE, PleLayout(10, LAYERS, 7, 4))


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("in_ram", [False, True])
def test_look_ups_give_the_rows_of_any_ids(tmp_path: Path, bits: int, *, in_ram: bool) -> None:
    table = PleTable(write(tmp_path, bits), in_ram=in_ram)
    ids = [299, 0, 128, 127, 299, -1, 300, 2**31 - 1, 7]
    want = quantized(bits)[[299, 0, 128, 127, 299, 0, 0, 0, 7]] * np.float32(np.sqrt(WIDTH))
    np.testing.assert_array_equal(table.lookup(ids), want)
    np.testing.assert_array_equal(table.lookup(ids[:1]), want[:1])
    table.close()


def test_hot_rows_are_read_once_and_the_cache_stays_bounded(tmp_path: Path) -> None:
    row = layout(4).row_bytes
    table = PleTable(write(tmp_path), cache_bytes=2 * row)
    for token in (1, 2, 1, 3, 1, 2):
        table.lookup([token])
    statistics = table.statistics
    assert (statistics.rows, statistics.cache_hits, statistics.bytes_read) == (6, 2, 4 * row)
    table.close()


def test_without_a_cache_every_row_is_read(tmp_path: Path) -> None:
    table = PleTable(write(tmp_path), cache_bytes=0)
    for _ in range(3):
        table.lookup([5, 5, 6])
    assert table.statistics.cache_hits == 3, "the repeats"
    assert table.statistics.bytes_read == 6 * layout(4).row_bytes
    table.close()


@pytest.mark.parametrize("cache_rows", [0, 5, 1000])
def test_every_row_asked_for_was_there_or_read(tmp_path: Path, cache_rows: int) -> None:
    row = layout(4).row_bytes
    table = PleTable(write(tmp_path), cache_bytes=cache_rows * row)
    for ids in ([1, 1, 2], [2, 300, -1, 0], list(range(40)), [39]):
        table.lookup(ids)
        statistics = table.statistics
        assert statistics.rows - statistics.cache_hits == statistics.bytes_read // row
    assert table.statistics.rows == 48
    table.close()


def test_a_prompts_rows_are_asked_for_at_once_and_only_those_that_are_not_here(tmp_path: Path) -> None:
    paths = write(tmp_path)
    table = PleTable(paths)
    table.lookup([1])
    asked: list[tuple[int, int]] = []
    table._announce = asked.extend  # type: ignore[method-assign,assignment]
    table.prefetch([299, 1, 0, 130, 299, 300, -1])
    assert asked == [(2, 43), (0, 0), (1, 2)]
    assert table.statistics.rows == 1, "nothing is read yet"
    table.close()


@pytest.mark.parametrize("tokens", [range(300), range(150, 151)])
def test_rows_read_do_not_stay_mapped_nor_do_their_neighbours(tmp_path: Path, tokens: range) -> None:
    """The kernel maps what its cache has around a row: here the whole file, which was just written."""
    table = PleTable(write(tmp_path, rows=300), cache_bytes=0)
    table.lookup(tokens)
    assert mapped_kilobytes(tmp_path / shard_name(0)) == 0
    table.close()


def mapped_kilobytes(path: Path) -> int:
    """The resident part of this process's mappings of a file."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident


def test_a_flipped_bit_in_a_row_is_named_when_the_row_is_used(tmp_path: Path) -> None:
    paths = write(tmp_path)
    flip(paths[1], HEADER_BYTES + 3 * layout(4).row_bytes + 10)
    table = PleTable(paths)
    table.lookup(range(128))
    with pytest.raises(BundleError, match=r"ple_00001\.bin, row of token 131"):
        table.lookup([131])
    table.close()


@pytest.mark.parametrize("ids", [[131], range(120, 140)])
def test_a_shard_that_is_cut_while_in_use_is_named_and_does_not_end_the_process(
    tmp_path: Path, ids: Sequence[int]
) -> None:
    paths = write(tmp_path)
    table = PleTable(paths)
    os.truncate(paths[1], HEADER_BYTES)
    with pytest.raises(BundleError, match=r"ple_00001\.bin: found 4096 bytes, wanted 69632"):
        table.lookup(ids)
    table.lookup([5])
    table.close()


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def rewrite(path: Path, offset: int, format_: str, value: int) -> None:
    """Change a header field and make its hash right again."""
    data = bytearray(path.read_bytes())
    struct.pack_into(format_, data, offset, value)
    data[96:128] = hashlib.sha256(data[:96]).digest()
    path.write_bytes(data)


FAULTS: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "missing": (lambda paths: paths[1].unlink(), "ple_00001.bin: no such file"),
    "cut": (lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-1]), "copy it again"),
    "cut in the header": (lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:99]), "GEMMAPLE"),
    "empty": (lambda paths: paths[1].write_bytes(b""), "GEMMAPLE"),
    "longer": (lambda paths: paths[1].write_bytes(paths[1].read_bytes() + b"x"), "bytes"),
    "flipped header": (lambda paths: flip(paths[1], 30), "header"),
    "flipped hash of the rows": (lambda paths: flip(paths[1], 70), "header: damaged bytes"),
    "flipped padding": (lambda paths: flip(paths[1], 4000), "header"),
    "foreign": (lambda paths: flip(paths[1], 0), "GEMMAPLE"),
    "swapped": (lambda paths: paths.reverse(), "shard 0 of 3"),
    "twice": (lambda paths: paths.__setitem__(1, paths[0]), "shard 1 of 3"),
    "one left out": (lambda paths: paths.pop(), "3 shards"),
    "version": (lambda paths: rewrite(paths[0], 8, "<I", 3), "version: found 3, wanted 1 or 2"),
    "bits": (lambda paths: rewrite(paths[0], 48, "<I", 3), "bits"),
    "no layers": (lambda paths: rewrite(paths[0], 40, "<I", 0), "layers"),
    "row bytes": (lambda paths: rewrite(paths[0], 52, "<I", 1), "row_bytes"),
    "no rows": (lambda paths: rewrite(paths[0], 24, "<Q", 0), "row_count"),
    "too many rows": (lambda paths: rewrite(paths[0], 24, "<Q", 1 << 60), "row_count"),
    "huge vocabulary": (lambda paths: rewrite(paths[0], 32, "<Q", 1 << 60), "vocab_size"),
    "a token left out": (lambda paths: rewrite(paths[1], 16, "<Q", 129), "header first_token: found 129, wanted 128"),
    "none": (lambda paths: paths.clear(), "no PLE shards"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_shard_is_refused_before_use(tmp_path: Path, fault: str) -> None:
    break_it, says = FAULTS[fault]
    paths = write(tmp_path)
    break_it(paths)
    with pytest.raises(BundleError, match=says):
        PleTable(paths)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_the_graph_over_the_rows_gives_what_the_reader_gives(tmp_path: Path, bits: int) -> None:
    """What LiteRT-LM runs against what the host session reads, to the bit."""
    paths = write(tmp_path, bits)
    laid_out = layout_ple(layout(bits))
    rows = b"".join(path.read_bytes()[HEADER_BYTES:] for path in paths)
    model = tmp_path / "ple.tflite"
    model.write_bytes(laid_out.header.ljust(laid_out.blobs[ROWS].offset_bytes, b"\0") + rows)
    assert laid_out.blobs[ROWS].offset_bytes % 4096 == 0
    runner = Interpreter(str(model)).get_signature_runner("embed_1")
    table = PleTable(paths)
    for token in (0, 7, 299, -1, 300, 2**31 - 1):
        ids = np.array([token], np.int32)
        np.testing.assert_array_equal(runner(ids=ids[None])["per_layer_embeddings"][0], table.lookup([token]))
    table.close()
