"""What the processes of a job leave behind."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from device_harness.bench.process import JobProcesses, ProcessLimits
from device_harness.machines.host import Host
from device_harness.runners.child_program import _counts
from device_harness.runners.interface import Job, Reading
from toolkit.results.record import ModelRecord

MODEL = ModelRecord("stand-in", "bundle", None, "0" * 64, 1, None)
SIZE = 48 * 2**20


def test_only_the_samples_are_removed_from_a_folder_with_a_blank(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("the user's")
    folder = tmp_path / "a b"
    folder.mkdir()
    job = Job(argv=("true",), read=lambda output: Reading({}), tests={}, model=MODEL, binaries=())
    processes = JobProcesses(Host(), "runner", job, ProcessLimits(10.0, 1.0, str(folder)))
    Path(processes._samples).write_text("samples")
    processes.end()
    assert (tmp_path / "a").read_text() == "the user's" and not list(folder.iterdir())


@pytest.mark.parametrize("works_in_child", [False, True])
def test_the_process_that_works_is_sampled(tmp_path: Path, works_in_child: bool) -> None:
    child = f"import time; data = b'1' * {SIZE}; time.sleep(0.5)"
    argv = ("sh", "-c", f'{sys.executable} -S -c "{child}" & wait')
    job = Job(
        argv=argv, read=lambda output: Reading({}), tests={}, model=MODEL, binaries=(), works_in_child=works_in_child
    )
    run = JobProcesses(Host(), "runner", job, ProcessLimits(10.0, 0.1, str(tmp_path))).run()
    most = max(sample.status.rss_anonymous_bytes or 0 for sample in run.samples)
    assert not run.sampler_failed and run.readings
    assert most >= SIZE if works_in_child else most < SIZE


def test_the_faults_of_a_child_that_has_ended_count_with_its_parents() -> None:
    before, faults_before = _counts(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    faults = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - faults_before
    assert faults > 300 and _counts()["minor_faults_count"] - before["minor_faults_count"] >= faults
