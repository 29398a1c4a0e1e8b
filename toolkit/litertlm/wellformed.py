"""Verifies the graphs of any program's .litertlm before Google's engine opens them."""

from __future__ import annotations

from pathlib import Path

from toolkit.base.errors import BundleError, GraphError
from toolkit.litertlm import tables
from toolkit.litertlm.header import read_header
from toolkit.tflite.wellformed import require_wellformed


def require_wellformed_sections(path: Path) -> None:
    """BundleError unless all sections lie within the file, and each graph is a whole flatbuffer within its section."""
    for section in read_header(path).metadata.sections:
        if section.type != tables.TFLITE_MODEL:
            continue
        try:
            require_wellformed(path, (section.begin, section.end))
        except GraphError as error:
            place = f"section {section.label} {error.place or ''}".strip()
            remedy = "download or export it again"
            raise BundleError(place, file=path, found=error.found, wanted=error.wanted, remedy=remedy) from error
