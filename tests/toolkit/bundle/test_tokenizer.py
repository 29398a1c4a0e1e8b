"""Encoding, decoding, and the stream of whole characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.errors import BundleError
from toolkit.bundle.tokenizer import TextStream, Tokenizer

SCRIPTS = "the cat sat. Zażółć 猫が座った Кошка القط बिल्ली 🐈‍⬛ 고양이 แมว Γάτα\n\tfin"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: Path) -> Tokenizer:
    return Tokenizer(tokenizer_json)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [*(text.push(token) for token in ids), text.flush()]


def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(SCRIPTS, special=True)) == SCRIPTS


def test_special_tokens_are_added_only_when_asked_for(tokenizer: Tokenizer) -> None:
    bos, *rest = tokenizer.encode("cat", special=True)
    assert tokenizer.token_of(bos) == "<bos>"
    assert rest == tokenizer.encode("cat", special=False)


def test_control_tokens_in_text_become_themselves(tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("<end_of_turn>", special=False)
    assert tokenizer.token_of(token) == "<end_of_turn>"
    assert tokenizer.token_of(tokenizer.ids_below(1000)) is None


def test_size_is_one_more_than_the_highest_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids_below(1000) == 6 + 256 + 19
    assert tokenizer.ids_below(100) == 100
    assert tokenizer.ids_below(0) == 0


@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_streamed_text_equals_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special=True)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_only_whole_characters_are_streamed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é猫🐈", special=False)
    assert stream(tokenizer, ids) == ["", "é", "", "", "猫", "", "", "", "🐈", ""]


def test_spaces_between_streamed_words_are_kept(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, tokenizer.encode("the cat the cat", special=False)) == ["the", " cat", " the", " cat", ""]


def test_control_tokens_stream_as_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("cat<end_of_turn>cat", special=False)
    assert stream(tokenizer, ids) == ["cat", "", "cat", ""]


def test_bytes_that_never_make_a_character_are_not_held_for_ever(tokenizer: Tokenizer) -> None:
    bad = 6 + 0xFF  # behind the control tokens
    assert tokenizer.token_of(bad) == "<0xFF>"
    pieces = stream(tokenizer, [bad] * 4)
    assert "".join(pieces[:4]) == "\N{REPLACEMENT CHARACTER}" * 4
    assert stream(tokenizer, [bad, *tokenizer.encode("cat", special=False)])[1] == "\N{REPLACEMENT CHARACTER}cat"


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in stream(tokenizer, tokenizer.encode("猫", special=False)[:2])[-1]


@given(st.lists(st.integers(0, 280), max_size=40))
def test_any_token_stream_can_be_shown(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert isinstance("".join(stream(tokenizer, ids)), str)


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}', "[1]"])
def test_a_broken_tokenizer_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(path)


def test_a_missing_tokenizer_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        Tokenizer(tmp_path / "tokenizer.json")
