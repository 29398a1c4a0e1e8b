"""Errors keep what they know in fields, and make one line of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.base.errors import (
    BundleError,
    EnvironmentFault,
    GraphError,
    QualityError,
    ToolkitError,
    UsageError,
    errors_about,
    system_reason,
)
from toolkit.bundle.faults import Fault


def test_an_error_keeps_its_fields_as_text() -> None:
    error = ToolkitError("tensor a", file=Path("m.safetensors"), found=2, wanted=[4], remedy="download it again")
    fields = (error.file, error.place, error.found, error.wanted, error.remedy)
    assert fields == ("m.safetensors", "tensor a", "2", "[4]", "download it again")


def test_fields_that_are_not_given_are_none() -> None:
    error = ToolkitError(found="no such file")
    assert (error.file, error.place, error.wanted, error.remedy) == (None, None, None, None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ToolkitError(found="no such file"), "no such file"),
        (ToolkitError(file="a.json", found="no such file"), "a.json: no such file"),
        (ToolkitError("line 3", found="not JSON"), "line 3: not JSON"),
        (ToolkitError("line 3", file="a.json", found="not JSON"), "a.json, line 3: not JSON"),
        (ToolkitError("context", found=0, wanted="1 to 9"), "context: found 0, wanted 1 to 9"),
        (ToolkitError(found=0, wanted=1), "found 0, wanted 1"),
        (ToolkitError("--top", found="unknown", remedy="see --help"), "--top: unknown; see --help"),
        (ToolkitError("k", file="a", found=0, wanted=1, remedy="mend it"), "a, k: found 0, wanted 1; mend it"),
        (ToolkitError("k", found="two\n lines", wanted="one\tline"), "k: found two lines, wanted one line"),
        (ToolkitError("k", found="", wanted=""), "k: found , wanted"),
    ],
)
def test_its_text_is_one_line_of_the_fields_that_are_there(error: ToolkitError, line: str) -> None:
    assert str(error) == line


def test_its_json_has_every_field_under_its_name() -> None:
    error = UsageError("context", file=Path("b/c"), found=0, wanted="1 to 9")
    value = {"file": "b/c", "place": "context", "found": "0", "wanted": "1 to 9", "remedy": None}
    assert error.to_json() == value == json.loads(json.dumps(error.to_json()))


def test_the_exit_code_tells_whose_fault_it_is() -> None:
    codes = {kind: kind(found="x").exit_code for kind in (UsageError, BundleError, QualityError, EnvironmentFault)}
    assert codes == {UsageError: 2, BundleError: 2, QualityError: 1, EnvironmentFault: 3}


def test_errors_about_gives_a_file_and_a_place_to_errors_that_have_none() -> None:
    with pytest.raises(GraphError) as caught, errors_about("graph 1", file=Path("a.tflite")):
        raise GraphError(found="no graphs", wanted="one")
    assert str(caught.value) == "a.tflite, graph 1: found no graphs, wanted one"
    assert caught.value.to_json()["file"] == "a.tflite"


def test_errors_about_leaves_a_file_and_a_place_that_are_there() -> None:
    with pytest.raises(GraphError, match=r"^b\.tflite, op 2: no inputs$"), errors_about("graph 1", file="a.tflite"):
        raise GraphError("op 2", file="b.tflite", found="no inputs")
    with pytest.raises(GraphError, match=r"^a\.tflite, op 2: no inputs$"), errors_about("graph 1", file="a.tflite"):
        raise GraphError("op 2", found="no inputs")


def test_the_innermost_errors_about_is_the_one_that_counts() -> None:
    about_outer, about_inner = errors_about("outer place", file="outer"), errors_about(file="inner")
    with pytest.raises(GraphError, match=r"^inner, outer place: x$"), about_outer, about_inner:
        raise GraphError(found="x")


def test_errors_about_leaves_other_exceptions_alone() -> None:
    with pytest.raises(KeyError) as caught, errors_about("graph 1", file="a.tflite"):
        raise KeyError("x")
    assert caught.value.args == ("x",)


@pytest.mark.parametrize("wanted", [None, "64 digits"])
def test_a_fault_made_of_an_error_gives_the_same_error(wanted: str | None) -> None:
    error = BundleError("sha256", file="ple_00000.bin", found="x", wanted=wanted)
    fault = Fault.of(error, "another.bin", "another place")
    assert fault == Fault("ple_00000.bin", "sha256", "x", wanted)
    assert (type(fault.error()), fault.error().to_json()) == (BundleError, error.to_json())


def test_a_fault_takes_from_the_caller_only_what_the_error_does_not_name() -> None:
    assert Fault.of(GraphError(found="x"), "a.tflite", "graph") == Fault("a.tflite", "graph", "x", None)
    assert Fault.of(GraphError("op 1", found="x"), "a.tflite", "graph") == Fault("a.tflite", "op 1", "x", None)


def test_a_fault_names_the_file_within_its_directory_and_its_error_a_path_on_demand() -> None:
    fault = Fault.of(BundleError("rows", file=Path("some/bundle/ple_00000.bin"), found="x"), "ple_00001.bin", "shard")
    assert fault.file == "ple_00000.bin"
    error = fault.error(Path("bundle/ple_00000.bin"), remedy="convert it again")
    assert str(error) == "bundle/ple_00000.bin, rows: x; convert it again"


def test_a_fault_of_the_bundle_as_a_whole_names_no_file() -> None:
    assert Fault("", "groups", "none", "text").error().file is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory"), "no such file"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError("Timed out"), "timed out"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (OSError(), ""),
    ],
)
def test_the_systems_reason_fits_into_a_sentence(error: OSError | ValueError, reason: str) -> None:
    assert system_reason(error) == reason
