"""Bundles on the GPU through the verbs, each in its own process: on a GPU, or on Vulkan in software."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_process import driver
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.runners.python_child import read_nodes
from toolkit.tflite.reader import read_tflite

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu_run") / "bundle"
    roles = ("text", "ple", "vision", "audio")
    request = ConvertRequest(EXAMPLE, path, dict.fromkeys(roles, "f32"), context=512, prefill_sizes=(16,))
    convert(request, gate=None)
    return path


def ended(*words: object, stdin: str = "") -> str:
    """What a Python program of ours writes to stdout; the test fails unless it ends well."""
    result = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, **driver().environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.full
def test_a_sound_is_answered_as_on_the_cpu(bundle: Path) -> None:
    question = ("-p", "What do you hear?", "--audio", EXAMPLE / "samples" / "seven.wav", "--temperature", "0")
    answers = [
        ended("gemma_edge", "run", bundle, *question, *where)
        for where in (("--backend", "cpu"), ("--backend", "gpu", "--activations", "fp16"))
    ]
    assert answers == ["seven\n", "seven\n"]


@pytest.mark.full
def test_a_chat_is_answered_as_on_the_cpu(bundle: Path) -> None:
    lines = "Tell me a story.\nAnd then?\n"
    words = ("gemma_edge", "chat", bundle, "--temperature", "0", "-n", "8", "--backend")
    assert ended(*words, "gpu", stdin=lines) == ended(*words, "cpu", stdin=lines)


@pytest.mark.full
def test_verify_judges_what_the_gpu_computes(bundle: Path) -> None:
    words = ("gemma_edge", "verify", bundle, "--checkpoint", EXAMPLE, "--tokens", "32", "--backend", "gpu", "--json")
    report = json.loads(ended(*words))
    assert report["passed"]
    assert 0 < report["sizes"]["large"]["kl_divergence_mean"] < 1e-9
    # Not 0: the reference runs on the CPU.
    assert all(0 < tower["relative_error"] < 1e-5 for tower in report["towers"].values())


def test_a_benchmark_records_the_delegated_nodes_and_the_adapter(bundle: Path) -> None:
    module = "device_harness.runners.session.child"
    found = read_nodes(ended(module, bundle, "--backend", "gpu", "--count-nodes"))
    graphs = read_tflite(bundle / "text_decoder.tflite")
    nodes = sum(len(graphs.graph(name).operators) for name in ("decode", "prefill_16"))
    assert (found.delegated_nodes, found.nodes) == (nodes, nodes)
    assert ", adapter " in found.source and not found.source.endswith("None")
