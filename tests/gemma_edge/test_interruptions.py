"""A command that is killed at any moment leaves the old output or the new one, and the next run repairs the rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from killed_command import Aim, Ended, KilledCommands
from output_work import Work, contents, copy_of, prepare
from paths import REPOSITORY

from gemma_edge.cli import main
from toolkit.base.errors import BundleError
from toolkit.bundle.manifest_json import read_manifest

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}


@dataclass(frozen=True)
class Written:
    """A verb, its output in the folder `out`, and the output of an earlier run with other content."""

    arguments: Callable[[Work], list[str]]
    output: str
    earlier: Callable[[Work], list[str]]
    appends: bool = False
    code: int = 0
    """How a whole run ends: `demo` fails the random checkpoint in its quality gate, and the older bundle stays."""


VERBS = {
    "convert": Written(
        lambda w: ["convert", str(w / "checkpoint"), "-o", str(w / "out/b"), "--context", "32", "--no-verify"],
        "b",
        lambda w: ["convert", str(w / "checkpoint"), "-o", str(w / "out/b"), "--context", "16", "--no-verify"],
    ),
    "export": Written(
        lambda w: ["export", str(w / "bundle"), "-o", str(w / "out/m.litertlm"), "--size", "small"],
        "m.litertlm",
        lambda w: ["export", str(w / "bundle"), "-o", str(w / "out/m.litertlm"), "--size", "full"],
    ),
    "report": Written(
        lambda w: ["report", str(w / "results.jsonl"), "-o", str(w / "out/p.html")],
        "p.html",
        lambda w: ["report", str(w / "third.jsonl"), "-o", str(w / "out/p.html")],
    ),
    "inspect": Written(
        lambda w: ["inspect", str(w / "bundle"), "--plot", str(w / "out/p.svg")],
        "p.svg",
        lambda w: ["inspect", str(w / "checkpoint"), "--plot", str(w / "out/p.svg")],
    ),
    "bench": Written(
        lambda w: ["bench", str(w / "bundle"), "--host", "-p", "8", "-n", "2", "-r", "1", "--results",
                   str(w / "out/r.jsonl")],
        "r.jsonl",
        lambda w: ["bench", str(w / "bundle"), "--host", "-p", "4", "-n", "2", "-r", "1", "--results",
                   str(w / "out/r.jsonl")],
        appends=True,
    ),
    "rebuild": Written(
        lambda w: ["rebuild", str(w / "bundle/lock.json"), "--checkpoint", str(w / "checkpoint"), "-o",
                   str(w / "out/b")],
        "b",
        lambda w: ["convert", str(w / "checkpoint"), "-o", str(w / "out/b"), "--context", "16", "--no-verify"],
    ),
    "results": Written(
        lambda w: ["results", "export", str(w / "results.jsonl"), "-o", str(w / "out/t.csv")],
        "t.csv",
        lambda w: ["results", "export", str(w / "third.jsonl"), "-o", str(w / "out/t.csv")],
    ),
    "demo": Written(
        lambda w: ["demo", "--checkpoint", str(w / "checkpoint"), "-o", str(w / "out/b")],
        "b",
        lambda w: ["convert", str(w / "checkpoint"), "-o", str(w / "out/b"), "--context", "16", "--no-verify"],
        code=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, random_bundle: Path) -> Path:
    folder = prepare(tmp_path_factory.mktemp("prepared") / "work", random_checkpoint, random_bundle)
    shutil.copyfile(folder / "second.jsonl", folder / "third.jsonl")
    with open(folder / "third.jsonl", "ab") as file:
        file.write((folder / "results.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def commands() -> Iterator[KilledCommands]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests/support")])
    with KilledCommands({"PYTHONPATH": path}) as found:
        yield found


class Case:
    """One verb over an existing output: what was there before, and what an uninterrupted run makes of it."""

    def __init__(self, name: str, prepared: Path, folder: Path, commands: KilledCommands) -> None:
        self.verb, self.commands = VERBS[name], commands
        self.work = copy_of(prepared, folder)
        self._cache = self.work / "cache"
        assert main(self.verb.earlier(self.work)) == 0
        self.old = contents(self.work / "out")
        self._kept = shutil.copytree(self.work / "out", folder / "kept")
        self.new = {} if self.verb.appends else self._after_a_whole_run()

    def reset(self) -> None:
        """As before the first run, with an empty cache, so that each run has the same renames."""
        shutil.rmtree(self.work / "out")
        shutil.copytree(self._kept, self.work / "out")
        shutil.rmtree(self._cache, ignore_errors=True)

    def start(self, aim: Aim | None = None, **environment: str) -> None:
        """Begin the verb in its own process."""
        environment["GEMMA_EDGE_CACHE"] = str(self._cache)
        self.commands.start(self.verb.arguments(self.work), self.work / "errors", aim, **environment)

    def require_whole(self) -> None:
        """The output is the old one or the new one."""
        found = self._of_output(contents(self.work / "out"))
        if self.verb.appends:
            (_, before), (_, after) = self.old[self.verb.output], found[self.verb.output]
            assert after.startswith(before) and (after == before or after.endswith(b"\n"))
        else:
            assert found in (self._of_output(self.old), self._of_output(self.new)), sorted(found)

    def require_repaired(self) -> None:
        """The next run, with the same cache, ends as it should and leaves its output alone in the folder."""
        with patch.dict(os.environ, GEMMA_EDGE_CACHE=str(self._cache)):
            assert main(self.verb.arguments(self.work)) == self.verb.code
        found = contents(self.work / "out")
        if self.verb.appends:
            assert list(found) == [self.verb.output]
            assert found[self.verb.output][1].startswith(self.old[self.verb.output][1])
        else:
            assert found == self.new

    def _after_a_whole_run(self) -> dict[str, tuple[int, bytes]]:
        assert main(self.verb.arguments(self.work)) == self.verb.code
        new = contents(self.work / "out")
        assert (new == self.old) == (self.verb.code != 0)
        return new

    def _of_output(self, found: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
        """Without the file beside it, and without what a killed run left."""
        return {name: item for name, item in found.items() if name.split("/")[0] == self.verb.output}


def end(case: Case) -> Ended:
    found = case.commands.ended()
    assert "Traceback" not in found.errors and "a bug in gemma-edge" not in found.errors, found.errors
    return found


def renames_of(case: Case) -> int:
    case.reset()
    case.start()
    found = end(case)
    assert found.code == case.verb.code and found.renames is not None, found.errors
    return found.renames


def aimed(case: Case, number: int, counts: Iterable[int], moments: Iterable[str] = ("before", "after")) -> int:
    """Interrupt at these renames, and check what is left; return the number of cases."""
    cases = 0
    for count in counts:
        for moment in moments:
            case.reset()
            case.start(Aim(number, moment, count))
            assert end(case).code not in (0, case.verb.code), "it was interrupted"
            case.require_whole()
            case.require_repaired()
            cases += 1
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", pytest.param("export", marks=pytest.mark.full), "report"])
def test_a_kill_around_the_rename_of_the_output_leaves_a_whole_one_and_the_next_run_repairs(
    name: str, prepared: Path, tmp_path: Path, commands: KilledCommands
) -> None:
    """After it, the file beside a bundle or an export is renamed, which says what it was made with."""
    case = Case(name, prepared, tmp_path / "work", commands)
    place = renames_of(case) - (name != "report")
    assert aimed(case, signal.SIGKILL, [place]) == 2


@pytest.mark.full
@pytest.mark.parametrize("number", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("name", VERBS)
def test_a_signal_around_each_rename_leaves_a_whole_output_and_the_next_run_repairs(
    name: str, number: int, prepared: Path, tmp_path: Path, commands: KilledCommands
) -> None:
    case = Case(name, prepared, tmp_path / "work", commands)
    last = renames_of(case)
    assert last >= 1 or case.verb.appends
    aimed(case, number, range(1, last + 1))


def interrupt_at_random(case: Case, number: int, times: int, seed: int) -> None:
    started = time.monotonic()
    renames_of(case)
    whole_s = time.monotonic() - started
    choice = random.Random(seed)
    for _ in range(times):
        case.reset()
        case.start()
        time.sleep(choice.uniform(0, whole_s))
        case.commands.send_signal(number)
        end(case)
        case.require_whole()
        case.require_repaired()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("convert", signal.SIGKILL), pytest.param("bench", signal.SIGTERM, marks=pytest.mark.full)]
)
def test_a_signal_at_a_random_moment_leaves_a_whole_output(
    name: str, number: int, prepared: Path, tmp_path: Path, commands: KilledCommands
) -> None:
    interrupt_at_random(Case(name, prepared, tmp_path / "work", commands), number, 1, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("number", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("name", VERBS)
def test_a_signal_at_many_random_moments_leaves_a_whole_output(
    name: str, number: int, prepared: Path, tmp_path: Path, commands: KilledCommands
) -> None:
    """A hundred and more in all."""
    interrupt_at_random(Case(name, prepared, tmp_path / "work", commands), number, 6, seed=number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "reads"), [(4, True), *(pytest.param(count, False, marks=pytest.mark.full) for count in (3, 4, 5))]
)
def test_without_an_exchange_of_names_the_next_run_repairs_whatever_it_does(
    count: int, reads: bool, prepared: Path, tmp_path: Path, commands: KilledCommands
) -> None:
    """Renames: lock, manifest, old directory, new one, and the file beside it. Before the fourth, none has the name."""
    case = Case("convert", prepared, tmp_path / "work", commands)
    case.reset()
    case.start(Aim(signal.SIGKILL, "before", count), WITHOUT_EXCHANGE="1")
    assert end(case).code == -signal.SIGKILL
    target = case.work / "out" / "b"
    assert target.exists() == (count != 4)
    if reads:
        assert main(["check", str(target)]) == 0
        case.require_whole()
    case.require_repaired()


def test_a_bundle_is_restored_only_from_what_a_replacement_left(tmp_path: Path) -> None:
    (tmp_path / ".b.12345678.old").mkdir()
    (tmp_path / ".b.1234567.old").mkdir()
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.1234567.old", "b"]
