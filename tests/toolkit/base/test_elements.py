"""The table of element types, and that whatever is kept beside it by name knows every row."""

from __future__ import annotations

from typing import get_args

from ai_edge_litert import schema_py_generated

from converters.thresholds import THRESHOLDS
from converters.verify_towers import LIMITS
from toolkit.base.elements import ELEMENTS, ElementName, element_names
from toolkit.quant.uniform import CLIP_RATIOS


def test_the_names_are_those_that_types_allow() -> None:
    assert element_names() == get_args(ElementName)


def test_litert_knows_every_tensor_type() -> None:
    known = vars(schema_py_generated.TensorType)
    assert all(element.tensor_type in known for element in ELEMENTS)


def test_codes_fit_their_bits() -> None:
    for element in ELEMENTS:
        if element.codes is not None:
            low, high = element.codes
            assert -(1 << (element.bits - 1)) <= low < 0 < high < 1 << (element.bits - 1)


def test_the_gate_judges_every_element_type() -> None:
    assert tuple(THRESHOLDS) == tuple(LIMITS) == element_names()


def test_bounds_loosen_from_the_finest_to_the_coarsest() -> None:
    assert [THRESHOLDS[name].kl_divergence_mean for name in element_names()] == sorted(
        bounds.kl_divergence_mean for bounds in THRESHOLDS.values()
    )
    assert list(LIMITS.values()) == sorted(LIMITS.values())


def test_the_search_knows_every_quantised_element_type() -> None:
    assert CLIP_RATIOS.keys() == {element.name for element in ELEMENTS if element.quantised}
