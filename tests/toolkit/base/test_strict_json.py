from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, parse_json, read_json_file, shorten

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.slow
@given(VALUES)
def test_parses_what_python_writes(value: object) -> None:
    encodable = json.loads(json.dumps(value, ensure_ascii=True).encode("utf-8", "surrogatepass"))
    assert parse_json(json.dumps(encodable).encode(), "test", CheckpointError) == encodable


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_the_fault_asked_for(data: bytes) -> None:
    try:
        parse_json(data, "test", CheckpointError)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"a": 1, "a": 2}', "the key a appears twice"),
        (b'{"b": {"\\u0061": 1, "a": 2}}', "the key a appears twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b"[1" + b"0" * 20 + b"]", "an integer of 21 digits"),
        (b"[" * 200_000, "nesting too deep"),
        (b'{"a":' * 200_000, "nesting too deep"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'["\\ud800"]', "not UTF-8"),
        (b"{'a': 1}", "not JSON"),
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
    ids=repr,
)
def test_refuses_what_python_would_let_through(text: bytes, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_json(text, "config.json", CheckpointError)
    assert found in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert len(str(caught.value)) < 250


def test_a_string_is_cut_and_a_control_character_escaped() -> None:
    assert shorten("plain") == "plain"
    assert shorten("a\nb") == r"'a\nb'"
    assert shorten("") == "''"
    assert shorten("x" * 100) == "x" * 77 + "..."


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('"' + "a" * 8 + '"')
    assert read_json_file(path, CheckpointError, 10) == "a" * 8
    with pytest.raises(CheckpointError, match=r"over 9 bytes"):
        read_json_file(path, CheckpointError, 9)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").write_text("1")
    (tmp_path / "link").symlink_to("target")
    assert read_json_file(tmp_path / "link", CheckpointError) == 1
    for name in ("pipe", "directory", "absent", "nul\0byte"):
        with pytest.raises(CheckpointError):
            read_json_file(tmp_path / name, CheckpointError)


def read(text: str) -> JsonObject:
    return JsonObject(json.loads(text), "file", CheckpointError)


@pytest.mark.parametrize("value", ["true", "1.0", '"1"', "null", "[1]", "-1", "11"])
def test_an_integer_is_an_integer_within_bounds(value: str) -> None:
    assert read('{"a": 10}').integer("a", 0, 10) == 10
    with pytest.raises(CheckpointError, match=r"file, a: found .*, wanted an integer from 0 to 10"):
        read(f'{{"a": {value}}}').integer("a", 0, 10)


@pytest.mark.parametrize("value", ["true", '"1"', "null", "-0.1", "1.5"])
def test_a_number_is_a_number_within_bounds(value: str) -> None:
    assert read('{"a": 1}').number("a", 0, 1) == 1.0
    with pytest.raises(CheckpointError, match=r"file, a: found .*, wanted a number from 0 to 1"):
        read(f'{{"a": {value}}}').number("a", 0, 1)


def test_an_absent_key_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^file, a: missing$"):
        read("{}").integer("a", 0, 1)


def test_null_counts_as_absent_where_absence_is_allowed() -> None:
    values = read('{"a": null}')
    assert not values.has("a")
    values.finish()


def test_a_key_that_nobody_asked_for_is_refused() -> None:
    values = read('{"a": 1, "b": 2, "c": 3, "d": 4}')
    values.integer("a", 0, 9)
    values.ignore(["b"])
    values.expect("c", 3)
    with pytest.raises(CheckpointError, match=r"^file: unknown key d$"):
        values.finish()


def test_an_expected_value_has_the_expected_type() -> None:
    read('{"a": false}').expect("a", False)
    read("{}").expect("a", False)
    for wrong in ('{"a": 0}', '{"a": null}', '{"a": true}'):
        with pytest.raises(CheckpointError, match=r"wanted false"):
            read(wrong).expect("a", False)
