"""A directory with the codes and scales of weights that were rounded before the bundle's files are written.

It is private to a run and the run that resumes it: no other program reads it. A band of rows of a weight is two NumPy
files; the file of codes is renamed into place last, so that a band is there whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from toolkit.quant.uniform import QuantizedRows

_CODES, _SCALES = ".codes.npy", ".scales.npy"


class RoundedWeights:
    """Codes and scales, by the name of a graph's weight and the first row of a band."""

    def __init__(self, directory: Path) -> None:
        """Open an existing directory; bands that an earlier run has left in it are found."""
        self._directory = directory
        self._bands: dict[str, list[tuple[int, int]]] = {}
        for path in sorted(directory.glob(f"*{_CODES}")):
            name, _, first = path.name.removesuffix(_CODES).rpartition(".")
            self._add(name, int(first), len(np.load(path, mmap_mode="r")))

    def __contains__(self, name: str) -> bool:
        """Whether any rows of the weight are here."""
        return name in self._bands

    def has(self, name: str, first_row: int, rows: int) -> bool:
        """Whether the band with exactly these rows is here."""
        return (first_row, first_row + rows) in self._bands.get(name, [])

    def save(self, name: str, first_row: int, rows: QuantizedRows) -> None:
        """Keep a band of rows."""
        path = self._path(name, first_row)
        partial = path.with_suffix(".partial.npy")
        np.save(path.with_name(path.name.removesuffix(_CODES) + _SCALES), rows.scales)
        np.save(partial, rows.codes)
        os.replace(partial, path)
        self._add(name, first_row, len(rows.codes))

    def rows(self, name: str, start: int, stop: int) -> QuantizedRows:
        """Rows [start, stop) of a weight, all of which are here."""
        codes, scales = [], []
        for first, end in self._bands[name]:
            if first < stop and start < end:
                some = slice(max(start, first) - first, min(stop, end) - first)
                path = self._path(name, first)
                codes.append(np.array(np.load(path, mmap_mode="r")[some]))
                scales.append(np.load(path.with_name(path.name.removesuffix(_CODES) + _SCALES))[some])
        found = QuantizedRows(np.concatenate(codes), np.concatenate(scales))
        assert len(found.codes) == stop - start, f"rows {start} to {stop} of {name} are not all rounded"
        return found

    def _path(self, name: str, first_row: int) -> Path:
        return self._directory / f"{name}.{first_row}{_CODES}"

    def _add(self, name: str, first_row: int, rows: int) -> None:
        bands = self._bands.setdefault(name, [])
        bands.append((first_row, first_row + rows))
        bands.sort()
