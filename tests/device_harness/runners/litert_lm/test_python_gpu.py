"""Google's engine on its GPU backend, through its package: what a benchmark records of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_process import driver, run_alone
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.runners.litert_lm.python_runner import read_litert_lm_child
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.tflite.reader import read_tflite


@pytest.mark.full
@pytest.mark.lm
@pytest.mark.gpu
def test_all_nodes_and_the_adapter_are_recorded(tmp_path: Path) -> None:
    roles = {"text": "f32", "ple": "f32"}
    request = ConvertRequest(EXAMPLE, tmp_path / "bundle", roles, groups=("text",), context=128, prefill_sizes=(16,))
    convert(request, gate=None)
    export_litertlm(tmp_path / "bundle", tmp_path / "model.litertlm", ExportOptions())
    words = [str(tmp_path / "model.litertlm"), "--backend", "gpu", "--cache", str(tmp_path / "cache")]
    counts = ["--prompt-tokens", "16", "--generated-tokens", "2"]
    output = run_alone(["-m", "device_harness.runners.litert_lm.child", *words, *counts], driver().environment)
    reading = read_litert_lm_child(output, backend="gpu")
    graphs = read_tflite(tmp_path / "bundle" / "text_decoder.tflite")
    nodes = sum(len(graphs.graph(name).operators) for name in ("decode", "prefill_16"))
    assert reading.delegation is not None
    assert (reading.delegation.delegated_nodes, reading.delegation.nodes) == (nodes, nodes)
    assert reading.delegation.source.startswith("the log, adapter ")
    assert reading.figures["decode_tokens_count"] == 2
