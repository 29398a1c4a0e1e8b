"""Budgets for a mix of types, as `convert` takes them: wrong ones are errors before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemma_edge
from converters.calibration.mix import MixBudget
from gemma_edge.api.convert import mix_budget
from toolkit.base.errors import UsageError


def test_a_budget_is_bytes_or_nats() -> None:
    assert mix_budget("1.2GB", None) == MixBudget(1.2e9, "bytes")
    assert mix_budget("900MiB", None) == MixBudget(900 * 2**20, "bytes")
    assert mix_budget(None, 0.01) == MixBudget(0.01, "nats")
    assert mix_budget(None, None) is None


@pytest.mark.parametrize(
    ("bytes_per_token", "kl", "words"),
    [
        ("3B", None, "bytes per token: found 3B, wanted such as 1.2GB"),
        ("much", None, "found much"),
        (None, 0.0, "kl: found 0, wanted a number of nats above 0"),
        (None, float("nan"), "kl: found nan"),
        ("1GB", 0.1, "found both bytes_per_token and kl, wanted one of them"),
    ],
)
def test_wrong_budgets_are_refused_at_once(
    tmp_path: Path, bytes_per_token: str | None, kl: float | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        gemma_edge.convert(tmp_path / "none", tmp_path / "b", bytes_per_token=bytes_per_token, kl=kl)
