"""Writes a table of iterations as CSV or Parquet; the one place that imports pyarrow."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.base.outputs import OutputKind
from toolkit.base.printable import spreadsheet_text
from toolkit.results.iteration_table import Cell, IterationTable

EXTRA = "parquet"
_MARK = b"gemma_edge_table"
"""A key of our Parquet files' metadata, by which they are recognised."""
_HEAD = b"record,iteration,started_utc,"
_MAGIC = b"PAR1"
_FOOTER_BYTES = 1 << 20


def _csv_stranger(path: Path) -> str | None:
    with open(path, "rb") as file:
        return None if file.read(len(_HEAD)) == _HEAD else "a file that is not a table of gemma-edge results"


def _parquet_stranger(path: Path) -> str | None:
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, path.stat().st_size - _FOOTER_BYTES))
        is_ours = head == _MAGIC and _MARK in file.read()
    return None if is_ours else "a file that is not a table of gemma-edge results"


def csv_bytes(table: IterationTable) -> bytes:
    """CSV in UTF-8 with a line of column names; unknown values are empty, truths are true or false."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_csv_cell(cell) for cell in row])
    return text.getvalue().encode()


def _csv_cell(cell: Cell) -> object:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return spreadsheet_text(cell) if isinstance(cell, str) else cell


def parquet_bytes(table: IterationTable) -> bytes:
    """Parquet, with each column's unit and meaning in its metadata; EnvironmentFault without pyarrow."""
    pyarrow = _pyarrow("pyarrow")
    types = {
        "text": pyarrow.string(), "integer": pyarrow.int64(), "number": pyarrow.float64(), "truth": pyarrow.bool_()
    }  # fmt: skip
    fields = [
        pyarrow.field(column.name, types[column.type], metadata={"unit": column.unit, "meaning": column.meaning})
        for column in table.columns
    ]
    schema = pyarrow.schema(fields, metadata={_MARK: b"1"})
    columns = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    sink = pyarrow.BufferOutputStream()
    _pyarrow("pyarrow.parquet").write_table(pyarrow.Table.from_arrays(arrays, schema=schema), sink)
    return bytes(sink.getvalue())


def _pyarrow(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        found, remedy = "pyarrow is not installed", f"pip install 'gemma-edge[{EXTRA}]', or write a .csv"
        raise EnvironmentFault("Parquet", found=found, remedy=remedy) from error


KINDS: Mapping[str, tuple[OutputKind, Callable[[IterationTable], bytes]]] = {
    ".csv": (OutputKind("a table of results in CSV", _csv_stranger), csv_bytes),
    ".parquet": (OutputKind("a table of results in Parquet", _parquet_stranger), parquet_bytes),
}
"""How a file is written, by its ending."""


def table_kind(path: Path) -> tuple[OutputKind, Callable[[IterationTable], bytes]]:
    """The kind of table that a file's ending asks for; UsageError for any other ending."""
    found = KINDS.get(path.suffix.lower())
    if found is None:
        what = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise UsageError(file=path, found=what, wanted=" or ".join(KINDS))
    return found
