"""What bench_decode makes of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_decode import EXPORTER, LLAMA, OURS, SESSION, Entrant, Load, Outcome, Runtime, main, table
from benchmarks.engine_run import EngineRun, RunOptions
from benchmarks.native_run import read_run
from toolkit.base.errors import EnvironmentFault
from toolkit.bundle.manifest_json import read_manifest

ENGINE = Runtime("LiteRT-LM", "engine_run")


def run(prefill: float, decode: float) -> EngineRun:
    return EngineRun(0.5, 1.0, 128, prefill, 16, decode, 1 << 20)


def outcome(recipe: str, runtime: Runtime, path: Path, *rates: tuple[float, float], system: str = OURS) -> Outcome:
    path.write_bytes(b"model")
    return Outcome(Entrant(system, runtime, recipe, path), run(1, 1), tuple(run(*pair) for pair in rates))


def test_models_are_compared_with_the_baseline_of_their_runtime_round_by_round(tmp_path: Path) -> None:
    file = tmp_path / "model.litertlm"
    found = table(
        [
            outcome("3n", SESSION, file, (100, 10), (50, 5), (100, 10)),
            outcome("4", SESSION, file, (200, 16), (100, 8), (300, 17)),
            outcome("4", ENGINE, file, (7, 7), (7, 7), (7, 7)),
        ],
        "3n",
    )
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()]
    column = header.index("x 3n: prefill, decode")
    assert [row[column] for row in rows] == ["", "2.00 (2.00 to 3.00), 1.60 (1.60 to 1.70)", ""]


def test_files_of_two_makers_in_one_runtime_have_baselines_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "model.litertlm"
    found = table(
        [
            outcome(recipe, ENGINE, file, (rate, rate), system=system)
            for system, rates in ((OURS, (100, 150)), (EXPORTER, (10, 20)))
            for recipe, rate in zip(("int8", "int4"), rates, strict=True)
        ],
        "int8",
    )
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()]
    column = header.index("x int8: prefill, decode")
    assert [row[column].partition(" ")[0] for row in rows] == ["", "1.50", "", "2.00"]


def test_a_baseline_that_nothing_has_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.litertlm").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        main(["--litertlm", f"a={tmp_path / 'a.litertlm'}", "--baseline", "b"])
    assert "--baseline: nothing is called b" in capsys.readouterr().err


def test_a_program_that_stops_early_is_an_error() -> None:
    options = RunOptions(128, 16, 2, 4096, Path())
    with pytest.raises(
        EnvironmentFault, match="found the answers start, wanted start, open, prefill, decode, decode, stats"
    ):
        read_run('INFO: a log\n{"ok": "start"}\n', options)


def test_a_record_has_the_context_of_the_bundle_and_for_llama_cpp_the_one_that_was_asked_for(
    random_bundle: Path, tmp_path: Path
) -> None:
    load = Load(prefill=8, decode=8, threads=1, context=4096, repeats=1)
    bundle = Entrant(OURS, SESSION, "int8", random_bundle)
    assert bundle.context(load) == read_manifest(random_bundle).text.context != load.context
    assert Entrant(LLAMA, Runtime("llama.cpp", "llama_run"), "int8", tmp_path / "Q8_0.gguf").context(load) == 4096
