"""Every graph of a bundle and of its export, by the rules of what a GPU takes: tested without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.litertlm import tables
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.litertlm.reader import read_litertlm
from toolkit.tflite.gpu import gpu_refusals
from toolkit.tflite.reader import read_tflite


@pytest.mark.slow
def test_no_graph_of_a_bundle_has_an_op_that_a_gpu_refuses(multimodal_bundle: Path) -> None:
    files = sorted(multimodal_bundle.glob("*.tflite"))
    assert len(files) == 6
    assert {file.name: gpu_refusals(read_tflite(file).model) for file in files} == {f.name: [] for f in files}


@pytest.mark.slow
def test_no_graph_of_an_export_has_an_op_that_a_gpu_refuses(multimodal_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.litertlm"
    export_litertlm(multimodal_bundle, file, ExportOptions())
    sections = [s for s in read_litertlm(file).sections if s.type == tables.TFLITE_MODEL]
    assert len(sections) == 8
    for section in sections:
        assert gpu_refusals(read_tflite(file, (section.begin, section.end)).model) == [], section.label
