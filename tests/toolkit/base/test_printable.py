from __future__ import annotations

import os

import pytest

from toolkit.base.printable import printable


def test_what_steers_or_misleads_is_shown_as_python_writes_it() -> None:
    assert printable("a\u202eb\u200b\tc\n\x1b[2J\x9b\u2028") == r"a\u202eb\u200b\tc\n\x1b[2J\x9b\u2028"


def test_bytes_of_a_file_name_that_are_no_text_are_shown() -> None:
    shown = printable(os.fsdecode(b"caf\xe9.bin"))
    assert shown == r"caf\udce9.bin"
    shown.encode()


@pytest.mark.parametrize("text", ["grüße", "日本語\u3000テキスト", "👩\u200d🔬", "1\u202f000 €", "שלום!"])
def test_letters_of_any_script_stay(text: str) -> None:
    assert printable(text) == text


def test_line_ends_stay_where_they_are_wanted() -> None:
    assert printable("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\r"
