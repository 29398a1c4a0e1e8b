"""A small program that several processes place on one device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import wait_until

from device_harness.adb.shell import ShellResult
from device_harness.push.program import place_small_program

FOLDER = "/data/local/tmp/gemma-edge/bin/0123"
PROGRAM = b"ELF" * 1000


class Files:
    """A stand-in for a device: its files, and what happens before a file is renamed."""

    serial = "R58M123"

    def __init__(self, files: dict[str, bytes], before_rename: Callable[[], None] = lambda: None) -> None:
        self._files = files
        self._before_rename = before_rename

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        if " mv -f " in command:
            self._before_rename()
            old, new = command.split(" mv -f ")[1].split()
            if old not in self._files:
                return ShellResult("", f"mv: {old}: No such file or directory", 1)
            self._files[new] = self._files.pop(old)
        return ShellResult("", "", 0)

    def push_file(self, path: Path, remote: str, *, mode: int) -> None:
        self._files[remote] = path.read_bytes()

    def pull_bytes(self, remote: str) -> bytes:
        return self._files[remote]


def test_two_processes_that_place_a_program_do_not_share_what_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "push_receiver-x86_64"
    program.write_bytes(PROGRAM)
    files = {f"{FOLDER}/{program.name}.part": b"left by a cut"}
    others: list[Future[str]] = []

    with ThreadPoolExecutor(1) as pool:

        def begin_another() -> None:
            others.append(pool.submit(place_small_program, Files(files), program, FOLDER))  # type: ignore[arg-type]
            wait_until(lambda: others[0].done() or "waiting for another process" in caplog.text)

        placed = place_small_program(Files(files, begin_another), program, FOLDER)  # type: ignore[arg-type]
        assert others[0].result() == placed
    assert files == {placed: PROGRAM}
