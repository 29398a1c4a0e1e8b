"""The cards that open a page of results: for each model on each device, four figures and whether to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from toolkit.report.numbered_record import NumberedRecord, how_it_ran, joined
from toolkit.report.page import Card, CardFigure, Verdict
from toolkit.results.figures import FigureName
from toolkit.results.labels import device_name
from toolkit.results.outcomes import Outcome, outcomes, summary_text
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord, EnergySource, Flag
from toolkit.results.statistics import MIN_VALUES, summary

MEANINGS: Mapping[Flag, str] = {
    "throttled": "the device slowed down to stay cool",
    "drifted": "figures rose or fell steadily over the iterations",
    "gate_timeout": "the device did not cool down in time before an iteration",
    "charging": "the battery was charging",
    "low_battery": "the battery was low, which slows many devices",
    "power_save": "the device saved power, which slows it",
    "screen_on": "the screen was on",
    "interrupted": "the run was interrupted",
    "reconnected": "the connection was lost, and an iteration began again",
    "sampler_failed": "memory and temperature were not sampled to the end",
    "weights_in_memory": "packed weights could not be kept in a file, so each start packed them again, in memory",
    "energy_disagrees": "energy differs from what the battery counted, so one of the two is in another unit",
}
ENERGY_SOURCES: Mapping[EnergySource, str] = {
    "odpm": "the power rails of the chip, by their meters",
    "power_stats_hal": "the power rails of the chip, by the power stats HAL",
    "battery_power": "the battery's current and voltage: the whole device",
    "battery_charge": "the battery's counter of charge: the whole device",
}
_SPOILING: tuple[Flag, ...] = ("throttled", "drifted", "interrupted", "power_save", "energy_disagrees")
"""With these flags, figures are not those of the model on the device, but of its state."""
_VARIES = 0.1
"""A standard deviation above this part of the median is a reason for care."""
_FIRST: FigureName = "time_to_first_token_s"
_DECODE: FigureName = "decode_tokens_per_s"
_PREFILL: FigureName = "prefill_tokens_per_s"
_JOULES: FigureName = "decode_joules_per_token"
_NAMES = {_FIRST: "time to first token", _DECODE: "decode rate", _PREFILL: "prefill rate"}
_VERDICTS: Mapping[Literal["good", "care", "bad"], str] = {
    "good": "Can be trusted",
    "care": "Trust with care",
    "bad": "Do not quote",
}


def cards(runs: Sequence[NumberedRecord]) -> tuple[Card, ...]:
    """A card for each model on each device, if a run of it answered prompts, in the order of first appearance.

    It shows one run: the one with the fewest flags; of several such runs, a warm one if there is one; of these, the
    last.
    """
    found: dict[tuple[str, ...], list[NumberedRecord]] = {}
    for run in runs:
        if {_FIRST, _DECODE} & set(run.record.tests.values()):
            model = run.record.model
            key = (model.name, model.size or "", model.quantization or "", model.sha256, device_name(run.record))
            found.setdefault(key, []).append(run)
    names = Counter(_card_name(same[0].record) for same in found.values())
    return tuple(
        _card(number, same, has_hash=names[_card_name(same[0].record)] > 1)
        for number, same in enumerate(found.values(), 1)
    )


def _card_name(record: BenchRecord) -> tuple[str, str]:
    """The title and the subtitle of a record's card; models that differ in their hash alone have the same."""
    model = record.model
    return joined(model.name, model.size, model.quantization), f"on {device_name(record)}"


def _card(number: int, runs: Sequence[NumberedRecord], *, has_hash: bool) -> Card:
    """A card of one model on one device; `has_hash`: name the model's hash too, because another has the same name."""
    shown = min(reversed(runs), key=lambda run: (len(run.record.flags), run.record.start != "warm"))
    record = shown.record
    tests = {outcome.figure: outcome for outcome in outcomes([record]) if outcome.found is not None}
    others = [run for run in runs if run is not shown]
    title, subtitle = _card_name(record)
    return Card(
        key=f"card-{number}",
        title=f"{title} ({record.model.sha256[:12]})" if has_hash else title,
        subtitle=subtitle,
        figures=(
            _measured(_FIRST, tests, _prompt_text(tests.get(_FIRST))),
            _measured(_DECODE, tests, f"prefill {tests[_PREFILL].text}" if _PREFILL in tests else ""),
            _memory(record),
            _energy(record),
        ),
        verdict=_verdict(record, tests),
        remarks=(_measured_on(shown), *_others_text(others)),
    )


def _measured(figure: FigureName, tests: Mapping[str, Outcome], detail: str) -> CardFigure:
    found = tests.get(figure)
    return _unknown(_NAMES[figure]) if found is None else CardFigure(_NAMES[figure], found.text, detail)


def _unknown(name: str, why: str = "") -> CardFigure:
    return CardFigure(name, "not measured", why, known=False)


def _prompt_text(outcome: Outcome | None) -> str:
    tokens = "" if outcome is None else outcome.test.removeprefix("ttft")
    return f"after a prompt of {int(tokens):,} tokens" if tokens.isdecimal() else ""


def _memory(record: BenchRecord) -> CardFigure:
    """The most memory that the process used, including swapped pages, which would be resident if there were room."""
    peak = record.memory.peak or {}
    if "rss_and_swap_bytes" in peak:
        return CardFigure("memory", quantity("bytes", peak["rss_and_swap_bytes"]), "peak, resident and swapped")
    values = [item.figures["peak_memory_bytes"] for item in record.iterations if "peak_memory_bytes" in item.figures]
    if values:
        return CardFigure("memory", quantity("bytes", summary(values).median), "peak, as the runner says")
    return _unknown("memory")


def _energy(record: BenchRecord) -> CardFigure:
    energy, name = record.energy, "energy"
    values = [item.figures[_JOULES] for item in record.iterations if _JOULES in item.figures]
    if values:
        text = summary_text(_JOULES, summary(values))
        return CardFigure(name, text, ENERGY_SOURCES.get(energy.source, "") if energy is not None else "")
    traced = None if record.trace is None else record.trace.energy
    if traced is not None and _JOULES in traced.figures:
        return CardFigure(name, quantity(_JOULES, traced.figures[_JOULES]), "of one traced run, by the power rails")
    return _unknown(name, (energy.unavailable or "") if energy is not None else "")


def _measured_on(run: NumberedRecord) -> str:
    """What the figures were measured on: the machine, the runner and its settings, when, and how often."""
    record, device = run.record, run.record.device
    system = f"Android {device.os_version}" if device.kind == "adb" and device.os_version else device.os_version
    memory = None if device.memory_bytes is None else f"{quantity('bytes', device.memory_bytes)} of memory"
    machine = ", ".join(text for text in (device.soc, f"{device.cpus} CPUs", memory, system) if text)
    times = "1 iteration" if len(record.iterations) == 1 else f"{len(record.iterations)} iterations"
    return f"Measured on {machine}; {how_it_ran(record)}, {times}, {record.started_utc[:10]} (run #{run.number})."


def _others_text(others: Sequence[NumberedRecord]) -> Iterator[str]:
    if others:
        texts = (", ".join([f"#{run.number} {run.record.start}", *run.record.flags]) for run in others)
        yield f"Other runs of it: {'; '.join(texts).replace('_', ' ')}."


def _verdict(record: BenchRecord, tests: Mapping[str, Outcome]) -> Verdict:
    """Whether to trust a run: its flags, where it ran, how often, and how much its figures vary."""
    spoiling = [MEANINGS[flag] for flag in record.flags if flag in _SPOILING]
    if record.device.emulated:
        spoiling.insert(0, "the device is emulated, so speeds are those of the computer that ran it")
    careful = [MEANINGS[flag] for flag in record.flags if flag not in _SPOILING]
    careful += _doubts(tests)
    part = record.delegation if record.backend != "cpu" else None
    if part is not None and part.delegated_nodes != part.nodes:
        careful.append(f"{part.text} to the {record.backend.upper()}; the rest ran on the CPU")
    level: Literal["good", "care", "bad"] = "bad" if spoiling else "care" if careful else "good"
    return Verdict(level, _VERDICTS[level], tuple(_sentence(reason) for reason in (*spoiling, *careful)))


def _doubts(tests: Mapping[str, Outcome]) -> Iterator[str]:
    counts = {len(outcome.values) for figure, outcome in tests.items() if figure in _NAMES}
    if counts and min(counts) < MIN_VALUES:
        times = "1 iteration is" if min(counts) == 1 else f"{min(counts)} iterations are"
        yield f"{times} too few for an interval; {MIN_VALUES} are enough"
    for figure, name in _NAMES.items():
        if figure in tests:
            found = tests[figure].found
            if found is not None and found.n > 1 and found.sd > _VARIES * abs(found.median):
                share = f"{found.sd / abs(found.median):.0%}" if found.median else quantity(figure, found.sd)
                yield f"the {name} varies by {share} (standard deviation)"
            yield from (f"{name}: {remark}" for remark in tests[figure].remarks)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
