"""int2 in sizes, recipes, files, shards and exports: all that its row in the table of element types gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from bundles import NoWeights, OneTable

from toolkit.base.elements import coarsest
from toolkit.base.errors import RecipeError
from toolkit.base.files import write_at
from toolkit.base.weights import Weight
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, read_header, unpack_rows
from toolkit.bundle.ple_writer import pack_rows, write_ple_shards
from toolkit.litertlm.ple_graph import ROWS, layout_ple
from toolkit.quant.recipe import RecipeSet
from toolkit.quant.scheme import Scheme, check_scheme, payload_bytes, scales_bytes
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.writer import layout_tflite, write_tflite

ROWS_OF_TABLE, WIDTH = 50, 32


def numbers(width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS_OF_TABLE, width)).astype(np.float32)


def test_sizes_are_counted_in_its_bits() -> None:
    assert payload_bytes((3, 64), Scheme("int2")) == 48
    assert scales_bytes((3, 64), Scheme("int2", 32)) == 12
    assert PleLayout(300, 30, 256, 2).code_bytes == 1920
    with pytest.raises(RecipeError, match="found a width of 6, wanted a multiple of 4"):
        check_scheme("w", (3, 6), Scheme("int2"))


def test_it_is_the_coarsest() -> None:
    assert coarsest(["int4", "int2", "f32"]) == "int2"


def test_recipes_may_name_it(tmp_path: Path) -> None:
    recipe = {"format": "gemma-edge-recipe/1", "name": "two", "rules": [{"match": "*", "dtype": "int2"}]}
    path = tmp_path / "two.json"
    path.write_text(json.dumps(recipe))
    assert RecipeSet("", {}).load(path).rules[0].scheme == Scheme("int2")


def test_a_table_of_it_is_written_read_and_looked_up(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.weight(Weight.whole("t", (ROWS_OF_TABLE, WIDTH)))
    graph.output("y", ops.embedding_lookup(graph.input("ids", (3,), DType.INT32), table))
    scheme = Scheme("int2", search="absmax")
    path = tmp_path / "t.tflite"
    write_tflite(path, layout_tflite([Signature("embed", graph)], {"t": scheme}), OneTable(numbers()))
    tensor = next(t for t in read_tflite(path).graph("embed").tensors if t.name == "t")
    assert tensor.type == "INT2"
    ids = np.array([0, 7, 49], np.int32)
    found = Interpreter(str(path)).get_signature_runner("embed")(ids=ids)["y"]
    np.testing.assert_array_equal(found, dequantize_rows(quantize_rows(numbers()[ids], scheme)))


def test_rows_of_per_layer_embeddings_are_stored_in_it_and_unpacked_by_an_export(tmp_path: Path) -> None:
    layout = PleLayout(ROWS_OF_TABLE, 2, WIDTH // 2, 2)
    names = write_ple_shards(tmp_path, OneTable(numbers()), "t", layout, search="absmax")
    assert read_header(tmp_path / names[0]).layout == layout
    rows = np.frombuffer((tmp_path / names[0]).read_bytes()[HEADER_BYTES:], np.uint8).reshape(ROWS_OF_TABLE, -1)
    np.testing.assert_array_equal(rows, pack_rows(numbers(), layout, "t", "absmax"))
    laid_out = layout_ple(layout)
    path = tmp_path / "ple.tflite"
    write_tflite(path, laid_out, NoWeights())
    with open(path, "r+b") as file:
        write_at(file.fileno(), rows.data, laid_out.blobs[ROWS].offset_bytes)
    embed = Interpreter(str(path)).get_signature_runner("embed_1")
    found = embed(ids=np.array([[7]], np.int32))["per_layer_embeddings"]
    np.testing.assert_allclose(found[0], unpack_rows(rows[7:8], layout) * np.float32(4), rtol=1e-6)
