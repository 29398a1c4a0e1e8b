"""Messages typed at a terminal: editing, several lines, history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from gemma_edge.line_editor import LineEditor

UP, LEFT, ALT_ENTER, ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\x1b\r", "\r", "\x03", "\x04"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as made:
        yield made


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (f"hat{LEFT}{LEFT}{LEFT}C{ENTER}", "Chat"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"\x1b[200~one\ntwo\x1b[201~{ENTER}", "one\ntwo"),
    ],
)
def test_a_message_is_edited_before_it_is_sent(keys: PipeInput, typed: str, read: str) -> None:
    keys.send_text(typed)
    assert LineEditor(["/undo", "/save"], keys=keys, screen=DummyOutput()).read() == read


def test_an_earlier_message_comes_back(keys: PipeInput) -> None:
    editor = LineEditor([], keys=keys, screen=DummyOutput())
    keys.send_text(f"first{ENTER}")
    assert editor.read() == "first"
    keys.send_text(f"{UP}!{ENTER}")
    assert editor.read() == "first!"


def test_ctrl_d_is_the_end_and_ctrl_c_an_interrupt(keys: PipeInput) -> None:
    editor = LineEditor([], keys=keys, screen=DummyOutput())
    keys.send_text(CTRL_D)
    assert editor.read() is None
    keys.send_text(f"half{CTRL_C}")
    with pytest.raises(KeyboardInterrupt):
        editor.read()
