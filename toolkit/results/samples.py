"""Makes the time series of a long run shorter, so that its record fits on one line of a results file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from toolkit.results.record import BenchRecord

_TIME = "t_s"


def merge_samples(record: BenchRecord, count: int) -> BenchRecord:
    """The record with each `count` successive samples as one: the largest value of each column, the first one's time.

    So no peak is lost, and no figure that only some of the samples have.
    """
    columns = {
        name: column[::count] if name == _TIME else _largest(column, count)
        for name, column in record.samples.columns.items()
    }
    clusters = record.clusters and tuple(
        replace(cluster, frequency_hz=_largest(cluster.frequency_hz, count)) for cluster in record.clusters
    )
    samples = replace(record.samples, columns=columns)
    return replace(record, samples=samples, clusters=clusters, samples_merged=(record.samples_merged or 1) * count)


def _largest(column: Sequence[float | None], count: int) -> tuple[float | None, ...]:
    """The largest known value of each `count` successive ones.

    >>> _largest([1.0, None, 3.0, 2.0, None], 2)
    (1.0, 3.0, None)
    """
    parts = (column[start : start + count] for start in range(0, len(column), count))
    return tuple(max((value for value in part if value is not None), default=None) for part in parts)
