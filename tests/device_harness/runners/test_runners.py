"""Runners on an emulated device: Google's as stand-ins that replay recorded output, ours as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import fill
from stand_ins import benchmark_model, litert_lm_main, write_program

from device_harness.bench.job import JobSettings, Subject, run_job
from device_harness.bench.placement import exported_model, open_model, place_model
from device_harness.bench.state import read_device
from device_harness.emulator.device import Emulator
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.machines.program import place_program
from device_harness.native.answer import DeviceSettings
from device_harness.runners import python_child
from device_harness.runners.benchmark_model.runner import BenchmarkModelRunner
from device_harness.runners.google_program import GoogleProgram
from device_harness.runners.interface import FileRange, Job, Reading, Runner, Workload
from device_harness.runners.litert_lm import model as litert_lm
from device_harness.runners.litert_lm.python_runner import LiteRtLmPythonRunner
from device_harness.runners.litert_lm.runner import PLAIN, LiteRtLmRunner
from device_harness.runners.python_child import read_child
from device_harness.runners.session.runner import SessionRunner
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.bundle.write import write_bundle
from toolkit.litertlm.reader import LitertlmContent, read_litertlm
from toolkit.results.record import Delegation

ENGINE_CACHES = (
    ".xnnpack_cache_1_2", ".vision_adapter.xnnpack_cache", "_1_2_mldrift_program_cache.bin",
    ".vision_encoder_1_2_mldrift_weight_cache.bin", "_16442536968298684338.bin", "_1_2.mtp_drafter_mldrift.bin",
)  # fmt: skip
"""The endings of files that LiteRT-LM keeps of `model.litertlm`."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "handmade"
    write_bundle(path, fill)
    return path


@pytest.fixture
def litertlm(bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.litertlm"
    exported_model(open_model(bundle), tmp_path).path.rename(path)
    return path


def execute(machine: Machine, job: Job) -> tuple[str, Reading]:
    environment = " ".join(f"{name}={value}" for name, value in job.environment.items())
    text = machine.shell(f"{environment} {' '.join(job.argv)} 2>&1", timeout=60).require("job")
    return text, job.read(text)


def jobs(runner: Runner, machine: Machine, path: Path, workload: Workload | None = None) -> tuple[Job, ...]:
    model = open_model(path)
    plan = runner.plan(model, workload or Workload(prompt_tokens=15, generated_tokens=3))
    return plan(machine, place_model(machine, model))


@pytest.mark.parametrize("where", ["device", "host"])
def test_litert_lm_runs_on_a_litertlm(machine: AdbDevice, litertlm: Path, tmp_path: Path, where: str) -> None:
    where_it_runs: Machine = machine if where == "device" else Host()
    binary = litert_lm_main(tmp_path / "bin")
    (job,) = jobs(LiteRtLmRunner(GoogleProgram(binary, "v0.11", ("--more=1",))), where_it_runs, litertlm)
    text, reading = execute(where_it_runs, job)
    path = "/data/local/tmp/gemma-edge/model.litertlm" if where == "device" else str(litertlm)
    wanted = f"args: --backend=cpu --model_path={path} --benchmark=true --benchmark_prefill_tokens=15 "
    options = "--benchmark_decode_tokens=3 --num_iterations=1 --report_peak_memory_footprint=true"
    assert f"{wanted}{options} --max_num_tokens=32 --more=1" in text
    assert reading.figures["decode_tokens_per_s"] == pytest.approx(3 / 0.093549531)
    assert (reading.figures["init_s"], reading.figures["peak_memory_bytes"]) == (0.51205, int(100.5 * 2**20))
    assert [record.name for record in job.binaries] == ["litert_lm_advanced_main", "libGpu.so", "libLiteRt.so"]
    assert (job.binaries[0].version, job.binaries[1].version) == ("v0.11", None)
    assert job.model.kind == "litertlm"


def test_litert_lm_main_gets_no_option_that_it_lacks(machine: AdbDevice, litertlm: Path, tmp_path: Path) -> None:
    binary = litert_lm_main(tmp_path / "bin", "litert_lm_main")
    (job,) = jobs(LiteRtLmRunner(GoogleProgram(binary), PLAIN), machine, litertlm)
    assert not [word for word in job.argv if "iterations" in word or "footprint" in word]
    with pytest.raises(UsageError, match="--threads: cannot be used with litert_lm_main; use litert_lm_advanced"):
        jobs(LiteRtLmRunner(GoogleProgram(binary), PLAIN), machine, litertlm, Workload(threads=4))


@pytest.mark.parametrize("threads", [0, 3_000_000_000])
def test_a_number_of_threads_that_no_program_could_start_is_refused(threads: int) -> None:
    for settings in (Workload, DeviceSettings):
        with pytest.raises(UsageError, match=f"threads: found {threads}, wanted a number from 1 to 1024"):
            settings(threads=threads)


def test_the_engine_is_told_how_many_threads_on_the_cpu(machine: AdbDevice, litertlm: Path, tmp_path: Path) -> None:
    runner = LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin")))
    (job,) = jobs(runner, machine, litertlm, Workload(15, 3, threads=4))
    assert "--num_cpu_threads=4" in job.argv
    (job,) = jobs(runner, machine, litertlm, Workload(15, 3))
    assert not [word for word in job.argv if "threads" in word]
    with pytest.raises(UsageError, match="--threads: can be used with --backend cpu only, not gpu"):
        jobs(runner, machine, litertlm, Workload(15, 3, threads=4, backend="gpu"))


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(15, 3, backend="npu"), "--backend: found npu, wanted cpu or gpu with the runner litert_lm_python"),
        (Workload(15, 3, threads=4, backend="gpu"), "--threads: can be used with --backend cpu only, not gpu"),
    ],
)
def test_the_engine_in_python_has_no_npu_and_no_threads_on_a_gpu(
    litertlm: Path, workload: Workload, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        LiteRtLmPythonRunner().plan(open_model(litertlm), workload)


def test_a_header_is_read_once_for_a_job(
    machine: AdbDevice, litertlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(path: Path) -> LitertlmContent:
        reads.append(path)
        return read_litertlm(path)

    monkeypatch.setattr(litert_lm, "read_litertlm", counted)
    jobs(LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin"))), machine, litertlm, Workload(15, 3))
    assert reads == [litertlm]


def test_the_engine_is_told_the_context_that_is_asked_for(machine: AdbDevice, litertlm: Path, tmp_path: Path) -> None:
    runner, plain = (
        LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin"))),
        LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin", "litert_lm_main")), PLAIN),
    )
    (job,) = jobs(runner, machine, litertlm, Workload(15, 3, context=24))
    assert "--max_num_tokens=24" in job.argv and job.context == 24
    (job,) = jobs(plain, machine, litertlm)
    assert not [word for word in job.argv if "max_num" in word] and job.context is None
    for context, fault in ((33, "--context: found 33, wanted at most 32"), (17, "-p and -n: found 18 tokens")):
        with pytest.raises(UsageError, match=fault):
            jobs(runner, machine, litertlm, Workload(15, 3, context=context))
    with pytest.raises(UsageError, match="--context: cannot be used with litert_lm_main"):
        jobs(plain, machine, litertlm, Workload(15, 3, context=24))


def test_a_litertlm_s_sections_are_its_groups(machine: AdbDevice, litertlm: Path, tmp_path: Path) -> None:
    (job,) = jobs(LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin"))), machine, litertlm)
    assert list(job.groups) == ["token_embedding", "text", "per_layer_embedding", "model"]
    begins = [job.groups[name][0].begin for name in job.groups]
    assert begins == [*sorted(begins[:3]), 0] and all(begin % 16384 == 0 for begin in begins)
    assert {part.path for parts in job.groups.values() for part in parts} == {
        "/data/local/tmp/gemma-edge/model.litertlm"
    }


def test_a_file_that_is_no_litertlm_is_found_before_anything_runs(machine: AdbDevice, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(bytes(100))
    with pytest.raises(BundleError, match="run gemma-edge check"):
        jobs(LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin"))), machine, path)


def test_a_cold_start_removes_what_the_engine_keeps_beside_the_model_and_nothing_else(
    folder_device: Emulator, machine: AdbDevice, litertlm: Path, tmp_path: Path
) -> None:
    (job,) = jobs(LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "bin"))), machine, litertlm)
    folder = folder_device.path("/data/local/tmp/gemma-edge")
    for ending in ENGINE_CACHES:
        (folder / f"model.litertlm{ending}").write_bytes(b"cache")
    (folder / "model2.litertlm_1_2_mldrift_program_cache.bin").write_bytes(b"another's")
    workload = Workload(15, 3, "cold")
    subject = Subject(machine, read_device(machine), "litert_lm_advanced_main", job)
    outcome = run_job(subject, workload, JobSettings(1), progress=lambda *_: None, note=lambda _: None)
    assert outcome.ended_by is None
    left = {path.name for path in folder.iterdir() if path.name.startswith("model")}
    assert left == {"model.litertlm", "model2.litertlm_1_2_mldrift_program_cache.bin"}


def test_a_cold_start_of_the_engine_in_python_removes_the_gpu_s_caches_too(
    litertlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(python_child, "binaries", lambda *_: ())
    workload = Workload(15, 3, "cold", "gpu")
    (planned,) = jobs(LiteRtLmPythonRunner(), Host(), litertlm, workload)
    folder = Path(planned.argv[planned.argv.index("--cache") + 1])
    folder.mkdir(parents=True)
    for ending in ENGINE_CACHES:
        (folder / f"model.litertlm{ending}").write_bytes(b"cache")
    job = replace(planned, argv=("true",), read=lambda _: Reading({"decode_tokens_per_s": 1.0}), read_failure=None)
    subject = Subject(Host(), read_device(Host()), "litert_lm_python", job)
    outcome = run_job(subject, workload, JobSettings(1), progress=lambda *_: None, note=lambda _: None)
    assert outcome.ended_by is None and not list(folder.iterdir())


def test_benchmark_model_has_a_job_for_each_signature(machine: AdbDevice, bundle: Path, tmp_path: Path) -> None:
    runner = BenchmarkModelRunner(GoogleProgram(benchmark_model(tmp_path / "bin")), runs=7)
    found = jobs(runner, machine, bundle, Workload(threads=2))
    assert [next(iter(job.tests)) for job in found][:4] == [
        "text_decoder:prefill_4", "text_decoder:prefill_8", "text_decoder:decode", "text_decoder:small_prefill_4",
    ]  # fmt: skip
    text, reading = execute(machine, found[2])
    folder = "/data/local/tmp/gemma-edge/handmade"
    assert f"--graph={folder}/text_decoder.tflite --signature_to_run_for=decode --num_runs=7 --num_threads=2" in text
    assert (reading.figures["inference_s"], reading.figures["inferences_count"]) == (7.4302, 10)
    assert reading.delegation == Delegation(7, 9, "the log")
    assert found[0].groups["text"] == (
        FileRange(f"{folder}/text_decoder.tflite"),
        FileRange(f"{folder}/embedder.tflite"),
    )


def test_an_npu_s_libraries_are_found_beside_the_program(
    machine: AdbDevice, bundle: Path, litertlm: Path, tmp_path: Path
) -> None:
    program = benchmark_model(tmp_path / "bin")
    (program.parent / "libLiteRtDispatch_Qualcomm.so").write_bytes(b"dispatch")
    workload = Workload(15, 3, backend="npu")
    (job,) = jobs(BenchmarkModelRunner(GoogleProgram(program), ("text_decoder:decode",)), machine, bundle, workload)
    folder = job.argv[0].rpartition("/")[0]
    wanted = {"--use_npu=true", f"--dispatch_library_path={folder}", f"--compiler_plugin_library_path={folder}"}
    assert wanted <= set(job.argv)
    assert job.environment == {"LD_LIBRARY_PATH": folder, "ADSP_LIBRARY_PATH": folder}
    (job,) = jobs(LiteRtLmRunner(GoogleProgram(litert_lm_main(tmp_path / "lm"))), machine, litertlm, workload)
    assert job.environment["ADSP_LIBRARY_PATH"] == job.environment["LD_LIBRARY_PATH"]


def test_signatures_can_be_chosen(machine: AdbDevice, bundle: Path, tmp_path: Path) -> None:
    binary = benchmark_model(tmp_path / "bin")
    found = jobs(
        BenchmarkModelRunner(GoogleProgram(binary), ("text_decoder:*decode", "embedder:embed_1")), machine, bundle
    )
    labels = [next(iter(job.tests)) for job in found]
    assert labels == ["text_decoder:decode", "text_decoder:small_decode", "embedder:embed_1"]
    with pytest.raises(UsageError, match=r"--signature: found vision:.*wanted one of text_decoder:prefill_4"):
        jobs(BenchmarkModelRunner(GoogleProgram(binary), ("vision:*",)), machine, bundle)


def test_another_signature_than_asked_for_is_an_error(machine: AdbDevice, bundle: Path, tmp_path: Path) -> None:
    binary = write_program(
        tmp_path / "bin" / "benchmark_model",
        "Signature name: other\nModel initialization: 1 ms\nInference (avg): 1 ms (1 runs)\nInference (max): 1 ms",
    )
    (job,) = jobs(BenchmarkModelRunner(GoogleProgram(binary), ("embedder:embed_1",)), machine, bundle)
    with pytest.raises(EnvironmentFault, match="found the signature 'other', wanted embed_1"):
        execute(machine, job)


def test_a_binary_is_pushed_once_with_its_libraries_and_may_run(
    folder_device: Emulator, machine: AdbDevice, tmp_path: Path
) -> None:
    program = litert_lm_main(tmp_path / "bin")
    placed = place_program(machine, program)
    local = folder_device.path(placed.program)
    assert local.stat().st_mode & 0o111 and local.read_bytes() == program.read_bytes()
    assert {path.name for path in local.parent.iterdir()} == {program.name, "libLiteRt.so", "libGpu.so"}
    stamp = local.stat().st_mtime_ns
    assert place_program(machine, program) == placed and local.stat().st_mtime_ns == stamp
    (program.parent / "libGpu.so").write_bytes(b"newer")
    assert place_program(machine, program).folder != placed.folder


def test_a_binary_that_is_not_there_or_may_not_run_is_an_error(machine: AdbDevice, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--binary: found .*nothing"):
        place_program(machine, tmp_path / "nothing")
    plain = write_program(tmp_path / "bin" / "plain", "hello")
    plain.chmod(0o644)
    with pytest.raises(UsageError, match=r"no permission to execute it.*chmod \+x"):
        place_program(Host(), plain)


def test_our_session_needs_python_with_this_package(folder_device: Emulator, machine: AdbDevice, bundle: Path) -> None:
    python = folder_device.path("/system/bin/python3")
    script = python.read_text()
    python.write_text("#!/bin/sh\necho 'No module named device_harness'; exit 1\n")
    try:
        with pytest.raises(EnvironmentFault, match="No module named device_harness; install"):
            jobs(SessionRunner(), machine, bundle)
    finally:
        python.write_text(script)


@pytest.mark.slow
def test_our_session_is_told_what_to_measure(machine: AdbDevice, bundle: Path) -> None:
    (job,) = jobs(SessionRunner(), machine, bundle, Workload(prompt_tokens=16, generated_tokens=8, threads=2))
    assert " ".join(job.argv).endswith("--prompt-tokens 16 --generated-tokens 8 --threads 2")
    assert job.tests["pp16"] == "prefill_tokens_per_s" and job.tests["tg8"] == "decode_tokens_per_s"
    assert job.tests["pp16:first"] == "first_prefill_tokens_per_s"
    (single,) = jobs(SessionRunner(), machine, bundle, Workload(prompt_tokens=1, generated_tokens=8))
    assert "pp1:first" not in single.tests, "a prompt of one token has no prefill"
    assert [record.name for record in job.binaries] == ["python3", "libLiteRt.so"]
    assert job.model.size == "large" and job.weight_caches == (
        "/data/local/tmp/gemma-edge/bench-weight-cache/*.xnnpack",
    )


def test_the_memory_of_our_session_is_that_of_the_process_with_litert(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_child, "binaries", lambda machine, module: ())
    on_cpu, on_gpu = Workload(8, 8), Workload(8, 8, backend="gpu")
    found = [jobs(SessionRunner(), Host(), bundle, workload)[0] for workload in (on_cpu, on_gpu)]
    assert [job.works_in_child for job in found] == [False, True]


@pytest.mark.slow
def test_drafts_that_were_right_are_figures(drafting_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat the cat the cat the cat")
    workload = Workload(prompt_tokens=8, generated_tokens=12, threads=1)
    (job,) = jobs(SessionRunner(text), Host(), drafting_bundle, workload)
    assert job.tests["tg12:accepted"] == "draft_acceptance_fraction"
    figures = execute(Host(), job)[1].figures
    steps = 12 - figures["drafts_accepted_count"]
    assert figures["decode_tokens_per_step"] == pytest.approx(12 / steps)
    assert figures["drafts_offered_count"] >= figures["drafts_accepted_count"] >= 0


def test_a_text_that_is_too_short_and_a_bundle_without_drafts_are_errors(
    drafting_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("cat")
    with pytest.raises(UsageError, match=r"text\.txt, --speculative: found 2 tokens, wanted at least 15, as -p says"):
        jobs(SessionRunner(text), Host(), drafting_bundle)
    with pytest.raises(BundleError, match="--draft-tokens 3"):
        jobs(SessionRunner(text), Host(), bundle)


@pytest.mark.parametrize(
    ("workload", "wanted"),
    [
        (Workload(prompt_tokens=30, generated_tokens=3), "-p and -n: found 33 tokens, wanted at most 32"),
        (Workload(prompt_tokens=3, generated_tokens=3, backend="npu"), "--backend: found npu, wanted cpu"),
    ],
)
def test_what_our_session_cannot_do_is_an_error_before_anything_runs(
    bundle: Path, workload: Workload, wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        jobs(SessionRunner(), Host(), bundle, workload)


def test_a_child_that_prints_no_result_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match="found 0 results"):
        read_child("INFO: hello\n")


def test_a_size_is_a_bundle_s(bundle: Path, litertlm: Path) -> None:
    assert place_model(Host(), open_model(bundle, "small")).record.size == "small"
    with pytest.raises(UsageError, match=r"--size: cannot be used with a \.litertlm file"):
        open_model(litertlm, "small")
    assert place_model(Host(), open_model(bundle)).record.quantization == "int8"
