"""Cards: which run they show, and whether they say to trust it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from result_records import RECORDS, record_of

from toolkit.report.numbered_record import NumberedRecord
from toolkit.report.page import Card
from toolkit.report.run_card import MEANINGS, cards
from toolkit.results.record import BenchRecord, Delegation, EnergyRecord, Flag

STEADY = [10.0, 10.1, 9.9, 10.0, 10.05]


def cards_of(*records: BenchRecord) -> tuple[Card, ...]:
    return cards([NumberedRecord(number, record) for number, record in enumerate(records, 1)])


def test_the_unflagged_warm_run_is_shown_and_the_others_are_named() -> None:
    phone, emulated = cards_of(*RECORDS)
    assert (phone.title, phone.subtitle) == ("gemma-3n-E2B-it-int4 E2B int4", "on Example EX-100")
    assert [(figure.name, figure.value) for figure in phone.figures] == [
        ("time to first token", "4.67 ± 0.06 s"),
        ("decode rate", "16.12 ± 0.12 t/s"),
        ("memory", "1.85 GB"),
        ("energy", "not measured"),
    ]
    assert phone.figures[0].detail == "after a prompt of 512 tokens"
    assert (phone.verdict.level, phone.verdict.reasons) == ("good", ())
    measured, others = phone.remarks
    assert "EX9400, 8 CPUs, 11.8 GB of memory, Android 15" in measured and "run #1" in measured
    assert others == (
        "Other runs of it: #2 warm, throttled, drifted, gate timeout; #3 cold; #8 warm, interrupted, sampler failed."
    )
    assert emulated.verdict.level == "bad" and "emulated" in emulated.verdict.reasons[0]


def test_what_answers_no_prompts_has_no_card() -> None:
    assert cards_of(RECORDS[5], RECORDS[6]) == ()


@pytest.mark.parametrize("flag", get_args(Flag))
def test_no_flagged_run_can_be_trusted(flag: Flag) -> None:
    (card,) = cards_of(record_of(STEADY, flags=(flag,)))
    assert card.verdict.level in ("care", "bad")
    assert any(MEANINGS[flag][1:] in reason for reason in card.verdict.reasons)


def test_few_iterations_spread_and_outliers_are_reasons_for_care() -> None:
    assert cards_of(record_of(STEADY))[0].verdict.level == "good"
    for values, words in (
        (STEADY[:3], "3 iterations are too few"),
        (STEADY[:1], "1 iteration is too few"),
        ([10.0, 14.0, 7.0, 10.0, 12.0], "the decode rate varies by"),
        ([5.0, *STEADY], "decode rate: slow first iteration"),
        ([0.0, 0.0, 0.0, 0.0, 5.0], "the decode rate varies by 2.24 t/s"),
    ):
        (card,) = cards_of(record_of(values))
        assert card.verdict.level == "care" and any(words.lower() in text.lower() for text in card.verdict.reasons)


def test_a_silent_fall_back_to_the_cpu_is_a_reason_for_care() -> None:
    (card,) = cards_of(record_of(STEADY, backend="gpu", delegation=Delegation(12, 34, "the log")))
    assert card.verdict.reasons == ("12 of 34 nodes delegated to the GPU; the rest ran on the CPU.",)
    (card,) = cards_of(record_of(STEADY, backend="gpu", delegation=Delegation(34, 34, "the log")))
    assert card.verdict.level == "good"


def test_energy_has_its_source_or_why_it_is_missing() -> None:
    energy = EnergyRecord("battery_power", None, None, None, {}, None)
    record = record_of(STEADY, energy=energy)
    measured = tuple(
        replace(item, figures={**item.figures, "decode_joules_per_token": 0.25}) for item in record.iterations
    )
    (card,) = cards_of(replace(record, iterations=measured))
    assert (card.figures[3].value, card.figures[3].detail) == (
        "250 ± 0 mJ/token",
        "the battery's current and voltage: the whole device",
    )
    (card,) = cards_of(replace(record, energy=replace(energy, source="none", unavailable="the battery was charging")))
    assert (card.figures[3].value, card.figures[3].detail) == ("not measured", "the battery was charging")


def test_models_that_differ_in_their_hash_alone_have_cards_of_their_own() -> None:
    record = record_of(STEADY)
    other = replace(record, model=replace(record.model, sha256="0" * 64))
    titles = [card.title for card in cards_of(record, other, record)]
    name = "gemma-3n-E2B-it-int4 E2B int4"
    assert titles == [f"{name} ({record.model.sha256[:12]})", f"{name} (000000000000)"]
