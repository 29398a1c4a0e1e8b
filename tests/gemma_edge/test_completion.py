"""What shells offer for a half-typed line: verbs without importing one, options of the verb that is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

from gemma_edge.completion import SHELLS, script
from gemma_edge.parser import VERBS


def offered(line: str) -> list[str]:
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    reading, writing = os.pipe()
    with os.fdopen(reading) as answer:
        program = f"import os; os.dup2({writing}, 8); from gemma_edge.cli import entry; entry()"
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **asked}, pass_fds=[writing], timeout=PATIENCE_S
        )
        os.close(writing)
        return [word.strip() for word in answer.read().splitlines()]


def test_verbs_and_options_are_offered() -> None:
    assert offered("gemma-edge ch") == ["check", "chat"]
    assert offered("gemma-edge run --te") == ["--temperature"]
    assert offered("gemma-edge convert --quiet --forc") == ["--force"]
    assert set(VERBS) <= set(offered("gemma-edge "))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_its_shell_reads(shell: str) -> None:
    text = script(shell)
    assert "gemma-edge" in text
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n"], input=text, text=True, check=True, timeout=PATIENCE_S)
