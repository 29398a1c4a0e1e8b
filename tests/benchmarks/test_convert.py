"""What bench_convert measures."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.bench_convert import Contender, measure

CONVERT = """
import os, pathlib, sys
pathlib.Path(os.environ["GEMMA_EDGE_CACHE"]).mkdir()  # an error if an earlier run has left it
pathlib.Path(sys.argv[1]).mkdir()
"""


def test_no_run_finds_the_packed_weights_of_an_earlier_one(tmp_path: Path) -> None:
    contenders = [Contender(name, "int8", (sys.executable, "-c", CONVERT), 2) for name in ("ours", "with its gate")]
    assert [len(outcome.runs) for outcome in measure(contenders, tmp_path)] == [2, 2]
