"""Under `--json` an error is one object on stdout, whatever kind it is of, and still a sentence on stderr."""

from __future__ import annotations

import errno
import json

import pytest

from gemma_edge import cli
from gemma_edge.commands import inspect
from toolkit.base.errors import BundleError, QualityError

KEYS = ["file", "place", "found", "wanted", "remedy"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "place", "found"),
    [
        ([], None, "no verb given; choose one of inspect, "),
        (["chek"], None, "'chek' is not a verb; did you mean check?"),
        (["run"], None, "the following arguments are required: "),
        (["check", "a", "b"], None, "unrecognized arguments: b"),
        (["run", "b", "-p", "x", "--seed", "-1"], "--seed", "-1"),
        (["run", "b", "-p", "x", "--max-tokens"], "-n/--max-tokens", "expected one argument"),
        (["inspect", "c", "-q", "-v"], "-v/--verbose", "not allowed with argument -q/--quiet"),
    ],
)
def test_wrong_use_is_told_as_json(
    capsys: pytest.CaptureFixture[str], words: list[str], place: str | None, found: str
) -> None:
    code, out, err = run(capsys, "--json", *words)
    value = json.loads(out)
    assert (code, value["exit_code"], out.count("\n")) == (2, 2, 1)
    assert list(value) == ["error", "exit_code"] and list(value["error"]) == KEYS
    assert value["error"]["place"] == place and value["error"]["found"].startswith(found)
    assert value["error"]["file"] is None
    assert value["error"]["wanted"] == ("a number of 0 or more" if place == "--seed" else None)
    assert value["error"]["remedy"].startswith("see gemma-edge") and value["error"]["remedy"].endswith(" --help")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (
            BundleError("section 3", file="a.litertlm", found="2 bytes", wanted="4", remedy="export it again"),
            ["a.litertlm", "section 3", "2 bytes", "4", "export it again"],
            2,
        ),
        (
            QualityError("size E2B", found="0.2", wanted="at most 0.1"),
            [None, "size E2B", "0.2", "at most 0.1", None],
            1,
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/big"),
            ["/big", None, "no space left on device", None, None],
            3,
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/b"),
            ["/b", None, "no such file", None, None],
            3,
        ),
        (MemoryError(), [None, None, "out of memory", None, "choose a smaller size"], 3),
        (
            ValueError("two\nlines"),
            [
                None,
                None,
                "a bug in gemma-edge (ValueError: two\nlines)",
                None,
                "run it again with -v and report the output",
            ],
            3,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_is_told_as_json(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: list[str | None],
    code: int,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(inspect, "execute", fail)
    found, out, err = run(capsys, "inspect", "c", "--json")
    assert json.loads(out) == {"error": dict(zip(KEYS, told, strict=True)), "exit_code": code}
    assert found == code and out.count("\n") == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert run(capsys, "inspect", "c") == (code, "", err)


def test_an_interrupt_prints_no_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "execute", interrupt)
    assert run(capsys, "inspect", "c", "--json") == (130, "", "interrupted\n")
