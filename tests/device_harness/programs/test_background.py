"""Work in bundle_runner's child process is right only if the child says so."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from device_harness.programs import build

PROGRAM = """
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include "background.h"
#include "fault.h"
static bool work(void *word) {
    if (*(char *)word == 'e') _exit(0);
    if (*(char *)word == 'a') abort();
    return *(char *)word == 'r' || refuse(BUNDLE, NULL, NULL, "a fault", NULL);
}
int main(int count, char **words) {
    signal(SIGCHLD, count > 2 ? SIG_IGN : SIG_DFL);
    Background background;
    background_begin(&background, work, words[count - 1]);
    if (background_end(&background)) return 0;
    const Fault *fault = take_fault();
    return fault->kind == BUNDLE ? 1 : 2;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("background")
    (folder / "main.c").write_text(PROGRAM)
    native = Path(build.__file__).parent / "native" / "bundle_runner"
    sources = [folder / "main.c", native / "background.c", native / "fault.c"]
    subprocess.run(["gcc", "-D_GNU_SOURCE", f"-I{native}", *sources, "-o", folder / "program"], check=True)
    return folder / "program"


@pytest.mark.parametrize("ignored", [[], ["ignored"]], ids=["default", "ignored"])
@pytest.mark.parametrize(("end", "code"), [("right", 0), ("fault", 1), ("exit", 2), ("abort", 2)])
def test_only_what_the_child_calls_right_is_right(end: str, code: int, ignored: list[str], program: Path) -> None:
    """With SIGCHLD ignored, which a program inherits, the system does not tell how a child has ended."""
    assert subprocess.run([program, *ignored, end]).returncode == code
