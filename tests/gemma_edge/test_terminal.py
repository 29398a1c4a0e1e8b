"""What reaches a terminal, and what a pipe."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading

import pytest

from gemma_edge.options.drafter import drafter_bars
from gemma_edge.terminal import Terminal, table, write_line
from gemma_edge.words.wide_tables import fitted
from toolkit.report.tables import markdown
from toolkit.results.quantities import bytes_text, count_text

HOSTILE = "Pixel\x1b[31m\x1b]0;title\x07 [bold]8[/bold]\u202e\r"
SHOWN = r"Pixel\x1b[31m\x1b]0;title\x07 [bold]8[/bold]\u202e\r"


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screens(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Screen]:
    """stdout and stderr as terminals of 60 characters a line; not a fixture: pytest changes them before each test."""
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    return out, err


def test_no_text_steers_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = screens(monkeypatch)
    terminal = Terminal()
    for write in (terminal.say, terminal.stream, terminal.note, terminal.warn):
        write(HOSTILE)
    terminal.result(None, f"a\n{HOSTILE}")
    write_line("error", HOSTILE)
    assert out.getvalue() == f"{SHOWN}\n{SHOWN}a\n{SHOWN}\n"
    assert err.getvalue() == f"{SHOWN}\n\x1b[33mwarning:\x1b[0m {SHOWN}\n\x1b[1;31merror:\x1b[0m {SHOWN}\n"


def test_json_says_the_same_without_a_character_that_steers(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": HOSTILE + "\x9b31m\udcff", "text": "日本"}
    Terminal(as_json=True).result(value, "")
    line = capsys.readouterr().out.removesuffix("\n")
    assert json.loads(line) == value
    assert "日本" in line and line.isprintable()


def test_a_size_just_below_the_next_unit_has_no_exponent() -> None:
    assert (bytes_text(999_900_000), count_text(999_900_000)) == ("1,000 MB", "1,000 M")


def test_a_pipe_gets_an_answer_as_it_is_and_lines_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()
    terminal.stream("a\x1b\n")
    terminal.say("b\x1b")
    terminal.warn("c\x1b")
    captured = capsys.readouterr()
    assert captured.out == "a\x1b\nb\\x1b\n"
    assert captured.err == "warning: c\\x1b\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_refused(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    monkeypatch.setenv(variable, value)
    Terminal().warn("a")
    assert err.getvalue() == "warning: a\n"


ROWS = [["0123456789abcdef", "offline since it was restarted", "Example EX-100"], ["b", "device", "EX-200 [bold]"]]


def test_a_table_on_a_pipe_is_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert table(["serial", "state", "model"], ROWS).splitlines() == [
        "serial                                     state           model",
        "0123456789abcdef  offline since it was restarted  Example EX-100",
        "b                                         device   EX-200 [bold]",
    ]


def test_a_table_on_a_terminal_is_folded_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    screens(monkeypatch)
    lines = table(["serial", "state", "model"], ROWS).splitlines()
    assert max(map(len, lines)) <= 60
    text = " ".join("\n".join(lines).split())
    assert "offline since it was" in text and "EX-200 [bold]" in text and "\x1b" not in text


def test_results_on_a_terminal_stand_under_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    header, rows = ["model", "device", "test", "t/s"], [["e2b" * 20, "", "pp512", "1"], ["e2b" * 20, "", "tg128", "2"]]
    numeric = [False, False, True, True]
    assert fitted(header, rows, numeric=numeric) == markdown(header, rows, numeric=numeric)
    screens(monkeypatch)
    assert fitted(header, rows, numeric=numeric).splitlines() == [
        "model",
        "e2b" * 20,
        " test  t/s",
        "pp512    1",
        "tg128    2",
    ]
    assert fitted(header[2:], [row[2:] for row in rows]).startswith("| test")


def test_a_cell_takes_one_line() -> None:
    assert table(["a", "b"], [["x\ny", "\x1b[1m"]]).splitlines()[1] == r"x\ny  \x1b[1m"


def test_work_that_ends_soon_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    with Terminal().bar("work") as show:
        show(1, 2)
        show(2, 2)
    assert err.getvalue() == ""


def test_a_bar_says_how_much_is_done_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    with Terminal(bar_after_s=0).bar("[bold]work\x1b", "B") as show:
        show(1_500_000, 6_000_000)
        shown = _drawn(err)
        show(6_000_000, 6_000_000)
    assert r"[bold]work\x1b" in shown and "25 %" in shown and "1.50 MB of 6.00 MB" in shown
    erased = err.getvalue().rpartition("\x1b[2K")[2]
    assert not re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", erased)


def test_the_bars_of_a_drafter_count_tokens_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    with drafter_bars(Terminal(bar_after_s=0)) as show:
        show("fit", 1, 9)
        show("write", 500, 2_000)
        shown = _drawn(err)
    assert "500 of 2,000 tokens" in shown and "1 of 9 steps" in shown


def test_lines_are_written_above_the_bars_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    terminal = Terminal(bar_after_s=0)
    opened, noted = threading.Barrier(3, timeout=60), threading.Event()

    def work(title: str) -> None:
        with terminal.bar(title, "plots") as show:
            show(1, 4)
            opened.wait()
            noted.wait(60)

    threads = [threading.Thread(target=work, args=(title,)) for title in ("first", "second")]
    for thread in threads:
        thread.start()
    opened.wait()
    terminal.note("a line")
    noted.set()
    for thread in threads:
        thread.join(60)
    assert "a line\n" in err.getvalue()
    after = err.getvalue().partition("a line\n")[2]
    assert "first" in after and "second" in after and "1 of 4 plots" in after


@pytest.mark.parametrize("options", [{"quiet": True}, {"progress": False}])
def test_bars_can_be_refused(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = screens(monkeypatch)
    with Terminal(bar_after_s=0, **options).bar("work") as show:
        show(1, 2)
    assert err.getvalue() == ""


def test_rich_is_imported_by_none_but_bars_and_folded_tables() -> None:
    code = """if True:
        import sys, gemma_edge.commands.report, gemma_edge.commands.check
        from gemma_edge.terminal import Terminal, table
        with Terminal().bar("work") as show:
            show(1, 2)
        Terminal().warn(table(["a"], [["b"]]))
        sys.exit("rich" in sys.modules or "tqdm" in sys.modules)
        """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def _drawn(err: Screen) -> str:
    """What stands on the terminal once the bar has been drawn."""
    for _ in range(200):
        if "25 %" in err.getvalue():
            break
        threading.Event().wait(0.05)
    return err.getvalue()
