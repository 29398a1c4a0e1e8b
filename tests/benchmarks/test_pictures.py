"""The pictures of the documents are those that the recorded results give."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from paths import REPOSITORY

from benchmarks.pictures import E2B_PARAMETERS, PICTURES, pictures


def test_no_picture_is_stale_and_each_is_well_formed() -> None:
    drawn = dict(pictures())
    for name, data in drawn.items():
        ElementTree.fromstring(data)
        assert (PICTURES / name).read_bytes() == data, f"{name} is stale: run python -m benchmarks.pictures"
    assert {path.name for path in PICTURES.iterdir()} == {*drawn, "results.jsonl"}


def test_every_picture_of_a_document_is_drawn_from_records() -> None:
    shown = [
        match
        for document in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))
        for match in re.findall(r"docs/pictures/[\w.]+|\]\((pictures/[\w.]+)\)", document.read_text(encoding="utf-8"))
    ]
    assert shown and {name.rpartition("/")[2] for name in shown if name} <= dict(pictures()).keys()


def test_the_parameters_of_e2b_add_up_to_the_published_counts() -> None:
    assert sum(E2B_PARAMETERS.values()) == 5_439_438_272 and E2B_PARAMETERS["text"] == 1_905_495_648
