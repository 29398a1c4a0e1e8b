"""Drafts that are right as often as bench_engine_drafts tells them to be, in LiteRT-LM's engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import EXAMPLE

from benchmarks.bench_engine_drafts import Load, contenders, measure, require_expected
from benchmarks.engine_answer import Answer
from benchmarks.forced_drafter import drawn, expected, export_with_drafter, offered
from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.speculative import DraftStatistics

LOAD = Load("the old man said", decode=24, threads=2)


def test_drafts_are_right_or_wrong_as_drawn() -> None:
    answer = [number % 7 for number in range(1000)]
    right = drawn(0.7, len(answer))
    drafts = offered(answer, right, 7)
    assert [draft == token for draft, token in zip(drafts, answer, strict=True)] == right
    assert all(0 <= draft < 7 for draft in drafts)
    assert 650 < sum(right) < 750
    assert not any(drawn(0, 100))
    assert all(drawn(1, 100))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.7, 1.0])
def test_the_steps_are_those_of_drawing_each_draft(fraction: float) -> None:
    found = expected(drawn(fraction, 40_010), 3, 40_000)
    wanted = sum(fraction**number for number in range(1, 4))
    assert found.accepted / (found.steps - 1) == pytest.approx(wanted, abs=0.02)
    assert 0 <= found.steps + found.accepted - 40_000 <= 3


def test_another_text_or_other_steps_are_errors() -> None:
    plain = Answer("a b c d", 4, 4, 1.0, 1.0)
    drafts = DraftStatistics(2, 3, 3)
    require_expected("x", Answer("a b c d e", 2, 5, 1.0, 1.0), plain, drafts)
    with pytest.raises(EnvironmentFault, match="4 tokens in 4 steps, wanted 5 tokens in 2"):
        require_expected("x", Answer("a b c d", 4, 4, 1.0, 1.0), plain, drafts)
    with pytest.raises(EnvironmentFault, match="a b c x"):
        require_expected("x", Answer("a b c x e", 2, 5, 1.0, 1.0), plain, drafts)


@pytest.mark.lm
@pytest.mark.slow
def test_the_engine_accepts_the_drafts_that_are_right_and_its_text_stays_the_same(tmp_path: Path) -> None:
    request = ConvertRequest(
        EXAMPLE,
        tmp_path / "bundle",
        {"text": "int8", "ple": "int8"},
        groups=("text",),
        context=256,
        prefill_sizes=(8, 64),
        draft_tokens=3,
    )
    convert(request, gate=None)
    file, cache = tmp_path / "model.litertlm", tmp_path / "cache"
    cache.mkdir()
    made = contenders(Bundle(request.output), LOAD, [0.0, 0.7, 1.0], tmp_path)
    export_with_drafter(request.output, file, made["0% right"].drafter)
    # This compares each text with the plain one, and the engine's numbers of tokens and steps with those expected.
    runs = measure(file, made, LOAD, rounds=1, cache=cache)
    steps = {name: run.drafts.steps for name, (run,) in runs.items() if run.drafts is not None}
    assert steps["0% right"] == LOAD.decode
    assert steps["100% right"] == 1 + -(-(LOAD.decode - 1) // 4)
    assert steps["100% right"] < steps["70% right"] < steps["0% right"]
