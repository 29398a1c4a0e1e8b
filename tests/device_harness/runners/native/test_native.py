"""The runner for our program in C: its job, the parser of its answers, and what it says without a compiler."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from paths import EXAMPLE, FIXTURES

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.bench.run import BenchRequest, BenchSettings, bench, choose_runner
from device_harness.machines.host import Host
from device_harness.programs.bundle_runner import ZIG_VERSION, bundle_runner
from device_harness.runners.interface import Workload
from device_harness.runners.native.parser import read_failure, read_gpu_nodes, read_native, read_profile
from toolkit.base.errors import EnvironmentFault, UsageError

PROFILE = (FIXTURES / "device/litert_profile_embedder.txt").read_text()
ANSWERS = [
    '{"ok": "start", "protocol": 1, "pid": 7}',
    'INFO: [litert/runtime/compiled_model.cc:99] Loading shared library',
    '{"ok": "open", "size": "large", "seconds": 0.5, "uptime_s": 100.5}',
    '{"ok": "prefill", "position": 15, "seconds": 0.25, "uptime_s": 101}',
    '{"ok": "decode", "position": 16, "token": 9, "seconds": 0.05, "uptime_s": 102}',
    '{"ok": "truncate", "position": 0, "seconds": 1e-06, "uptime_s": 102}',
    '{"ok": "prefill", "position": 16, "seconds": 0.2, "uptime_s": 103}',
    '{"ok": "decode", "position": 20, "token": 9, "seconds": 0.1, "uptime_s": 104}',
    '{"ok": "stats", "faults": {"minor": 3, "major": 2, "read_bytes": null}, "seconds": 0, "uptime_s": 105}',
]  # fmt: skip


def test_figures_are_those_of_the_session() -> None:
    reading = read_native("\n".join(ANSWERS), 16, 4)
    assert (reading.begin_s, reading.end_s) == (100, 104)
    assert reading.phases == {"prompt": (102.8, 103), "decode": (103.9, 104)}, "those of the second prompt"
    assert reading.figures == {
        "init_s": 0.5, "time_to_first_token_s": pytest.approx(0.3), "prefill_s": 0.2, "decode_s": 0.1,
        "prefill_tokens_count": 16, "decode_tokens_count": 4, "prefill_tokens_per_s": 80,
        "decode_tokens_per_s": 40, "first_prefill_tokens_per_s": 60, "minor_faults_count": 3, "major_faults_count": 2,
    }  # fmt: skip


def test_weights_that_could_not_be_kept_are_told_with_the_reason() -> None:
    opened = json.dumps({**json.loads(ANSWERS[2]), "weight_cache_fault": "/weights: 10 bytes free, wanted 20"})
    answers = [opened if answer == ANSWERS[2] else answer for answer in ANSWERS]
    assert read_native("\n".join(answers), 16, 4).weight_cache_fault == "/weights: 10 bytes free, wanted 20"
    assert read_native("\n".join(ANSWERS), 16, 4).weight_cache_fault is None


def test_delegated_nodes_are_those_that_the_profile_does_not_name() -> None:
    answers = [ANSWERS[0], ANSWERS[2], json.dumps({"ok": "profile", "size": "large", "summary": PROFILE})]
    found = read_profile("\n".join(answers), 100, ["decode", "prefill_16"])
    assert (found.delegated_nodes, found.nodes) == (98, 100) and "decode, prefill_16" in found.source
    with pytest.raises(EnvironmentFault, match="found 0 profiles, wanted one"):
        read_profile(ANSWERS[0], 100, ["decode"])


def test_an_error_of_the_program_is_the_error_of_the_run() -> None:
    error = '{"error": {"kind": "machine", "file": "/l.so", "place": null, "found": "no function", "wanted": null}}'
    with pytest.raises(EnvironmentFault, match=r"^/l\.so, bundle_runner: no function$"):
        read_native("\n".join([ANSWERS[0], error]), 16, 4)
    with pytest.raises(EnvironmentFault, match="found the answers start, open, wanted start, open, prefill"):
        read_native("\n".join(ANSWERS[:3]), 16, 4)


OPEN_ON_GPU = [
    ANSWERS[0],
    "I0000 00:00:1796006835.591245 29283 environment.cc:532] Selected adapter: Mali-G715, arch=valhall, vendor=arm",
    '{"ok": "open", "backend": "gpu", "seconds": 0.5, "uptime_s": 100.5}',
]
"""The lines that count, of an output on Mesa's software Vulkan, with the name of a phone's GPU."""
NOT_OPEN = (
    '{"error": {"kind": "machine", "file": "/b/text_decoder.tflite", "place": "backend gpu", '
    '"found": "LiteRT cannot open it with the GPU alone (status 500)", "wanted": null}}'
)


def test_on_a_gpu_every_node_is_delegated_or_the_bundle_does_not_open() -> None:
    found = read_gpu_nodes("\n".join(OPEN_ON_GPU), 100, ["decode", "prefill_16"])
    assert (found.delegated_nodes, found.nodes) == (100, 100)
    assert found.source == "LiteRT opened decode, prefill_16 with the GPU alone, adapter Mali-G715"
    with pytest.raises(EnvironmentFault, match="found 1 answers, wanted start and open"):
        read_gpu_nodes(ANSWERS[0], 100, ["decode"])


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("W0 No adapters found.", r"^--backend gpu: no GPU that LiteRT can use on this machine; install"),
        (
            "WARNING: GPU accelerator could not be loaded and registered: x",
            "^--backend gpu: LiteRT's library has no dele",
        ),
        (
            "Following operations are not supported by GPU delegate:\nPAD: Invalid paddings\nSUB: x\n12 operations",
            "^/b/text_decoder.tflite, backend gpu: ops that the GPU's delegate refuses: PAD: Invalid paddings; SUB: x;",
        ),
        ("INFO: something", r"^/b/text_decoder.tflite, backend gpu: LiteRT cannot open it with .*status 500\); use"),
    ],
)
def test_the_log_says_why_a_bundle_does_not_open_on_a_gpu(said: str, fault: str) -> None:
    error = read_failure("\n".join([ANSWERS[0], said, NOT_OPEN]), 2, backend="gpu")
    assert isinstance(error, EnvironmentFault)
    with pytest.raises(EnvironmentFault, match=fault):
        raise error


def test_a_fault_of_the_driver_is_told_from_other_ends() -> None:
    output = "\n".join([*OPEN_ON_GPU, "driver: lost device", "Aborted"])
    found = str(read_failure(output, 134, backend="gpu"))
    assert found.startswith("--backend gpu: its process ended with signal SIGABRT, adapter Mali-G715; update the GPU's")
    assert "driver: lost device | Aborted" in found
    assert read_failure(output, 137, backend="gpu") is None, "killed: memory was short"
    assert read_failure(output, 134, backend="cpu") is None


@pytest.mark.slow
def test_a_bundle_is_measured_with_memory_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny"
    convert(ConvertRequest(EXAMPLE, path, context=512), gate=None)
    workload = Workload(prompt_tokens=80, generated_tokens=60, threads=1)
    try:
        (record,) = bench(
            Host(), BenchRequest(path, "native", workload=workload), BenchSettings(repetitions=2, interval_s=0.02)
        )
    except EnvironmentFault as error:
        if error.place == "ziglang":
            pytest.skip(str(error))
        raise
    assert record.runner == "native" and len(record.iterations) == 2
    assert [binary.name.split("-")[0] for binary in record.binaries] == ["bundle_runner", "libLiteRt.so"]
    assert record.binaries[1].version == importlib.metadata.version("ai-edge-litert")
    assert set(record.tests) == {"pp80", "tg60", "ttft80", "init", "pp80:first"}
    assert all(value > 0 for test in record.tests for value in record.values(test))
    assert record.delegation is not None and 0 < (record.delegation.delegated_nodes or 0) < (
        record.delegation.nodes or 0
    )
    # The unmeasured run has packed the weights, which the measured ones map.
    assert len(list((tmp_path / "cache" / "bench-native-weights").glob("*.xnnpack"))) == 1


@pytest.mark.full
def test_delegated_nodes_are_those_of_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny"
    convert(ConvertRequest(EXAMPLE, path, context=512), gate=None)
    workload, settings = Workload(prompt_tokens=8, generated_tokens=2, threads=1), BenchSettings(repetitions=1)
    requests = [BenchRequest(path, name, workload=workload) for name in ("native", "session")]
    (native,), (session,) = ([run.delegation for run in bench(Host(), request, settings)] for request in requests)
    assert native == session and native is not None and native.nodes


@pytest.mark.parametrize(
    ("options", "workload", "fault"),
    [
        (
            {"library": ("a",), "library_version": ("b",)},
            Workload(),
            "--library-version: cannot be used with --library",
        ),
        ({"library_version": ("../b",)}, Workload(), "--library-version"),
        ({}, Workload(backend="npu"), "--backend: found npu, wanted cpu or gpu with the runner native"),
    ],
)
def test_wrong_options_are_found_before_a_device_is_needed(
    options: dict[str, tuple[str, ...]], workload: Workload, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=fault):
        choose_runner(BenchRequest(tmp_path, "native", options, workload=workload))


def test_without_the_right_compiler_the_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for version, remedy in (
        (missing, r"no such package, which has the C compiler; pip install 'gemma-edge\[probe\]'"),
        (lambda name: "0.99.0", f"found 0.99.0, wanted {ZIG_VERSION}; pip install ziglang=={ZIG_VERSION}"),
    ):
        monkeypatch.setattr(importlib.metadata, "version", version)
        with pytest.raises(EnvironmentFault, match=remedy):
            bundle_runner("android", "aarch64", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
