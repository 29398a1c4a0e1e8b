"""The tests of benchmark records with the statistics of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.results.outliers import outliers, remarks
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord
from toolkit.results.statistics import Summary, summary


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of one record, with its statistics; `found` is None if no iteration has its figure."""

    record: BenchRecord
    test: str
    figure: str
    values: tuple[float, ...]
    found: Summary | None

    @property
    def text(self) -> str:
        """Median ± standard deviation; the value alone if there is only one, or a dash if there is none."""
        return "-" if self.found is None else summary_text(self.figure, self.found)

    @property
    def outliers(self) -> tuple[int, ...]:
        """The numbers of the iterations whose values are far from the others."""
        numbers = self.record.iterations_of(self.test)
        return tuple(numbers[place] for place in outliers(self.values))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the statistics hide: outliers, or a slow first iteration."""
        return tuple(remarks(self.figure, self.values, self.record.iterations_of(self.test)))


def summary_text(figure: str, found: Summary) -> str:
    """Median ± standard deviation with the figure's unit; the value alone if there is only one."""
    return quantity(figure, found.median, found.sd if found.n > 1 else None)


def outcomes(records: Sequence[BenchRecord]) -> tuple[Outcome, ...]:
    """Every test of all records, in order."""
    return tuple(
        Outcome(record, test, figure, values, summary(values) if values else None)
        for record in records
        for test, figure in record.tests.items()
        for values in [record.values(test)]
    )
