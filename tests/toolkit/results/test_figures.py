"""The list of figures: names that end in their unit, each once."""

from __future__ import annotations

import re

import pytest

from toolkit.base.errors import ResultsError
from toolkit.results.figures import FIGURES, known_figure
from toolkit.results.quantities import unit

NAME = re.compile(
    r"(?=.{1,64}$)[a-z][a-z0-9_]*_(s|bytes|count|celsius|percent|hz|fraction|joules|joules_per_token|tokens_per_step|watts|nats)"
)


def test_every_name_ends_in_a_unit_of_the_format() -> None:
    assert [name for name in sorted(FIGURES) if NAME.fullmatch(name) is None] == []


def test_a_unit_is_shown_wherever_there_is_one() -> None:
    assert [name for name in FIGURES if not unit(name) and not name.endswith(("_count", "_fraction"))] == []


def test_a_mistyped_figure_is_told_its_nearest_name() -> None:
    with pytest.raises(ResultsError, match=r"runner x figure: found init_seconds, wanted init_s"):
        known_figure("init_seconds", "runner x")
