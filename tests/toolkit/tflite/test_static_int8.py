"""Products with fixed scales of their activations, as transformers' apply_srq rounds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from bundles import ReadyCodes
from gpu_process import run_graphs
from numpy.typing import NDArray

from toolkit.base.activations import ActivationScales
from toolkit.base.elements import ElementName
from toolkit.base.errors import GraphError
from toolkit.base.weights import Weight, WeightPart
from toolkit.quant.scheme import Scheme
from toolkit.tflite import ops, static_int8
from toolkit.tflite.graph import Graph, Signature
from toolkit.tflite.judge import Header, judge, read_header
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.static_int8 import with_static_activations
from toolkit.tflite.writer import layout_tflite, write_tflite

F32 = NDArray[np.float32]
ROWS, COLUMNS = 48, 64
BITS: Mapping[ElementName, int] = {"int8": 8, "int4": 4, "int2": 2}


def rounded(x: F32, scale: float | None) -> F32:
    if scale is None:
        return x
    step = np.float32(scale)
    result: F32 = np.clip(np.rint(x / step), -128, 127).astype(np.float32) * step
    return result


def inputs(rows: int = 5) -> F32:
    return np.random.default_rng(1).standard_normal((rows, COLUMNS)).astype(np.float32)


def signature(weight: Weight) -> Signature:
    graph = Graph()
    x = graph.input("x", (5, COLUMNS))
    graph.output("y", ops.fully_connected(ops.mul(x, graph.scalar(2.0)), graph.weight(weight)))
    return Signature("run", graph)


def run(path: Path, made: Signature, dtype: ElementName, x: F32) -> F32:
    table = ReadyCodes((ROWS, COLUMNS), BITS[dtype], COLUMNS)
    names = {value.weight.name for value in made.graph.values if value.weight is not None}
    write_tflite(path, layout_tflite([made], dict.fromkeys(names, Scheme(dtype))), table, packed=table)
    assert judge(read_header(path)).keys() == {"run"}
    result: F32 = Interpreter(str(path)).get_signature_runner("run")(x=x)["y"]
    return result


def builtins(path: Path) -> list[str]:
    return [op.builtin for op in read_tflite(path).graph("run").operators]


@pytest.mark.parametrize("dtype", BITS)
def test_a_product_has_the_numbers_of_its_scales(tmp_path: Path, dtype: ElementName) -> None:
    scales = ActivationScales(0.05, {"int8": 0.3, "int4": 0.05, "int2": 0.02}[dtype])
    made = with_static_activations(signature(Weight.whole("w", (ROWS, COLUMNS))), lambda _: scales, lambda _: ROWS)
    found = run(tmp_path / "m.tflite", made, dtype, inputs())
    assert builtins(tmp_path / "m.tflite") == ["MUL", "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    table = ReadyCodes((ROWS, COLUMNS), BITS[dtype], COLUMNS).values
    exact = rounded(2 * inputs(), scales.input).astype(np.float64) @ table.T.astype(np.float64)
    assert scales.output is not None and (np.abs(exact) > 128 * scales.output).any()  # something is clipped
    np.testing.assert_allclose(found, rounded(exact.astype(np.float32), scales.output), rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", BITS)
def test_a_gpu_rounds_by_the_same_scales(tmp_path: Path, dtype: ElementName) -> None:
    scales = ActivationScales(0.05, {"int8": 0.3, "int4": 0.05, "int2": 0.02}[dtype])
    made = with_static_activations(signature(Weight.whole("w", (ROWS, COLUMNS))), lambda _: scales, lambda _: ROWS)
    wanted = run(tmp_path / "m.tflite", made, dtype, inputs())
    found = run_graphs(tmp_path / "m.tflite", {"run": {"x": inputs()}}, "gpu-f32")
    assert found.whole, found.log
    np.testing.assert_allclose(found.outputs["run"]["y"], wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("scales", [ActivationScales(0.05, None), ActivationScales(None, 0.3)])
def test_one_scale_rounds_one_side(tmp_path: Path, scales: ActivationScales) -> None:
    made = with_static_activations(signature(Weight.whole("w", (ROWS, COLUMNS))), lambda _: scales, lambda _: ROWS)
    found = run(tmp_path / "m.tflite", made, "int8", inputs())
    table = ReadyCodes((ROWS, COLUMNS), 8, COLUMNS).values
    want = rounded(rounded(2 * inputs(), scales.input) @ table.T, scales.output)
    # The other side is quantised by LiteRT itself, to one part in 127 of a row's largest number.
    np.testing.assert_allclose(found, want, atol=0.06 * np.abs(want).max())
    assert (rounded(found, scales.output) == found).all()


def test_without_scales_a_product_stays_as_it_is(tmp_path: Path) -> None:
    plain = signature(Weight.whole("w", (ROWS, COLUMNS)))
    made = with_static_activations(plain, lambda _: ActivationScales(), lambda _: ROWS)
    first, second = (run(tmp_path / name, item, "int4", inputs()) for name, item in (("a", plain), ("b", made)))
    np.testing.assert_array_equal(first, second)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_joined_weight_is_divided_where_its_parts_have_other_scales(tmp_path: Path) -> None:
    scales = {"q": ActivationScales(0.05, 0.3), "k": ActivationScales(0.05, 0.1), "v": ActivationScales(0.04, 0.3)}
    joined = Weight("qkv", (3 * ROWS, COLUMNS), tuple(WeightPart(name) for name in scales))
    made = with_static_activations(signature(joined), scales.__getitem__, lambda _: ROWS)
    found = run(tmp_path / "m.tflite", made, "int4", inputs())
    kinds = builtins(tmp_path / "m.tflite")
    assert (kinds.count("QUANTIZE"), kinds.count("FULLY_CONNECTED"), kinds.count("CONCATENATION")) == (2, 3, 1)
    table = ReadyCodes((ROWS, COLUMNS), 4, COLUMNS).values.astype(np.float64)
    wanted = [
        rounded((rounded(2 * inputs(), own.input) @ table.T).astype(np.float32), own.output) for own in scales.values()
    ]
    np.testing.assert_allclose(found, np.concatenate(wanted, axis=1), rtol=1e-6)


def test_a_joined_weight_whose_parts_agree_stays_joined(tmp_path: Path) -> None:
    joined = Weight("gu", (2 * ROWS, COLUMNS), (WeightPart("g"), WeightPart("u")))
    made = with_static_activations(signature(joined), lambda _: ActivationScales(0.05, 0.3), lambda _: ROWS)
    run(tmp_path / "m.tflite", made, "int2", inputs())
    assert builtins(tmp_path / "m.tflite").count("FULLY_CONNECTED") == 1


def test_constructors_refuse_what_has_no_scale() -> None:
    graph = Graph()
    x = graph.input("x", (5, COLUMNS))
    weight = graph.weight(Weight.whole("w", (ROWS, COLUMNS)))
    with pytest.raises(ValueError, match="positive scale"):
        static_int8.quantize(x, 0.0)
    with pytest.raises(ValueError, match="wants a value with a scale"):
        static_int8.dequantize(x)
    with pytest.raises(ValueError, match="wants scales"):
        static_int8.fully_connected(x, weight, 0.1)
    with pytest.raises(ValueError, match=r"wants weights \[out, in\]"):
        static_int8.fully_connected(static_int8.quantize(graph.input("y", (5, 3)), 0.1), weight, 0.1)


def test_the_judge_refuses_a_scale_that_no_value_can_have(tmp_path: Path) -> None:
    made = with_static_activations(
        signature(Weight.whole("w", (ROWS, COLUMNS))), lambda _: ActivationScales(0.05, 0.3125), lambda _: ROWS
    )
    run(tmp_path / "m.tflite", made, "int8", inputs())
    header = read_header(tmp_path / "m.tflite")
    right = np.float32(0.3125).tobytes()
    assert header.data.count(right) == 1
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(GraphError, match="a scale that is not finite and positive"):
            judge(Header(header.data.replace(right, np.float32(wrong).tobytes()), header.file_bytes))


def test_the_judge_refuses_a_float_weight_for_rounded_inputs() -> None:
    graph = Graph()
    rounded_x = static_int8.quantize(graph.input("x", (5, COLUMNS)), 0.1)
    made = static_int8.fully_connected(rounded_x, graph.weight(Weight.whole("w", (ROWS, COLUMNS))), 0.1)
    graph.output("y", static_int8.dequantize(made))
    layout = layout_tflite([Signature("run", graph)], {"w": Scheme("f32")})
    with pytest.raises(GraphError, match="wanted a weight in codes"):
        judge(Header(layout.header, layout.size_bytes))
