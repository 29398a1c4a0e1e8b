"""A directory with the codes and scales of weights that were rounded before the bundle's files are written.

It is private to a run and the run that resumes it: no other program reads it. A band of rows of a weight is one NumPy
file of records, each with the codes and the scales of a row. It is synced before it gets its name, so that a band is
there whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.files import atomic_file
from toolkit.quant.uniform import QuantizedRows

_ROWS = ".rows.npy"


class RoundedWeights:
    """Codes and scales, by the name of a graph's weight and the first row of a band."""

    def __init__(self, directory: Path) -> None:
        """Open an existing directory; bands that an earlier run has left in it are found."""
        self._directory = directory
        self._bands: dict[str, list[tuple[int, int]]] = {}
        for path in sorted(directory.glob(f"*{_ROWS}")):
            name, _, first = path.name.removesuffix(_ROWS).rpartition(".")
            try:
                self._add(name, int(first), len(_mapped(path)))
            except (OSError, EOFError, ValueError):  # a damaged disk: the band is rounded again
                path.unlink()

    def __contains__(self, name: str) -> bool:
        """Whether any rows of the weight are here."""
        return name in self._bands

    def has(self, name: str, first_row: int, rows: int) -> bool:
        """Whether the band with exactly these rows is here."""
        return (first_row, first_row + rows) in self._bands.get(name, [])

    def save(self, name: str, first_row: int, rows: QuantizedRows) -> None:
        """Keep a band of rows."""
        fields = [(key, item.dtype, item.shape[1:]) for key, item in (("codes", rows.codes), ("scales", rows.scales))]
        records = np.empty(len(rows.codes), fields)
        records["codes"], records["scales"] = rows.codes, rows.scales
        with atomic_file(self._path(name, first_row)) as partial, open(partial, "wb") as file:
            np.save(file, records)
        self._add(name, first_row, len(records))

    def rows(self, name: str, start: int, stop: int) -> QuantizedRows:
        """Rows [start, stop) of a weight, all of which are here."""
        codes, scales = [], []
        for first, end in self._bands[name]:
            if first < stop and start < end:
                some = slice(max(start, first) - first, min(stop, end) - first)
                records = _mapped(self._path(name, first))[some]
                codes.append(records["codes"])
                scales.append(records["scales"])
        found = QuantizedRows(np.concatenate(codes), np.concatenate(scales))
        assert len(found.codes) == stop - start, f"rows {start} to {stop} of {name} are not all rounded"
        return found

    def _path(self, name: str, first_row: int) -> Path:
        return self._directory / f"{name}.{first_row}{_ROWS}"

    def _add(self, name: str, first_row: int, rows: int) -> None:
        bands = self._bands.setdefault(name, [])
        bands.append((first_row, first_row + rows))
        bands.sort()


def _mapped(path: Path) -> NDArray[np.void]:
    """The records of a file, which are read when they are used; ValueError, EOFError or OSError for a damaged file."""
    records: NDArray[np.void] = np.load(path, mmap_mode="r")
    return records
