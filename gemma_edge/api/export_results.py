"""`gemma_edge.export_results`: writes benchmark results as one table, a row for each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.api.report import read_records
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output


@dataclass(frozen=True, slots=True)
class ExportedResults:
    """A written table."""

    path: Path
    bytes: int
    rows: int
    columns: int


def export_results(
    results: Sequence[Path | str],
    output: Path | str,
    *,
    skip_torn_line: bool = False,
    force: bool = False,
) -> ExportedResults:
    """Write all iterations of some results files as one table, in CSV or Parquet, according to the ending of `output`.

    results: results files written by `bench`, each only once. skip_torn_line: ignore an incomplete last line that a
    crash left. force: replace a file at `output` that is not a table of results.

    ResultsError for a file that is not a results file, UsageError for another ending or files without records,
    EnvironmentFault for Parquet without pyarrow.

    >>> table = export_results([results], folder / "table.csv")
    >>> table.rows, table.bytes == table.path.stat().st_size
    (41, True)
    """
    from toolkit.results.iteration_table import iteration_table
    from toolkit.results.table_files import table_kind

    kind, encode = table_kind(Path(output))
    target = Output(Path(output), kind, tuple(map(Path, results)), force)
    target.require()
    table = iteration_table(read_records(results, skip_torn_line=skip_torn_line))
    data = encode(table)
    target.require()  # it may have changed since
    write_bytes(output, data)
    return ExportedResults(Path(output), len(data), len(table.rows), len(table.columns))
