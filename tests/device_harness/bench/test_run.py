"""A runner from another package, benchmarked with no file of ours that names it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from bundles import fill
from waiting import wait_until

from device_harness.bench.run import BenchRequest, BenchSettings, bench, choose_runner, runner_on
from device_harness.machines.host import Host
from device_harness.runners import ALL
from device_harness.runners.interface import Workload
from device_harness.runners.spec import BenchListener, RunnerSpec
from toolkit.base.errors import UsageError
from toolkit.bundle.write import write_bundle
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures

PACKAGE = '''
"""A runner that is a script of Python's, which prints numbers."""

import sys
from pathlib import Path

from device_harness.runners.interface import Job, Reading
from device_harness.runners.spec import RunnerOption, RunnerSpec

SCRIPT = Path(__file__).with_name("measure.py")


def read(output):
    name, value = output.split()[-2:]
    return Reading({name: float(value)})


class ScriptRunner:
    def __init__(self, factor, figure):
        self.factor = factor
        self.figure = figure

    def plan(self, model, workload):
        def jobs(machine, there):
            argv = (machine.python, str(SCRIPT), there.path, str(workload.generated_tokens), self.factor, self.figure)
            tests = {"tg%d" % workload.generated_tokens: "decode_tokens_per_s"}
            return (Job(tests=tests, argv=argv, read=read, model=there.record, binaries=()),)

        return jobs


SPEC = RunnerSpec(
    name="script",
    about="a script",
    takes=("bundle",),
    options=(
        RunnerOption("factor", "N", "how much faster"),
        RunnerOption("figure", "NAME", "what the script calls its figure"),
    ),
    make=lambda request: ScriptRunner(
        request.options.text("factor") or "1", request.options.text("figure") or "decode_tokens_per_s"
    ),
)
'''
SCRIPT = """
import pathlib, sys
path, tokens, factor, figure = sys.argv[1:]
assert (pathlib.Path(path) / "manifest.json").exists()
print("measured", figure, int(tokens) * int(factor))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "handmade"
    write_bundle(path, fill)
    return path


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunnerSpec:
    """Of a package that is in no folder of ours."""
    folder = tmp_path / "script_runner"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "measure.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    found: RunnerSpec = importlib.import_module("script_runner").SPEC
    monkeypatch.delitem(sys.modules, "script_runner")
    return found


class Listener(BenchListener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def iteration(self, tests: Mapping[str, FigureName], done: int, total: int, figures: Figures | None) -> None:
        self.done.append(done)


@pytest.mark.slow
def test_a_runner_of_another_package_is_a_word_in_a_tuple(bundle: Path, spec: RunnerSpec) -> None:
    request = BenchRequest(bundle, "script", {"factor": ("3",)}, workload=Workload(generated_tokens=16))
    listener = Listener()
    (record,) = bench(Host(), request, BenchSettings(repetitions=2), runners=(*ALL, spec), listener=listener)
    assert (record.runner, record.values("tg16"), record.model.name) == ("script", (48, 48), "handmade")
    assert listener.done == [0, 1, 2] and listener.notes == ["host: script runs once unmeasured, to warm up"]


def test_a_second_benchmark_of_a_machine_waits_for_the_first(
    bundle: Path, spec: RunnerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path))
    request = BenchRequest(bundle, "script", workload=Workload(generated_tokens=16, start="cold"))
    settings = BenchSettings(repetitions=1)
    with ThreadPoolExecutor(1) as pool:
        with closing(bench(Host(), request, settings, runners=(spec,))) as first:
            next(first)
            second = pool.submit(lambda: list(bench(Host(), request, settings, runners=(spec,))))
            wait_until(lambda: "host: waiting for another benchmark on it to end" in caplog.text)
            assert not second.done()
        assert len(second.result()) == 1


def test_a_runner_is_known_only_where_it_is_given(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"--runner.*script.*session or .* or flash_probe"):
        choose_runner(BenchRequest(bundle, "script"))


def test_what_does_not_fit_the_model_is_refused_before_a_machine_is_waited_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_harness.bench.run.resting_limit", lambda *_, **__: pytest.fail("waited"))
    workload = Workload(prompt_tokens=1 << 20)
    with pytest.raises(UsageError, match="-p and -n"):
        next(bench(Host(), BenchRequest(bundle, "session", workload=workload)))


def test_an_option_of_another_runner_is_refused_by_name(bundle: Path, spec: RunnerSpec) -> None:
    with pytest.raises(UsageError, match=r"^--factor: cannot be used with --runner session, only with script$"):
        choose_runner(BenchRequest(bundle, "session", {"factor": ("3",)}), (*ALL, spec))


def test_each_kind_of_model_has_one_default_runner() -> None:
    for kind, name, on_phones in (
        ("bundle", "session", "native"),
        ("litertlm", "litert_lm_python", "litert_lm_advanced_main"),
    ):
        assert [spec.name for spec in ALL if kind in spec.default_for] == [name]
        assert [spec.name for spec in ALL if kind in spec.default_on_phones] == [on_phones]


def test_a_bundle_on_a_phone_is_run_by_our_program_in_c(bundle: Path, tmp_path: Path) -> None:
    request = BenchRequest(bundle)
    assert choose_runner(request, is_phone=True).name == "native"
    assert choose_runner(request, is_phone=False).name == runner_on(Host(), request).name == "session"
    with_library = BenchRequest(bundle, options={"library": ("libLiteRt.so",)})
    assert choose_runner(with_library).name == choose_runner(with_library, is_phone=False).name == "native"


def test_an_option_of_the_phones_default_asks_for_it_elsewhere_too(tmp_path: Path) -> None:
    model = tmp_path / "m.litertlm"
    plain, with_program = BenchRequest(model), BenchRequest(model, options={"binary": ("./litert_lm_advanced_main",)})
    assert choose_runner(plain).name == choose_runner(plain, is_phone=False).name == "litert_lm_python"
    assert choose_runner(with_program).name == "litert_lm_advanced_main"
    assert choose_runner(with_program, is_phone=False).name == "litert_lm_advanced_main"
    with pytest.raises(UsageError, match=r"^--binary: the runner needs the program litert_lm_advanced_main"):
        choose_runner(plain, is_phone=True)


def test_names_and_options_of_runners_are_told_apart() -> None:
    names = [spec.name for spec in ALL]
    assert len(set(names)) == len(names)
    options = {option for spec in ALL for option in spec.options}
    assert len({option.name for option in options}) == len(options)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", option.name) for option in options)
