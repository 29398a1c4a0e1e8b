"""Stand-ins for Google's programs, which are not published for every computer: scripts that replay recorded output.

They show that arguments, libraries and output go the right way, and nothing of any speed.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from paths import FIXTURES

RECORDED = FIXTURES / "device"
SAMPLED = "i=0; until grep -qs /proc/$$/smap[s]_rollup /proc/[0-9]*/cmdline || [ $i = 400 ]; do "
SAMPLED += "i=$((i + 1)); sleep 0.05; done; sleep 0.3"
"""Waits until the sampler looks at the process, and a little for it to see."""


def write_program(path: Path, output: str, *, code: int = 0) -> Path:
    """Prints its arguments and library path to stderr, and `output`, where @SIGNATURE@ is the one asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    script = ["#!/bin/sh", 'echo "args: $* libraries: $LD_LIBRARY_PATH" >&2', "signature=none"]
    script.append("for a; do case $a in --signature_to_run_for=*) signature=${a#*=};; esac; done")
    script.append(f"printf '%s\\n' {shlex.quote(output)} | sed \"s/@SIGNATURE@/$signature/\"")
    path.write_text("\n".join([*script, f"exit {code}", ""]))
    path.chmod(0o755)
    return path


def litert_lm_main(folder: Path, name: str = "litert_lm_advanced_main") -> Path:
    """Says what v0.11 said, with two libraries beside it."""
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    (folder / "libLiteRt.so").write_bytes(b"a library")
    (folder / "libGpu.so").write_bytes(b"another")
    text = (RECORDED / "litert_lm_benchmarkinfo_v0.11.txt").read_text()
    return write_program(folder / name, text + "Peak system ram usage: 100.5MB\n")


def benchmark_model(folder: Path) -> Path:
    """Says what a Pixel's said, of the signature that is asked for."""
    text = (RECORDED / "litert_benchmark_model_pixel.txt").read_text().replace("prefill_1024", "@SIGNATURE@")
    log = "INFO: Replacing 7 out of 9 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions.\n"
    return write_program(folder / "benchmark_model", log + text)
