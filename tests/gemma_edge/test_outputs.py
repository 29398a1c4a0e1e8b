"""Where a command may write: no input, no special file, and nobody else's file is ever lost, whatever the verb."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from output_work import OURS, Work, contents, copy_of, prepare

import gemma_edge
from gemma_edge.cli import main


@dataclass(frozen=True)
class Verb:
    """A way to name an output: `arguments` gets the folder and the output. writes: the kind, a name in `ours`."""

    name: str
    arguments: Callable[[Work, Path], list[str]]
    writes: str
    ending: str
    reads: tuple[str, ...]
    makes_directory: bool = False


VERBS = [
    Verb("convert", lambda w, o: ["convert", str(w / "checkpoint"), "-o", str(o), "--no-verify", "--context", "32"],
         "bundle", "", ("checkpoint",), True),
    Verb("convert from a slice file", lambda w, o: ["convert", str(w / "checkpoint"), "-o", str(o), "--slice",
         str(w / "slice.json"), "--quant", str(w / "recipe.json"), "--adapter", f"{w / 'adapter'}=0.5"], "bundle", "",
         ("checkpoint", "slice.json", "recipe.json", "adapter"), True),
    Verb("convert with calibration", lambda w, o: ["convert", str(w / "checkpoint"), "-o", str(o), "--no-verify",
         "--calibrate", str(w / "text"), "--calibrate-media", str(w / "media"), "--drafter", str(w / "drafter")],
         "bundle", "", ("text", "media", "drafter"), True),
    Verb("export", lambda w, o: ["export", str(w / "bundle"), "-o", str(o)], "export.litertlm", ".litertlm",
         ("bundle",)),
    Verb("export --sign", lambda w, o: ["export", str(w / "bundle"), "-o", str(o), "--sign", str(w / "key.pem")],
         "export.litertlm", ".litertlm", ("bundle", "key.pem")),
    Verb("rebuild", lambda w, o: ["rebuild", str(w / "bundle/lock.json"), "--checkpoint", str(w / "checkpoint"), "-o",
         str(o), "--adapter", str(w / "adapter")], "bundle", "", ("bundle/lock.json", "checkpoint", "adapter"), True),
    Verb("rebuild of what was calibrated", lambda w, o: ["rebuild", str(w / "bundle/lock.json"), "--checkpoint",
         str(w / "checkpoint"), "-o", str(o), "--calibrate", str(w / "text"), "--calibrate-media", str(w / "media"),
         "--drafter", str(w / "drafter")], "bundle", "", ("text", "media", "drafter"), True),
    Verb("rebuild of an export", lambda w, o: ["rebuild", str(w / "export.litertlm"), "--checkpoint",
         str(w / "checkpoint"), "-o", str(o)], "export.litertlm", ".litertlm", ("export.litertlm", "checkpoint")),
    Verb("report", lambda w, o: ["report", str(w / "results.jsonl"), str(w / "second.jsonl"), "-o", str(o)],
         "page.html", ".html", ("results.jsonl", "second.jsonl")),
    Verb("inspect as SVG", lambda w, o: ["inspect", str(w / "bundle"), "--plot", str(o)], "plot.svg", ".svg",
         ("bundle",)),
    Verb("inspect as PNG", lambda w, o: ["inspect", str(w / "checkpoint"), "--plot", str(o)], "plot.png", ".png",
         ("checkpoint",)),
    Verb("bench", lambda w, o: ["bench", str(w / "bundle"), "--host", "-p", "8", "-n", "2", "-r", "1", "--results",
         str(o)], "results.jsonl", ".jsonl", ("bundle",)),
    Verb("bench of a file", lambda w, o: ["bench", str(w / "export.litertlm"), "--host", "--runner",
         "litert_lm_advanced_main", "--binary", str(w / "program"), "--results", str(o)], "results.jsonl", ".jsonl",
         ("export.litertlm", "program")),
    Verb("demo", lambda w, o: ["demo", "--checkpoint", str(w / "checkpoint"), "-o", str(o)], "bundle", "",
         ("checkpoint",), True),
    Verb("demo --report", lambda w, o: ["demo", "--checkpoint", str(w / "checkpoint"), "--device", "emulated", "-o",
         str(w / "bundle"), "--results", str(w / "results.jsonl"), "--report", str(o)], "page.html", ".html",
         ("checkpoint", "bundle", "results.jsonl")),
    Verb("demo --results", lambda w, o: ["demo", "--checkpoint", str(w / "checkpoint"), "--device", "emulated", "-o",
         str(w / "bundle"), "--report", str(w / "out" / "p.html"), "--results", str(o)], "results.jsonl", ".jsonl",
         ("checkpoint", "bundle")),
    Verb("emulator", lambda w, o: ["emulator", "--port", "0", "--root", str(o)], "device", "", (), True),
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, random_bundle: Path) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"), random_checkpoint, random_bundle)


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Work:
    return copy_of(prepared, tmp_path / "work")


def require_refused(verb: Verb, work: Work, output: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The verb refuses to write there, with or without --force, in one line, and nothing has changed."""
    before = contents(work.folder)
    for force in ([], ["--force"]):
        assert main([*verb.arguments(work, output), *force]) == 2, (verb.name, output, force)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and all(word in line for word in (str(output), *words)), line
        assert contents(work.folder) == before


each_verb = pytest.mark.parametrize("verb", VERBS, ids=[verb.name for verb in VERBS])


@pytest.mark.slow
@each_verb
def test_no_verb_writes_to_a_device_a_fifo_or_a_socket(
    verb: Verb, work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work / "out")  # the name of a socket is short
    os.mkfifo(f"fifo{verb.ending}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"socket{verb.ending}")
        os.symlink("/dev/null", f"device{verb.ending}")
        os.symlink(f"fifo{verb.ending}", f"link{verb.ending}")
        for name, what in (("fifo", "a FIFO"), ("socket", "a socket"), ("device", "a device"), ("link", "a FIFO")):
            require_refused(verb, work, work / "out" / f"{name}{verb.ending}", capsys, what)


@pytest.mark.slow
@each_verb
def test_no_verb_writes_to_its_inputs_or_into_them(verb: Verb, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    for reads in verb.reads:
        source, name = work / reads, reads.replace("/", "-")
        link = work / "out" / f"link-{name}{verb.ending}"
        link.symlink_to(source)
        is_same_type = source.is_dir() == verb.makes_directory
        words = ["input of this command"] if is_same_type and source.suffix in (verb.ending, "") else []
        require_refused(verb, work, link, capsys, *words)
        if not source.is_dir():
            hard = work / "out" / f"hard-{name}{verb.ending}"
            os.link(source, hard)
            require_refused(verb, work, hard, capsys)
            continue
        require_refused(verb, work, source / f"new{verb.ending}", capsys, "inside an input of this command")
        folder = work / "out" / f"folder-{name}"
        folder.symlink_to(source)
        require_refused(verb, work, folder / f"new{verb.ending}", capsys, "inside an input of this command")
        for entry in sorted(source.iterdir()):
            inside = work / "out" / f"{name}-{entry.name}{verb.ending}"
            inside.symlink_to(entry)
            require_refused(verb, work, inside, capsys)


@pytest.mark.slow
@each_verb
def test_no_verb_replaces_what_a_link_in_its_input_points_to(
    verb: Verb, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    """A download from Hugging Face is a directory of links into another."""
    for name in verb.reads:
        source = work / name
        if source.is_dir():
            blobs = work / "out" / f"blobs-{name}"
            blobs.mkdir()
            for entry in sorted(source.iterdir()):
                moved = blobs / f"{entry.name}{verb.ending}"
                entry.rename(moved)
                entry.symlink_to(moved)
            require_refused(verb, work, next(blobs.iterdir()), capsys)
            if verb.makes_directory:
                require_refused(verb, work, blobs, capsys, "a directory that contains an input")


@each_verb
def test_a_place_that_cannot_be_written_is_one_error(
    verb: Verb, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    out, end = work / "out", verb.ending
    (out / f"loop{end}").symlink_to(f"loop{end}")
    (out / f"dangling{end}").symlink_to(out / "nowhere" / "x")
    (out / "file").write_text("mine")
    for name in (f"nowhere/x{end}", f"dangling{end}", f"loop{end}", f"file/x{end}", "x" * 300 + end):
        require_refused(verb, work, out / name, capsys)


@each_verb
def test_a_file_is_never_replaced_by_a_directory_nor_a_directory_by_a_file(
    verb: Verb, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    other = work / "out" / f"other{verb.ending}"
    if verb.makes_directory:
        other.write_text("mine")
    else:
        other.mkdir()
    require_refused(verb, work, other, capsys)


@each_verb
def test_what_is_not_of_the_written_kind_is_kept_without_force(
    verb: Verb, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    targets: list[Path] = []
    for name in (*OURS, "foreign"):
        target = work / "out" / f"copy-{name}{verb.ending}"
        if name == "foreign" and verb.makes_directory:
            target.mkdir()
            (target / "photo.jpg").write_bytes(b"mine")
        elif name == "foreign":
            target.write_bytes(b"mine")
        elif (work / name).is_dir() == verb.makes_directory and name != verb.writes:
            (shutil.copytree if verb.makes_directory else shutil.copyfile)(work / name, target)
        else:
            continue
        targets.append(target)
        link = work / "out" / f"link-{name}{verb.ending}"
        link.symlink_to(target)
        targets.append(link)
    before = contents(work.folder)
    for target in targets:
        assert main(verb.arguments(work, target)) == 2, target
        (line,) = capsys.readouterr().err.splitlines()
        assert str(target) in line and "--force" in line
        assert contents(work.folder) == before


@pytest.mark.parametrize("ending", [".litertlm", ".tflite", ".LITERTLM"])
def test_a_bundle_is_never_named_like_a_file(ending: str, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (verb for verb in VERBS if verb.name in ("convert", "demo")):
        require_refused(verb, work, work / "out" / f"model{ending}", capsys, "a bundle, a directory")


@pytest.mark.full
@pytest.mark.parametrize("name", ["convert", "export", "report", "inspect as PNG"])
def test_with_force_a_strangers_file_is_replaced_and_afterwards_it_is_ours(name: str, work: Work) -> None:
    verb = next(verb for verb in VERBS if verb.name == name)
    target = work / "out" / f"x{verb.ending}"
    link = work / "out" / f"link{verb.ending}"
    link.symlink_to(target)
    if verb.makes_directory:
        target.mkdir()
        (target / "photo.jpg").write_bytes(b"not needed")
    else:
        target.write_bytes(b"not needed")
    assert main([*verb.arguments(work, link), "--force"]) == 0
    assert link.is_symlink()
    written = contents(work / "out")
    assert not any(b"not needed" in data for _, data in written.values())
    assert main(verb.arguments(work, link)) == 0
    assert contents(work / "out") == written, "written again over its own, with the same bytes"


@pytest.mark.full
def test_results_replace_a_strangers_file_with_force_and_are_appended_to_their_own(work: Work) -> None:
    verb = next(verb for verb in VERBS if verb.name == "bench")
    target = work / "out" / "notes.txt"
    target.write_text("not needed")
    assert main([*verb.arguments(work, target), "--force"]) == 0
    first = target.read_bytes()
    assert first.startswith(b'{"format":"gemma-edge-results') and first.count(b"\n") == 1
    assert main(verb.arguments(work, target)) == 0
    assert target.read_bytes().startswith(first) and target.read_bytes().count(b"\n") == 2


def test_a_bench_that_measured_nothing_leaves_no_file(work: Work) -> None:
    target = work / "out" / "results.jsonl"
    argv = ["bench", str(work / "bundle"), "--device", "127.0.0.1:9", "--results", str(target)]
    assert main(argv) == 3
    assert list((work / "out").iterdir()) == []


def test_the_directory_in_use_is_not_replaced(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = work / "out" / "deep"
    inside.mkdir()
    monkeypatch.chdir(inside)
    require_refused(VERBS[0], work, work / "out", capsys, "the working directory")
    monkeypatch.setenv("HOME", str(work / "out"))
    monkeypatch.chdir(work.folder)
    require_refused(VERBS[0], work, work / "out", capsys, "your home")


@pytest.mark.parametrize("name", ["convert", "export", "report", "bench"])
def test_functions_of_python_keep_the_same_rules(name: str, work: Work) -> None:
    target = work / "out" / "x"
    target.write_bytes(b"mine")
    calls: dict[str, Callable[[], object]] = {
        "convert": lambda: gemma_edge.convert(work / "checkpoint", work / "checkpoint" / "x"),
        "export": lambda: gemma_edge.export(work / "bundle", target),
        "report": lambda: gemma_edge.report([work / "results.jsonl"], work / "results.jsonl", force=True),
        "bench": lambda: gemma_edge.bench(work / "bundle", host=True, results=target),
    }
    before = contents(work.folder)
    with pytest.raises(gemma_edge.ToolkitError):
        calls[name]()
    assert contents(work.folder) == before
