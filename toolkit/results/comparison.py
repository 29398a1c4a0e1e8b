"""Compares two sets of benchmark records: matches their tests, and decides which differences are significant."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.base.errors import UsageError
from toolkit.base.printable import printable
from toolkit.results.figures import is_more_better
from toolkit.results.labels import device_name, notes, threads_text
from toolkit.results.record import BenchRecord
from toolkit.results.statistics import Comparison, compare

Across = Literal["device", "model"]
ACROSS: tuple[Across, ...] = get_args(Across)

TestVerdict = Literal["faster", "slower", "less", "more", "no difference shown", "too few values", "base not above 0"]

_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ComparedTest:
    """One test of one configuration in both sets."""

    configuration: str
    test: str
    figure: str
    found: Comparison
    differences: tuple[str, ...]
    """Other differences between the sides that may explain the result: builds, programs, settings."""
    notes: tuple[str, ...]

    @property
    def verdict(self) -> TestVerdict:
        """`faster` or `slower` for rates and times, `less` or `more` for bytes and counts."""
        found = self.found.verdict
        if found != "higher" and found != "lower":
            return found
        if is_more_better(self.figure) or self.figure.endswith("_s"):
            return "faster" if (found == "higher") == is_more_better(self.figure) else "slower"
        return "more" if found == "higher" else "less"

    @property
    def worsening(self) -> float:
        """How much worse the median is, as a fraction of the base; negative if it is better, NaN without a ratio."""
        change = math.nan if self.found.ratio is None else self.found.ratio - 1
        return -change if is_more_better(self.figure) else change

    @property
    def is_judged(self) -> bool:
        """Whether there are enough values, and a ratio unless both medians are equal."""
        if self.verdict == "base not above 0":
            return self.found.base.median == self.found.new.median
        return self.verdict != "too few values"


@dataclass(frozen=True, slots=True)
class ResultsComparison:
    """The tests that have values in both sets, and what only one of them has."""

    tests: tuple[ComparedTest, ...]
    only_in_base: tuple[str, ...]
    """Configurations, and as `TEST of CONFIGURATION` the tests of shared ones that have values only here."""
    only_in_new: tuple[str, ...]

    def regressions(self, limit: float) -> tuple[ComparedTest, ...]:
        """Tests that are significantly worse, with a median worse by more than `limit`, a fraction of the base."""
        worse = ("slower", "more")
        return tuple(item for item in self.tests if item.verdict in worse and item.worsening > limit)


def compare_results(
    base: Sequence[BenchRecord], new: Sequence[BenchRecord], *, across: Collection[Across] = ()
) -> ResultsComparison:
    """Compare the tests of configurations with equal device, model, runner, backend, threads and start.

    `across`: which of device and model may differ. UsageError, naming what differs, if nothing matches; also if one
    side has several of what may differ.
    """
    sides = [_by_key(records, across) for records in (base, new)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise _nothing_shared(base, new, across)
    tests: list[ComparedTest] = []
    for key in shared:
        ours, theirs = sides[0][key], sides[1][key]
        for records in (ours, theirs):
            _require_one(records, across)
        tests += _compared(ours, theirs)
    only = [tuple(_only_in(side, other)) for side, other in (sides, sides[::-1])]
    return ResultsComparison(tuple(tests), *only)


def _only_in(side: Mapping[_Key, Sequence[BenchRecord]], other: Mapping[_Key, Sequence[BenchRecord]]) -> Iterator[str]:
    """The configurations that the other side lacks; of those that both have, the tests whose values it lacks."""
    for key, records in side.items():
        configuration = _configuration(records[0])
        if key not in other:
            yield configuration
            continue
        theirs = _values(other[key])
        for test, figure in _values(records):
            if (test, figure) not in theirs:
                is_other_figure = any(test == name for name, _ in theirs)
                yield f"{test}{f' ({figure})' if is_other_figure else ''} of {configuration}"


def _device(record: BenchRecord) -> _Key:
    """The fields that are equal for two records of the same device; its OS build may differ."""
    device = record.device
    return (
        device.kind,
        device.emulated,
        device.manufacturer,
        device.model,
        device.soc,
        device.cpus,
        record.device_serial,
    )


def _model(record: BenchRecord) -> _Key:
    return record.model.sha256, record.model.name, record.model.size, record.model.quantization


def _identity(what: Across) -> tuple[Callable[[BenchRecord], _Key], Callable[[BenchRecord], str]]:
    """Two functions of a record, for its device or its model: one gives the identity, one the name."""
    return (_device, device_name) if what == "device" else (_model, _model_name)


def _by_key(records: Iterable[BenchRecord], across: Collection[Across]) -> dict[_Key, list[BenchRecord]]:
    found: dict[_Key, list[BenchRecord]] = {}
    for record in records:
        key: _Key = (record.runner, record.conditions, record.backend, record.threads, record.start)
        key += () if "device" in across else _device(record)
        key += () if "model" in across else _model(record)
        found.setdefault(key, []).append(record)
    return found


def _require_one(records: Sequence[BenchRecord], across: Collection[Across]) -> None:
    """UsageError if one side has several devices (or models), and these may differ between the sides."""
    for what in across:
        identity, name = _identity(what)
        if len({identity(record) for record in records}) > 1:
            some = " and ".join(sorted({name(record) for record in records}))
            raise UsageError(
                f"{what}s of {_configuration(records[0])}",
                found=f"{some} on one side",
                wanted=f"one {what} on each side",
                remedy="compare files that hold one each",
            )


def _nothing_shared(base: Sequence[BenchRecord], new: Sequence[BenchRecord], across: Collection[Across]) -> UsageError:
    """The error for two sides without a match; it names what differs: devices, models, or how they were run."""
    differing = []
    for what in ACROSS:
        identity, name = _identity(what)
        ours, theirs = ({identity(record): name(record) for record in records} for records in (base, new))
        if what not in across and not ours.keys() & theirs.keys():
            differing.append(
                (what, f"{what} {_listed(ours.values())} in the base, {_listed(theirs.values())} in the new")
            )
    if not differing:
        ways = (_listed(_way(record) for record in records) for records in (base, new))
        return UsageError(
            found=f"no configuration is in both ({' against '.join(ways)})",
            remedy="compare files that have one in common",
        )
    return UsageError(
        found="; ".join(text for _, text in differing),
        wanted="the same in both",
        remedy=f"to compare them nevertheless, pass --across {','.join(what for what, _ in differing)}",
    )


def _listed(names: Iterable[str]) -> str:
    """The distinct names, sorted; if there are more than four, the first three and a count.

    >>> _listed(["b", "a", "b"]), _listed("abcdef")
    ('a, b', 'a, b, c and 3 more')
    """
    every = sorted(set(map(printable, names)))
    return ", ".join(every) if len(every) <= 4 else f"{', '.join(every[:3])} and {len(every) - 3} more"


def _model_name(record: BenchRecord) -> str:
    parts = (record.model.name, record.model.size, record.model.quantization)
    return f"{' '.join(part for part in parts if part)} ({record.model.sha256[:12]})"


def _way(record: BenchRecord) -> str:
    parts = (
        record.model.size,
        record.runner,
        record.conditions,
        record.backend,
        threads_text(record),
        record.start,
    )
    return " ".join(part for part in parts if part)


def _configuration(record: BenchRecord) -> str:
    return f"{record.model.name} {_way(record)} on {device_name(record)}"


def _compared(base: Sequence[BenchRecord], new: Sequence[BenchRecord]) -> Iterator[ComparedTest]:
    """All tests for which both sides have a value."""
    differences = tuple(_differences(base, new))
    flags = _flags(_notes_of(base), _notes_of(new))
    theirs = _values(new)
    for (test, figure), ours in _values(base).items():
        if found := theirs.get((test, figure)):
            yield ComparedTest(_configuration(base[0]), test, figure, compare(ours, found), differences, flags)


def _values(records: Iterable[BenchRecord]) -> dict[tuple[str, str], list[tuple[float, ...]]]:
    """The values in each record of each test that has any, by the test and its figure."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for record in records:
        for test, figure in record.tests.items():
            if values := record.values(test):
                found.setdefault((test, figure), []).append(values)
    return found


def _flags(base: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """The notes of both sides; those that only one side has are marked with the side.

    >>> _flags(["emulated", "throttled"], ["emulated"])
    ('emulated', 'throttled (base)')
    """
    both = [note for note in base if note in new]
    sides = (("base", base), ("new", new))
    return (*both, *(f"{note} ({side})" for side, notes in sides for note in notes if note not in both))


def _notes_of(records: Sequence[BenchRecord]) -> list[str]:
    return list(dict.fromkeys(note for record in records for note in notes(record)))


def _differences(base: Sequence[BenchRecord], new: Sequence[BenchRecord]) -> Iterator[str]:
    """A sentence for each difference between the sides, other than the figures."""
    facts: dict[str, Callable[[BenchRecord], str]] = {
        "device": device_name,
        "model": _model_name,
        "build": lambda record: record.device.fingerprint or "unknown",
        "kernel": lambda record: record.device.kernel or "unknown",
        "tool": lambda record: record.tool,
        "commit": lambda record: record.script.commit if record.script is not None else "unknown",
        "programs": lambda record: _listed(f"{item.name} {item.sha256[:12]}" for item in record.binaries) or "unknown",
        "governor": _governors,
        "context": lambda record: "the runner's own choice" if record.context is None else str(record.context),
        "delegation": lambda record: (record.delegation and record.delegation.text) or "unknown",
        "arguments": lambda record: " ".join(record.arguments),
    }
    for name, fact in facts.items():
        ours, theirs = ({fact(record) for record in records} for records in (base, new))
        if ours != theirs:
            yield f"{name}: {_listed(ours)} against {_listed(theirs)}"


def _governors(record: BenchRecord) -> str:
    state = record.state_before
    return _listed(cpu.governor for cpu in state.cpus if cpu.governor) if state is not None else "unknown"
