"""The command line: verbs, JSON, exit codes, one-line errors, interrupts."""

from __future__ import annotations

import argparse
import errno
import importlib.abc
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from paths import EXAMPLE, REPOSITORY
from waiting import PATIENCE_S

from gemma_edge import __main__, cli
from toolkit.runtime.session import Session

VERBS = [
    "inspect",
    "convert",
    "check",
    "verify",
    "run",
    "chat",
    "export",
    "devices",
    "push",
    "bench",
    "probe",
    "report",
    "compare",
    "emulator",
    "demo",
]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        value = json.loads(line)
        assert isinstance(value, dict)
        return value


Command = Callable[..., Outcome]
LONG = "a" * 300
"""No file's name is as long."""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command in this process; `stdin` is what it reads: bytes are decoded strictly."""
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "weight-cache"))

    def run(*arguments: object, stdin: str | bytes = "") -> Outcome:
        text = io.StringIO(stdin) if isinstance(stdin, str) else io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "strict")
        monkeypatch.setattr(sys, "stdin", text)
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def assert_one_line_error(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


# --- use --------------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_the_exit_codes(command: Command) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    assert all(f"\n    {verb} " in outcome.out for verb in VERBS)
    assert "130 interrupted" in outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_ends_with_examples(command: Command, verb: str) -> None:
    outcome = command(verb, "--help")
    assert outcome.code == 0
    examples = outcome.out.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(f"gemma-edge {verb}" in line for line in examples)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-q"],
        ["nonsense"],
        ["run"],
        ["run", "b", "-p", "x", "-n", "0"],
        ["run", "b", "-p", "x", "--temperature", "warm"],
        ["run", "b", "-p", "x", "--seed", "-1"],
        ["convert", "c", "-o", "b", "--sizes", "a", "--budget", "3GB"],
        ["convert", "c", "-o", "b", "--prefill", "8,x"],
        ["convert", "c", "-o", "b", "--sizes", "a,,b"],
        ["verify", "b", "--checkpoint", "c", "--tokens", "1.5"],
        ["devices", "--timeout", "0"],
        ["devices", "--timeout", "-5"],
        ["devices", "--timeout", "1e300"],
        ["bench", "b", "--cool-down", "1e300"],
    ],
)
def test_wrong_use_is_one_line_and_code_2(command: Command, arguments: list[str]) -> None:
    assert_one_line_error(command(*arguments), 2, "--help")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "missing", "-p", "x"], ["missing", "no manifest.json", "gemma-edge convert"]),
        (["run", "missing", "-p", "x", "--top-p", "2"], ["top-p", "found 2.0"]),
        (["inspect", "missing"], ["missing", "no such directory"]),
        (["check", "missing"], ["missing", "no such file or directory"]),
        (["export", "missing", "-o", "x.litertlm"], ["missing", "manifest.json"]),
        (["convert", "missing", "-o", "b"], ["missing", "no such directory"]),
        (["convert", "missing", "-o", "b", "--quant", "int3"], ["recipe", "int3"]),
        (["convert", "missing", "-o", "b", "--budget", "cheap"], ["budget", "cheap"]),
        (["verify", "missing", "--checkpoint", "c"], ["missing", "manifest.json"]),
        (["emulator", "--key", "missing"], ["missing: no such file"]),
        (["emulator", "--key", "/"], ["/: not a regular file"]),
        *((words, ["file name too long"]) for words in (["check", LONG], ["inspect", LONG], ["run", LONG, "x"])),
    ],
)
def test_bad_input_is_one_line_that_names_it(command: Command, arguments: list[str], parts: Sequence[str]) -> None:
    assert_one_line_error(command(*arguments), 2, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["convrt", "c"], ["'convrt'", "did you mean convert?", "gemma-edge --help"]),
        (["convert", "c", "-o", "b", "--quan", "int8"], ["--quan int8", "did you mean --quant?", "convert --help"]),
        (["run", "b", "-p", "x", "--imgae=a.png"], ["--imgae=a.png", "did you mean --image?"]),
        (["run", "b", "-p", "x", "--temp", "1"], ["did you mean --temperature?"]),
        (["run", "b", "-p", "x", "--temperatures=1"], ["did you mean --temperature?"]),
        (["convert", "c", "-o", "b", "--quantization", "int8"], ["did you mean --quant?"]),
        (["quantize", "c"], ["did you mean convert?"]),
        (["version"], ["did you mean --version?"]),
        (["demo", "--measure", "x"], ["unrecognized arguments: --measure x; see"]),
        (["check", "b", "again"], ["unrecognized arguments: again;"]),
    ],
)
def test_a_misspelled_word_is_named_beside_the_right_one(
    command: Command, arguments: list[str], parts: list[str]
) -> None:
    assert_one_line_error(command(*arguments), 2, *parts)


def test_the_program_alone_shows_its_help_and_says_that_a_verb_is_missing(command: Command) -> None:
    alone, asked, verb = command(), command("--help"), command("run", "--help")
    assert (alone.code, alone.out, asked.code) == (2, "", 0)
    assert alone.err == asked.out == command("help").out
    assert command("help", "run").out == command("--help", "run").out == verb.out != asked.out
    assert command("-V").out == command("--version").out


def test_an_answer_is_drawn_as_min_p_and_the_repeat_penalty_say(command: Command, random_bundle: Path) -> None:
    def ids(*words: str) -> list[int]:
        found: list[int] = command("run", random_bundle, "the cat", "--raw", "-n", 8, "--json", *words).json[
            "token_ids"
        ]
        return found

    greedy, hot = ids(), ("--temperature", "9", "--top-k", "0", "--top-p", "1")
    assert ids(*hot) != greedy == ids(*hot, "--min-p", "1")
    assert len(set(ids("--repeat-penalty", "100"))) == 8 > len(set(ids("--repeat-penalty", "0.01")))
    assert_one_line_error(command("run", random_bundle, "x", "--min-p", "2"), 2, "min-p", "found 2.0")
    assert_one_line_error(command("chat", random_bundle, "--repeat-penalty", "0"), 2, "repeat-penalty", "found 0.0")


def test_a_prompt_has_one_place(command: Command, random_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("the cat", encoding="utf-8")
    rest = ("--raw", "-n", 3, "--json")
    wanted = command("run", random_bundle, "-p", "the cat", *rest).json["token_ids"]
    ways = (
        ("run", *rest, random_bundle, "the cat"),
        ("run", random_bundle, *rest, "the cat"),
        ("run", *rest, "-f", file, random_bundle),
        ("run", "-p", "the cat", random_bundle, *rest),
    )
    assert [command(*words).json["token_ids"] for words in ways] == [wanted] * 4
    assert command("run", random_bundle, "-", *rest, stdin="the cat\n").json["token_ids"] == wanted
    assert_one_line_error(command("run", random_bundle), 2, "no prompt", "TEXT, with -p or with -f")
    assert_one_line_error(command("run", random_bundle, "a", "-p", "b"), 2, "two prompts")
    assert_one_line_error(command("run", random_bundle, "-f", tmp_path / "no"), 2, "no such file")


def test_help_and_version_import_no_verb() -> None:
    program = (
        "import sys; from gemma_edge import cli; cli.main(sys.argv[1:]); "
        "assert 'numpy' not in sys.modules and 'gemma_edge.commands.run' not in sys.modules"
    )
    for option in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", program, option], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("name", "verb", "parts"),
    [
        ("m.gguf", "inspect", ["found a file", "GGUF", "convert the checkpoint"]),
        ("m.litertlm", "inspect", ["found 4 bytes", "gemma-edge check"]),
        ("m.litertlm", "run", ["found a file", "LiteRT-LM", "the bundle that it was exported from"]),
    ],
)
def test_other_systems_files_get_a_way_on(
    command: Command, tmp_path: Path, name: str, verb: str, parts: list[str]
) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    assert_one_line_error(command(verb, tmp_path / name, *(["-p", "x"] if verb == "run" else [])), 2, *parts)
    if verb == "inspect":
        assert_one_line_error(command(verb, tmp_path), 2, "no config.json", parts[-1])


def test_a_prompt_of_bytes_that_are_no_text_is_refused(command: Command, random_bundle: Path) -> None:
    assert_one_line_error(command("run", random_bundle, "-p", "a\udcff"), 2, "prompt", "from character 1", "UTF-8")
    for stdin in ("caf\udce9", b"caf\xe9"):
        outcome = command("run", random_bundle, "-p", "-", stdin=stdin)
        assert_one_line_error(outcome, 2, "standard input", "from character 3", "UTF-8")


def test_verbose_errors_have_a_traceback_before_their_line(command: Command) -> None:
    outcome = command("-v", "inspect", "missing")
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: missing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [("--help >&-", 0), ("help run >&-", 0), ("-V 2>&-", 0), ("check missing >&- 2>&-", 2), ("check missing <&-", 2)],
)
def test_a_standard_stream_that_is_closed_is_one_that_nobody_reads(words: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m gemma_edge {words}"
    outcome = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr.count("\n")) == (code, "<&-" in words)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--help >/dev/full", 3, "error: standard output: no space left on device\n"),
        ("completion fish --json >/dev/full", 3, "error: standard output: no space left on device\n"),
        ("check missing 2>/dev/full", 2, ""),
        ("check missing 2>&1 | true", 2, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stream_that_cannot_be_written_changes_no_exit_code_but_0(
    words: str, code: int, said: str, unbuffered: str
) -> None:
    """Stdout is where results go; what would be said on stderr is lost."""
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m gemma_edge {words}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    outcome = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stderr) == (code, said)


def test_a_chat_ends_when_nobody_can_read_its_answers(
    command: Command, chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "standard output")

    monkeypatch.setattr("gemma_edge.terminal.to_stdout", full)
    outcome = command("chat", chat_bundle, "-n", 2, "-q", stdin="cat\ncat\n")
    assert (outcome.code, outcome.err) == (3, "error: standard output: no space left on device\n")


def test_check_and_push_agree_on_what_is_no_model(command: Command, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"LITERT")
    for verb in ("check", "push"):
        assert_one_line_error(command(verb, tmp_path / "weights.bin"), 2, "a file of another kind", "a .litertlm file")
        assert_one_line_error(command(verb, tmp_path / "no"), 2, "no such file or directory", "a .litertlm file")


def test_a_fault_of_our_own_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr("gemma_edge.commands.check.check", broken)
    assert_one_line_error(command("check", "x"), 3, "KeyError", "surprise", "-v")


def test_a_pipe_that_breaks_is_a_fault_unless_it_is_ours(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to a device breaks with the same error; it ended the command as if all were done."""

    def broken(*_: object, **__: object) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("gemma_edge.commands.check.check", broken)
    assert_one_line_error(command("check", "x"), 3, "broken pipe")


@pytest.mark.slow
def test_global_options_stand_before_or_after_the_verb(command: Command, random_bundle: Path) -> None:
    assert command("--json", "check", random_bundle).json == command("check", random_bundle, "--json").json


# --- inspect, check, export -------------------------------------------------------------------------------------------


def test_inspect_shows_a_checkpoints_groups_and_sizes(command: Command, random_checkpoint: Path) -> None:
    value = command("inspect", random_checkpoint, "--json").json
    assert value["kind"] == "checkpoint"
    assert value["architecture"] == "Gemma3nForCausalLM"
    assert value["groups"]["token_embedding"] == {"parameters": 300 * 32, "bytes": 300 * 32 * 4}
    assert {"layers", "parameters_loaded", "parameters_effective", "memory_bytes"} <= set(value["sizes"]["small"])
    assert "per_layer_embedding" in command("inspect", random_checkpoint).out


def test_inspect_counts_a_bundle_as_it_counts_its_checkpoint(
    command: Command, random_checkpoint: Path, random_bundle: Path
) -> None:
    """But for Google's counting, which takes the K/V of layers that share a cache for parameters."""
    checkpoint, bundle = (command("inspect", path, "--json").json for path in (random_checkpoint, random_bundle))
    assert bundle["kind"] == "bundle"
    assert list(bundle["sizes"]) == ["full", "small"]
    unused_kv = 2 * (2 * 16 * 32 + 8)
    for name, size in bundle["sizes"].items():
        for count in ("parameters_effective", "parameters_loaded"):
            assert size[count] == checkpoint["sizes"][name][count] - unused_kv
    assert bundle["groups"]["text"]["parameters"] == bundle["sizes"]["full"]["parameters_effective"]
    small = bundle["sizes"]["small"]
    assert small["memory_bytes"] > small["parameters_effective"] * 4
    assert "memory" in command("inspect", random_bundle).out


@pytest.mark.slow
def test_check_finds_a_sound_bundle_sound_and_a_broken_one_broken(
    command: Command, random_bundle: Path, tmp_path: Path
) -> None:
    sound: dict[str, object] = {"ok": True, "export_refusal": None}
    sound |= {key: [] for key in ("faults", "gpu_refusals", "groups_left_out", "unknown_graphs")}
    assert command("check", random_bundle, "--json").json == sound
    shutil.copytree(random_bundle, tmp_path / "b")
    with open(tmp_path / "b" / "embedder.tflite", "ab") as file:
        file.write(b"x")
    outcome = command("check", tmp_path / "b", "--json")
    assert outcome.code == 1
    assert outcome.json["ok"] is False
    assert set(outcome.json["faults"][0]) == {"file", "fault", "found", "wanted"}
    assert "embedder.tflite" in command("check", tmp_path / "b").out


@pytest.mark.slow
def test_export_writes_a_container_that_check_accepts(command: Command, random_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.litertlm"
    value = command("export", random_bundle, "-o", path, "--size", "small", "--json").json
    assert value == {
        "file": str(path),
        "bytes": path.stat().st_size,
        "size": "small",
        "groups": ["text"],
        "model_type": "gemma3n",
    }
    assert command("check", path).code == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [("missing/m.litertlm", "there is no directory "), (".", "found a directory, wanted the name of a file")],
)
def test_export_to_where_no_file_can_be_says_so(
    command: Command, random_bundle: Path, tmp_path: Path, path: str, words: str
) -> None:
    outcome = command("export", random_bundle, "-o", tmp_path / path)
    assert outcome.code == 2
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("text,vision", "found no group vision, wanted one of"),
        ("vision", "--groups: vision without text, the language model"),
        ("text,", "wanted names separated by commas"),
    ],
)
def test_export_of_groups_that_cannot_be_says_why(
    command: Command, random_bundle: Path, tmp_path: Path, groups: str, words: str
) -> None:
    outcome = command("export", random_bundle, "-o", tmp_path / "m.litertlm", "--groups", groups)
    assert outcome.code == 2
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


# --- convert, verify --------------------------------------------------------------------------------------------------


def test_convert_into_a_directory_that_is_not_there_says_to_create_it(
    command: Command, random_checkpoint: Path, tmp_path: Path
) -> None:
    outcome = command("convert", random_checkpoint, "-o", tmp_path / "none" / "b", "--context", 32, "--prefill", 4)
    assert_one_line_error(outcome, 2, "none/b: there is no directory", "create it")


@pytest.mark.slow
def test_convert_judges_and_writes_a_bundle(command: Command, random_checkpoint: Path, tmp_path: Path) -> None:
    value = command(
        "convert", random_checkpoint, "-o", tmp_path / "b", "--quant", "f32", "--sizes", "full,small",
        "--context", 64, "--prefill", "16,4", "--json",
    ).json  # fmt: skip
    assert value["bundle"] == str(tmp_path / "b")
    assert value["seconds"] > 0 and value["peak_rss_bytes"] > 0
    assert set(value["groups"]["text"]) == {"files", "bytes", "parameters"}
    assert value["verify"]["passed"] is True
    assert set(value["verify"]["sizes"]) == {"full", "small"}
    assert command("check", tmp_path / "b").code == 0


@pytest.mark.slow
def test_convert_chooses_scales_as_asked(command: Command, random_checkpoint: Path, tmp_path: Path) -> None:
    convert = ("convert", random_checkpoint, "--no-verify", "--context", 64, "--prefill", "4", "--ple-quant", "int8")
    for search in ("absmax", "mse"):
        assert command(*convert, "-o", tmp_path / search, "--search", search).code == 0
    assert command(*convert, "-o", tmp_path / "default").code == 0
    quant = {
        path.name: json.loads((path / "manifest.json").read_text())["quant"]
        for path in tmp_path.iterdir()
        if path.is_dir()
    }
    assert quant["default"] == quant["mse"]
    for role in ("text", "ple"):
        assert {rule["search"] for rule in quant["absmax"][role]["rules"]} == {"absmax"}
    shards = [(tmp_path / name / "ple_00000.bin").read_bytes() for name in ("absmax", "mse")]
    assert shards[0] != shards[1]


@pytest.mark.slow
def test_convert_writes_nothing_that_fails_the_gate(command: Command, random_checkpoint: Path, tmp_path: Path) -> None:
    sizes = ("--context", 64, "--prefill", "4")
    arguments = ("convert", random_checkpoint, "-o", tmp_path / "b", "--quant", "int4-channel", *sizes)
    outcome = command(*arguments)
    assert outcome.code == 1
    assert "--no-verify" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "b").exists()
    assert command(*arguments, "--no-verify").code == 0
    assert (tmp_path / "b" / "manifest.json").exists()


@pytest.mark.slow
def test_convert_takes_a_budget_or_a_slice_file(command: Command, random_checkpoint: Path, tmp_path: Path) -> None:
    plain = ("--no-verify", "--context", 32, "--prefill", 4)
    common = (*plain, "--json")
    sizes = command("inspect", random_checkpoint, "--json").json["sizes"]
    budget = f"{sizes['small']['parameters_effective'] / 1e6:.6f}M"
    value = command("convert", random_checkpoint, "-o", tmp_path / "a", "--budget", budget, *common).json
    assert value["sizes"] == ["small"]
    own = {"name": "own", "layers": [0, 1, 2, 3, 4], "ffn_sizes": [8] * 5}
    (tmp_path / "own.json").write_text(json.dumps(own))
    value = command("convert", random_checkpoint, "-o", tmp_path / "c", "--slice", tmp_path / "own.json", *common).json
    assert value["sizes"] == ["own"]
    outcome = command("convert", random_checkpoint, "-o", tmp_path / "d", "--sizes", "huge", *plain)
    assert_one_line_error(outcome, 2, "huge", "small")


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_that_argparse_stumbles_over_is_still_that_signal(
    end: BaseException, code: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 puts back what it has not changed yet (`finally` in parse_known_intermixed_args)."""

    def parsed(*_: object) -> NoReturn:
        try:
            raise end
        finally:
            raise AttributeError("save_nargs")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", parsed)
    outcome = command("inspect", "x")
    assert (outcome.code, outcome.err) == (code, {130: "interrupted\n", 143: "terminated\n"}[code])


def test_an_interrupted_conversion_leaves_nothing(
    command: Command, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("converters.gate.verify", interrupted)
    (tmp_path / "out").mkdir()
    arguments = ("convert", random_checkpoint, "-o", tmp_path / "out" / "b", "--context", 32, "--prefill", 4)
    outcome = command(*arguments)
    assert outcome.code == 130
    assert outcome.err == "interrupted\n"
    assert os.listdir(tmp_path / "out") == []


def test_verify_measures_every_size_or_those_named(
    command: Command, random_checkpoint: Path, random_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("verify", random_bundle, "--checkpoint", random_checkpoint, "--tokens", 80)
    outcome = command(*arguments, "--json")
    assert outcome.code == 0
    assert outcome.json["passed"] is True
    assert set(outcome.json["sizes"]["small"]) >= {
        "kl_divergence_mean", "kl_divergence_max", "top1_agreement", "perplexity_checkpoint", "perplexity_bundle",
        "tokens",
    }  # fmt: skip
    (tmp_path / "t.txt").write_text("the cat sat " * 20)
    table = command(*arguments, "--size", "small", "--text", tmp_path / "t.txt").out
    assert "small" in table and "full" not in table
    assert_one_line_error(command(*arguments, "--size", "huge"), 2, "huge", "full or small")


def test_verify_says_when_the_checkpoint_is_another_one_and_fails(
    command: Command, random_checkpoint: Path, random_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(random_checkpoint, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    weights = np.frombuffer(data, np.float32, offset=len(data) - 40_000)
    weights[:] = weights[::-1].copy()
    (other / "model.safetensors").write_bytes(data)
    outcome = command("verify", random_bundle, "--checkpoint", other, "--tokens", 80)
    assert outcome.code == 1
    assert "warning: the bundle was not made from" in outcome.err
    assert "FAILED" in outcome.out


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_streams_text_to_stdout_and_figures_to_stderr(command: Command, random_bundle: Path) -> None:
    outcome = command("run", random_bundle, "-p", "the cat", "--raw", "-n", 5)
    assert outcome.code == 0
    assert outcome.out.endswith("\n")
    assert "decode" in outcome.err
    # <bos>, "the", " cat", and all but the last of the five that were generated.
    assert re.search(r"\[PLE: 7 rows; \d hits; [\d.]+ kB read; \d+ page faults, \d+ of them from flash\]", outcome.err)
    quiet = command("run", random_bundle, "-p", "the cat", "--raw", "-n", 5, "-q")
    assert (quiet.out, quiet.err) == (outcome.out, "")


def test_run_as_json_holds_what_other_programs_rely_on(command: Command, random_bundle: Path) -> None:
    text = command("run", random_bundle, "-p", "the cat", "--raw", "-n", 5, "-q").out
    value = command("run", random_bundle, "-p", "-", "--raw", "-n", 5, "--json", stdin="the cat\n").json
    assert set(value) >= {
        "text", "token_ids", "prompt_tokens", "size", "prefill_tokens_per_s", "decode_tokens_per_s",
        "time_to_first_token_s", "peak_rss_bytes", "memory", "groups_loaded",
    }  # fmt: skip
    assert value["text"] + "\n" == text
    assert (value["prompt_tokens"], value["size"], len(value["token_ids"])) == (3, "full", 5)
    assert value["groups_loaded"] == ["per_layer_embedding", "text", "token_embedding"]
    memory = value["memory"]
    assert set(memory["groups"]) == set(value["groups_loaded"]) and set(memory["peaks"]) == {
        "load",
        "prefill",
        "decode",
    }
    kinds = sum(memory[f"rss_{kind}_bytes"] for kind in ("anonymous", "file", "shmem"))
    assert 0 < memory["effective_bytes"] <= memory["rss_bytes"] == kinds
    assert value["peak_rss_bytes"] >= max(memory["peaks"].values())


def test_run_puts_the_prompt_through_the_chat_template_unless_raw(command: Command, random_bundle: Path) -> None:
    raw = command("run", random_bundle, "-p", "cat", "--raw", "-n", 1, "--json").json
    assert raw["prompt_tokens"] == 2
    spelled = command("run", random_bundle, "-p", "<bos>cat", "--raw", "-n", 1, "--json").json
    assert spelled["prompt_tokens"] == 2
    chat = command("run", random_bundle, "-p", "t", "-n", 1, "--json").json
    assert chat["prompt_tokens"] > 2


def test_run_is_repeatable_by_its_seed(command: Command, random_bundle: Path) -> None:
    def tokens(seed: int) -> object:
        arguments = ("run", random_bundle, "-p", "cat", "--raw", "-n", 12, "--temperature", 2, "--json", "--seed", seed)
        return command(*arguments).json["token_ids"]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_run_says_the_same_with_drafts_and_counts_them(command: Command, drafting_bundle: Path) -> None:
    arguments = ("run", drafting_bundle, "-p", "the cat the cat the", "--raw", "-n", 12, "--ignore-eos")
    plain = command(*arguments, "--json").json
    drafted = command(*arguments, "--json", "--speculative").json
    assert plain["drafts"] is None and drafted["token_ids"] == plain["token_ids"]
    counts = drafted["drafts"]
    assert 0 <= counts["accepted"] <= counts["offered"] and counts["steps"] + counts["accepted"] == 12
    assert "drafts accepted" in command(*arguments, "--speculative").err


def test_a_bundle_without_steps_for_drafts_names_the_command(command: Command, random_bundle: Path) -> None:
    arguments = ("run", random_bundle, "-p", "cat", "--raw", "--speculative")
    assert_one_line_error(command(*arguments), 2, str(random_bundle), "convert the checkpoint with --draft-tokens 3")


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["off", "memory", "DIR"])
def test_run_says_the_same_whatever_the_weight_cache(
    command: Command, random_bundle: Path, tmp_path: Path, cache: str
) -> None:
    place = tmp_path / "own" if cache == "DIR" else cache
    arguments = ("run", random_bundle, "-p", "cat", "--raw", "-n", 4, "-q")
    assert command(*arguments, "--weight-cache", place).out == command(*arguments).out
    assert len(list((tmp_path / "weight-cache").glob("*.xnnpack"))) == 1
    assert len(list((tmp_path / "own").glob("*.xnnpack"))) == (cache == "DIR")


def test_run_says_that_it_rearranges_weights_only_the_first_time(
    command: Command, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_edge.options.session._WORTH_A_WORD_BYTES", 1)
    arguments = ("run", random_bundle, "-p", "cat", "--raw", "-n", 1)
    assert "rearranging the weights" in command(*arguments).err
    assert "rearranging the weights" not in command(*arguments).err


def test_a_prompt_beyond_the_context_is_refused(command: Command, random_bundle: Path) -> None:
    outcome = command("run", random_bundle, "-p", "cat " * 50, "--raw")
    assert_one_line_error(outcome, 2, "wanted at most 40", "--context")


def test_a_prompt_with_a_place_for_an_image_is_refused(
    command: Command, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `<image_soft_token>` is in a real bundle: an id with an embedding of its own kind."""
    monkeypatch.setattr("toolkit.runtime.bundle.Bundle.drawable_ids", lambda *_: 270)
    assert_one_line_error(
        command("run", random_bundle, "-p", "the cat", "--raw"), 2, "prompt", "stands for an image or a sound"
    )
    assert "error: prompt" in command("chat", random_bundle, stdin="the cat\n").err


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_answer_keeps_what_was_said(
    command: Command, random_bundle: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    whole = command("run", random_bundle, "-p", "cat", "--raw", "-n", 8, "--json").json["token_ids"]
    decode, calls = Session.decode, [0]

    def interrupted(session: Session, token: int) -> object:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return decode(session, token)

    monkeypatch.setattr(Session, "decode", interrupted)
    outcome = command("run", random_bundle, "-p", "cat", "--raw", "-n", 8, *(["--json"] if as_json else []))
    assert outcome.code == 130
    if as_json:
        assert outcome.json["token_ids"] == whole[:3]
        assert outcome.json["ending"] == "interrupted"
    else:
        assert outcome.out.endswith("\n")


# --- chat -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chat_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with room for a conversation."""
    path = tmp_path_factory.mktemp("chat") / "bundle"
    arguments = ["convert", str(random_checkpoint), "-o", str(path), "--quant", "f32", "--sizes", "full,small"]
    assert cli.main([*arguments, "--context", "256", "--prefill", "4,16", "--no-verify", "-q", "--json"]) == 0
    return path


def turns(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_chat_answers_each_line_and_reuses_earlier_turns(command: Command, chat_bundle: Path) -> None:
    outcome = command("chat", chat_bundle, "--temperature", 0, "-n", 4, "--json", stdin="the cat\n\nsat\n")
    assert outcome.code == 0
    first, second = turns(outcome)
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] >= first["prompt_tokens"]
    assert second["prompt_tokens"] > second["reused_tokens"]


def test_chat_forgets_after_reset(command: Command, chat_bundle: Path) -> None:
    once = turns(command("chat", chat_bundle, "--temperature", 0, "-n", 4, "--json", stdin="cat\n"))
    twice = turns(command("chat", chat_bundle, "--temperature", 0, "-n", 4, "--json", stdin="sat\n/reset\ncat\n"))
    assert twice[1] == once[0]


def test_chat_changes_size_and_goes_on_after_a_wrong_one(command: Command, chat_bundle: Path) -> None:
    outcome = command("chat", chat_bundle, "-n", 2, "--json", stdin="/size huge\n/size small\ncat\n/size\n/quit\ncat\n")
    refused, turn = turns(outcome)
    assert (refused["error"]["place"], refused["error"]["found"], refused["exit_code"]) == ("size", "huge", 2)
    assert (turn["size"], turn["ending"]) == ("small", "length")
    assert "error: size: found huge" in outcome.err
    assert "[size small; others: full]" in outcome.err


def test_a_system_prompt_precedes_the_prompt(command: Command, chat_bundle: Path) -> None:
    rest = ("-n", 4, "--temperature", 0, "--json")
    plain, led = (command("run", chat_bundle, "cat", *rest, *more).json for more in ((), ("--system", "the dog")))
    (told,) = turns(command("chat", chat_bundle, *rest, "--system", "the dog", stdin="cat\n"))
    (set_later,) = turns(command("chat", chat_bundle, *rest, stdin="/system the dog\ncat\n"))
    assert led["token_ids"] == told["token_ids"] == set_later["token_ids"]
    assert led["prompt_tokens"] > plain["prompt_tokens"]
    assert_one_line_error(command("run", chat_bundle, "cat", "--raw", "--system", "x"), 2, "a raw prompt")


def test_chat_takes_a_message_back(command: Command, chat_bundle: Path) -> None:
    rest = ("--temperature", 0, "-n", 4, "--json")
    once = turns(command("chat", chat_bundle, *rest, stdin="cat\nsat\n"))
    twice = turns(command("chat", chat_bundle, *rest, stdin="cat\nthe cat\n/undo\nsat\n"))
    assert [turn["token_ids"] for turn in (twice[0], twice[2])] == [turn["token_ids"] for turn in once]
    assert "[no message yet]" in command("chat", chat_bundle, stdin="/undo\n").err


def test_chat_goes_on_from_a_saved_conversation(command: Command, chat_bundle: Path, tmp_path: Path) -> None:
    saved, rest = tmp_path / "chat.json", ("--temperature", 0, "-n", 4, "--json")
    first = turns(command("chat", chat_bundle, *rest, stdin=f"/system the dog\ncat\n/save {saved}\nsat\n"))
    again = turns(command("chat", chat_bundle, *rest, stdin=f"/load {saved}\nsat\n/save {saved}\n"))
    assert again[0]["prompt_tokens"] == first[1]["prompt_tokens"]
    assert len(json.loads(saved.read_text(encoding="utf-8"))["messages"]) == 5
    assert "error:" not in command("chat", chat_bundle, *rest, stdin=f"/load {saved}\n").err
    other = tmp_path / "other.json"
    other.write_text('{"format": "gemma-edge-chat/1", "messages": [{"role": "assistant", "content": "x"}]}')
    outcome = command("chat", chat_bundle, *rest, stdin=f"/load {other}\n/save {EXAMPLE / 'config.json'}\ncat\n")
    assert "found role assistant" in outcome.err and "something other than a saved conversation" in outcome.err
    assert "; choose another name\n" in outcome.err and "--force" not in outcome.err
    assert ["error" in turn for turn in turns(outcome)] == [True, True, False]


def test_json_that_streams_has_the_pieces_before_the_answer(command: Command, chat_bundle: Path) -> None:
    for words, stdin in ((("run", chat_bundle, "cat"), ""), (("chat", chat_bundle), "cat\n")):
        outcome = command(*words, "-n", 6, "--temperature", 0, "--json", "--stream", stdin=stdin)
        *pieces, answer = map(json.loads, outcome.out.splitlines())
        assert len(pieces) > 1
        assert answer["text"].startswith("".join(piece["piece"] for piece in pieces))
        assert "[cut after 6 tokens; -n N allows more]" in outcome.err


def test_chat_explains_itself(command: Command, chat_bundle: Path) -> None:
    outcome = command("chat", chat_bundle, stdin="/help\n/nonsense\n")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.count("/reset") == 2


def test_chat_survives_bytes_that_are_no_text(command: Command, chat_bundle: Path) -> None:
    outcome = command("chat", chat_bundle, "-n", 2, "--json", stdin=b"caf\xe9\ncat\n")
    assert outcome.code == 0
    assert "error: message: found bytes that are not text, from character 3" in outcome.err
    assert ["error" in turn for turn in turns(outcome)] == [True, False]
    for words in (("chat", chat_bundle), ("run", chat_bundle, "cat")):
        outcome = command(*words, "--system", os.fsdecode(b"\xff"), stdin="cat\n")
        assert_one_line_error(outcome, 2, "system prompt: found bytes that are not text")


def test_chat_survives_a_conversation_that_grows_beyond_the_context(command: Command, chat_bundle: Path) -> None:
    outcome = command("chat", chat_bundle, "-n", 2, "--json", stdin="cat " * 300 + "\n/reset\ncat\n")
    assert outcome.code == 0
    assert "error: conversation: found" in outcome.err and "/reset" in outcome.err
    assert ["error" in turn for turn in turns(outcome)] == [True, False]


# --- processes --------------------------------------------------------------------------------------------------------


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gemma_edge", *map(str, arguments)],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_ctrl_c_ends_a_waiting_chat_with_130_and_no_traceback(chat_bundle: Path, tmp_path: Path) -> None:
    chat = process("chat", chat_bundle, "-n", 2, "--weight-cache", tmp_path)
    assert chat.stdin and chat.stdout
    chat.stdin.write("cat\n")
    chat.stdin.flush()
    # The figures and the cut come after the answer; then it waits for the next line.
    assert chat.stderr and "decode" in chat.stderr.readline() and "[cut after 2" in chat.stderr.readline()
    chat.send_signal(signal.SIGINT)
    _, err = chat.communicate(timeout=PATIENCE_S)
    assert chat.returncode == 130
    assert err == "interrupted\n"


SLOW_GATE = """
import sys, time
import converters.gate, gemma_edge.cli

def wait(*_, **__):
    print("judging", flush=True)
    time.sleep(600)

converters.gate.verify = wait
gemma_edge.cli.entry()
"""


def judging(random_checkpoint: Path, output: Path) -> subprocess.Popen[str]:
    """A conversion that has written everything and waits for its gate."""
    words = ["convert", random_checkpoint, "-o", output, "--context", 32, "--prefill", 4, "--weight-cache", "off"]
    convert = subprocess.Popen(
        [sys.executable, "-c", SLOW_GATE, *map(str, words)],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert convert.stdout and convert.stdout.readline() == "judging\n"
    return convert


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("older", [False, True])
def test_a_conversion_ended_by_a_signal_leaves_nothing_but_the_older_bundle(
    random_checkpoint: Path, random_bundle: Path, tmp_path: Path, number: signal.Signals, code: int, older: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if older:
        shutil.copytree(random_bundle, out / "b")
    before = {path.name: path.read_bytes() for path in (out / "b").glob("*")}
    convert = judging(random_checkpoint, out / "b")
    assert len(os.listdir(out)) == 1 + older
    convert.send_signal(number)
    _, err = convert.communicate(timeout=PATIENCE_S)
    assert (convert.returncode, err) == (code, "interrupted\n" if code == 130 else "terminated\n")
    assert os.listdir(out) == ["b"] * older
    assert {path.name: path.read_bytes() for path in (out / "b").glob("*")} == before


@pytest.mark.slow
def test_a_rerun_removes_what_a_killed_conversion_left_and_leaves_a_living_one_alone(
    command: Command, random_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    killed = judging(random_checkpoint, out / "b")
    killed.kill()
    killed.communicate(timeout=PATIENCE_S)
    (left,) = os.listdir(out)
    living = judging(random_checkpoint, out / "b")
    (lives,) = os.listdir(out)
    assert lives != left
    short = ("--context", 32, "--prefill", 4, "--no-verify")
    assert command("convert", random_checkpoint, "-o", out / "b", *short).code == 0
    assert sorted(os.listdir(out)) == sorted([lives, "b", "b.environment.json", "b.quality.json"])
    assert command("check", out / "b").code == 0
    living.terminate()
    living.communicate(timeout=PATIENCE_S)
    assert sorted(os.listdir(out)) == ["b", "b.environment.json", "b.quality.json"]


def test_a_reader_that_has_seen_enough_is_no_error(random_checkpoint: Path) -> None:
    inspect = process("inspect", random_checkpoint)
    assert inspect.stdout and inspect.stderr
    inspect.stdout.close()
    assert inspect.stderr.read() == ""
    assert inspect.wait(timeout=PATIENCE_S) == 0


def test_litert_stays_silent_to_the_very_end(random_bundle: Path, tmp_path: Path) -> None:
    run = process("run", random_bundle, "-p", "cat", "--raw", "-n", "2", "-q", "--weight-cache", tmp_path)
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0
    assert (bool(out), err) == (True, "")


TERMINATED_CALL = """
import os, signal, sys
import gemma_edge.cli, toolkit.runtime.backends.litert.compiled as compiled

begin = compiled.CompiledCall.__init__

def terminated(call, name, run):
    def run_once():
        run()
        os.kill(os.getpid(), signal.SIGTERM)

    begin(call, name, run_once)

compiled.CompiledCall.__init__ = terminated
gemma_edge.cli.entry()
"""


def test_a_run_that_is_terminated_says_so_and_nothing_else(random_bundle: Path, tmp_path: Path) -> None:
    """In the midst of its calls of LiteRT, which then lives as long as the exception on its way out."""
    words = ["run", str(random_bundle), "-p", "cat", "--raw", "--weight-cache", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", TERMINATED_CALL, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (143, "terminated\n")


# --- demo -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (EXAMPLE / "model.safetensors").exists(), reason="the example's weights are not here")
def test_demo_goes_the_whole_way_in_three_sizes(command: Command, tmp_path: Path) -> None:
    outcome = command("demo", "-o", tmp_path / "tiny", "--json")
    assert outcome.code == 0
    assert outcome.json["verify"]["passed"] is True
    assert len(outcome.json["answers"]) == 3
    assert outcome.json["litertlm_bytes"] > 1_000_000
    assert command("check", tmp_path / "tiny").code == 0


def test_demo_without_the_example_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gemma_edge.examples._PACKAGE", tmp_path / "gemma_edge")
    assert_one_line_error(command("demo"), 3, "built-in model", "--checkpoint")


def test_an_interrupt_while_a_verb_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("gemma_edge.parser.importlib.import_module", interrupted)
    assert cli.main(["bench", "bundle"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_while_the_program_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "gemma_edge.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "gemma_edge.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
