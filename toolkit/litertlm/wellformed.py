"""Verifies the graphs and the tokenizer of any program's .litertlm before Google's engine opens them."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.base.errors import BundleError, GraphError
from toolkit.litertlm.header import read_header
from toolkit.litertlm.tables import TFLITE_MODEL, SectionRecord
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER, MAX_TOKENIZER_BYTES, unpack_tokenizer
from toolkit.tflite.wellformed import require_wellformed


def require_wellformed_sections(path: Path) -> None:
    """BundleError unless all sections lie within the file, and what the engine parses is whole and bounded.

    Each graph must be a whole flatbuffer within its section, and tokenizer.json of a usual size: the engine unpacks and
    parses whatever there is.
    """
    for section in read_header(path).metadata.sections:
        if section.type == HF_TOKENIZER:
            _require_tokenizer(path, section)
        if section.type != TFLITE_MODEL:
            continue
        try:
            require_wellformed(path, (section.begin, section.end))
        except GraphError as error:
            place = f"section {section.label} {error.place or ''}".strip()
            remedy = "download or export it again"
            raise BundleError(place, file=path, found=error.found, wanted=error.wanted, remedy=remedy) from error


def _require_tokenizer(path: Path, section: SectionRecord) -> None:
    with open(path, "rb") as file:
        data = os.pread(file.fileno(), min(section.end - section.begin, MAX_TOKENIZER_BYTES), section.begin)
    found = unpack_tokenizer(data)
    if isinstance(found, list):
        fault = found[0]
        place = f"section {section.label} {fault.fault}".strip()
        raise BundleError(place, file=path, found=fault.found, wanted=fault.wanted)
