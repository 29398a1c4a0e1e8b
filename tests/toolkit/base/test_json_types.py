"""Records from JSON by their types: what fits is read, and every misfit is named with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from toolkit.base.errors import ResultsError, ToolkitError
from toolkit.base.json_types import MAX_MISFITS, Ascending, Fits, Matches, Range, TypeBy
from toolkit.base.strict_json import collect_record, read_record, without_format

Name = Annotated[str, Matches(re.compile("[a-z]+"), "lower-case letters")]


@dataclass(frozen=True, slots=True)
class Circle:
    kind: Literal["circle"]
    radius: Annotated[float, Range(0.5, 2)]


@dataclass(frozen=True, slots=True)
class Square:
    kind: Literal["square"]
    side: Annotated[int, Range(1, 9)]


@dataclass(frozen=True, slots=True)
class Drawing:
    title: str
    shapes: dict[Name, Circle | Square]
    layers: Annotated[tuple[Annotated[int, Range(0, 9)], ...], Ascending()]
    author: Annotated[str, Fits(str.isupper, "capital letters")] | None
    is_done: bool = False


SOUND = {
    "title": "t",
    "shapes": {"a": {"kind": "circle", "radius": 1}, "b": {"kind": "square", "side": 3}},
    "layers": [0, 4],
    "author": None,
    "is_done": True,
}


def faults_of(value: object) -> list[tuple[str | None, str, str | None]]:
    faults: list[ToolkitError] = []
    record = collect_record(value, Drawing, "d.json", ResultsError, faults, "line 3")
    assert (record is None) == bool(faults)
    assert all(type(fault) is ResultsError and fault.file == "d.json" for fault in faults)
    return [(fault.place, fault.found, fault.wanted) for fault in faults]


def test_a_record_is_read_by_its_types() -> None:
    shapes: dict[str, Circle | Square] = {"a": Circle("circle", 1), "b": Square("square", 3)}
    assert read_record(SOUND, Drawing, None, ResultsError) == Drawing("t", shapes, (0, 4), None, True)
    assert read_record(SOUND | {"author": "ME"}, Drawing, None, ResultsError).author == "ME"


@pytest.mark.parametrize(
    ("changes", "place", "found", "wanted"),
    [
        ({"title": 1}, "title", "1", "a text of at most 4096 characters, none of them control characters"),
        ({"title": "\x1b"}, "title", r"'\x1b'", "a text of at most 4096 characters, none of them control characters"),
        ({"is_done": 1}, "is_done", "1", "true or false"),
        ({"is_done": None}, "is_done", "null", "true or false"),
        ({"author": "me"}, "author", "me", "capital letters"),
        ({"layers": []}, "layers", "[]", "ascending numbers, at least one"),
        ({"layers": [4, 4]}, "layers", "[4, 4]", "ascending numbers, at least one"),
        ({"layers": [1, True]}, "layers[1]", "true", "an integer from 0 to 9"),
        ({"layers": [1, 2.0]}, "layers[1]", "2.0", "an integer from 0 to 9"),
        ({"layers": {}}, "layers", "an object", "an array"),
        ({"shapes": []}, "shapes", "an array", "an object"),
        ({"shapes": {"A": {}}}, "shapes key", "A", "lower-case letters"),
        ({"shapes": {"a": {}}}, "shapes a kind", "missing", None),
        ({"shapes": {"a": 1}}, "shapes a", "a number", "an object"),
        ({"shapes": {"a": {"kind": "line"}}}, "shapes a kind", "line", "circle or square"),
        ({"shapes": {"a": {"kind": ["line"]}}}, "shapes a kind", "['line']", "circle or square"),
        ({"shapes": {"a": {"kind": "circle", "side": 1, "radius": 1}}}, "shapes a", "unknown key side", None),
        ({"shapes": {"a": {"kind": "circle", "radius": 3}}}, "shapes a radius", "3", "a number from 0.5 to 2"),
        ({"colour": 1, "size": 2}, None, "unknown keys colour, size", None),
    ],
)  # fmt: skip
def test_a_misfit_has_its_place(changes: dict[str, object], place: str | None, found: str, wanted: str | None) -> None:
    assert faults_of(SOUND | changes) == [(f"line 3 {place}" if place else "line 3", found, wanted)]


def test_every_misfit_is_collected_and_the_first_is_raised() -> None:
    shapes = {"a": {"kind": "circle", "radius": 0}, "b": {"kind": "square", "side": 0, "x": 1}}
    value = {"title": "t", "shapes": shapes, "layers": [1, -1, 12], "is_done": "no"}
    places = [place for place, _, _ in faults_of(value)]
    inside = ["shapes a radius", "shapes b side", "shapes b", "layers[1]", "layers[2]", "author", "is_done"]
    assert places == [f"line 3 {place}" for place in inside]
    with pytest.raises(ResultsError, match=r"^d.json, shapes a radius: found 0, wanted a number from 0.5 to 2$"):
        read_record(value, Drawing, "d.json", ResultsError)


def test_of_one_list_only_so_many_misfits_are_collected_and_the_last_says_so() -> None:
    shapes = {
        chr(ord("a") + i // 26 // 26) + chr(ord("a") + i // 26 % 26) + chr(ord("a") + i % 26): 1 for i in range(2000)
    }
    for changes in ({"layers": [-1] * 100_000}, {"shapes": shapes}):
        faults = faults_of(SOUND | changes)
        assert len(faults) == MAX_MISFITS + 1
        assert faults[-1] == (
            f"line 3 {next(iter(changes))}",
            "over 1,000 faults; the others are not listed",
            None,
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """Its content's type is told by `holds`."""

    holds: Literal["circle", "text", "nothing"]
    content: Annotated[Circle | str | None, TypeBy("holds", (("circle", Circle), ("text", Name), ("nothing", None)))]


def test_a_field_may_have_the_type_that_another_field_chooses() -> None:
    circle = {"kind": "circle", "radius": 1}
    frames = (Frame("circle", Circle("circle", 1)), Frame("text", "abc"), Frame("nothing", None))
    for frame in frames:
        content = circle if frame.holds == "circle" else frame.content
        assert read_record({"content": content, "holds": frame.holds}, Frame, None, ResultsError) == frame
    for value, words in (
        ({"holds": "text", "content": circle}, "content: found .*, wanted lower-case letters"),
        ({"holds": "circle", "content": None}, "content: found null, wanted an object"),
        ({"holds": "circle", "content": circle | {"radius": 0}}, "content radius: found 0, wanted .* from 0.5 to 2"),
        ({"holds": "nothing", "content": "abc"}, "content: found abc, wanted null"),
        ({"holds": "circle"}, "content: missing"),
        ({"holds": "square", "content": 1}, "holds: found square, wanted circle or text or nothing"),
        ({"holds": ["circle"], "content": 1}, "holds: found .*, wanted circle or text or nothing"),
        ({"content": 1}, "holds: missing"),
    ):  # fmt: skip
        with pytest.raises(ResultsError, match=f"^{words}$"):
            read_record(value, Frame, None, ResultsError)


@dataclass(frozen=True, slots=True)
class Album:
    frames: Mapping[Name, Frame]


def test_a_mapping_is_read_like_a_dictionary() -> None:
    value = {"frames": {"one": {"holds": "nothing", "content": None}}}
    assert read_record(value, Album, None, ResultsError) == Album({"one": Frame("nothing", None)})
    with pytest.raises(ResultsError, match=r"^frames key: found ONE, wanted lower-case letters$"):
        read_record({"frames": {"ONE": {}}}, Album, None, ResultsError)


def test_the_format_is_told_before_anything_else() -> None:
    assert without_format({"format": "f/1", "a": 1}, "f/1", None, ResultsError) == {"a": 1}
    for value, words in (({"a": 1}, "format: missing"), ({"format": "f/2"}, "format: found f/2, wanted f/1")):
        with pytest.raises(ResultsError, match=f"^d.json, {words}$"):
            without_format(value, "f/1", "d.json", ResultsError)


def test_a_type_that_json_has_not_is_our_own_bug() -> None:
    with pytest.raises(TypeError, match="bytes"):
        read_record(b"", bytes, None, ResultsError)
