"""What the processes of a job leave behind."""

from __future__ import annotations

from pathlib import Path

from device_harness.bench.process import JobProcesses, ProcessLimits
from device_harness.machines.host import Host
from device_harness.runners.interface import Job, Reading
from toolkit.results.record import ModelRecord


def test_only_the_samples_are_removed_from_a_folder_with_a_blank(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("the user's")
    folder = tmp_path / "a b"
    folder.mkdir()
    model = ModelRecord("stand-in", "bundle", None, "0" * 64, 1, None)
    job = Job(argv=("true",), read=lambda output: Reading({}), tests={}, model=model, binaries=())
    processes = JobProcesses(Host(), "runner", job, ProcessLimits(10.0, 1.0, str(folder)))
    Path(processes._samples).write_text("samples")
    processes.end()
    assert (tmp_path / "a").read_text() == "the user's" and not list(folder.iterdir())
