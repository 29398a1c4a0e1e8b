"""What sets the records of bench_gate apart."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_gate import conditions


def test_prompts_of_another_tokenizer_are_another_condition_whatever_its_file_is_called(tmp_path: Path) -> None:
    found = [conditions("prompts", 64, None)]
    for name in ("a", "b"):
        path = tmp_path / name / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(name)
        found.append(conditions("prompts", 64, path))
    assert len({item["tokenizer"] for item in found}) == 3


def test_predictions_are_set_apart_by_their_number() -> None:
    assert conditions("weights", 64, None) == {"tokens": "64"}
