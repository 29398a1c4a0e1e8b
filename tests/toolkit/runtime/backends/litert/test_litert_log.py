"""LiteRT's lines go to our log, everyone else's to where they were meant to go."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.litert.litert_log import quietly


def write(text: str) -> None:
    os.write(2, text.encode())


def test_lines_of_litert_go_to_the_log_and_others_come_out_afterwards(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    quietly("x", lambda: write("INFO: [a.cc:1] hello\nsomeone else\n"))
    assert capfd.readouterr().err == "someone else\n"
    assert [record.getMessage() for record in caplog.records] == ["LiteRT: INFO: [a.cc:1] hello"]


def test_a_fault_says_what_litert_wrote_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        write("INFO: [a.cc:1] hello\nERROR: [a.cc:2] no such operator\n")
        raise RuntimeError("failed")

    with pytest.raises(EnvironmentFault, match=r"x: .*failed; ERROR: \[a.cc:2\] no such operator"):
        quietly("x", fail)
    assert capfd.readouterr().err == ""


def test_threads_that_are_quiet_at_once_leave_stderr_as_it_was() -> None:
    before = os.fstat(2).st_ino
    threads = [
        threading.Thread(target=lambda: [quietly("x", lambda: write("INFO: x\n")) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.fstat(2).st_ino == before


AT_THE_END = """
import atexit, ctypes, sys
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.perror, ctypes.c_void_p), ctypes.c_char_p(b"the end of C"), None)
atexit.register(print, "the end of Python", file=sys.stderr)
session = Session(Bundle(sys.argv[1]), SessionSettings(weight_cache="memory"))
session.feed([2, 3])
"""


def test_a_session_that_nobody_closes_ends_without_a_word_and_others_still_have_theirs(random_bundle: Path) -> None:
    words = [sys.executable, "-c", AT_THE_END, str(random_bundle)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    python, c = run.stderr.splitlines()
    assert python == "the end of Python"
    assert c.startswith("the end of C")
