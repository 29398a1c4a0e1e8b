"""What is pushed of a bundle, and what is refused before anything is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from bundles import DRAFT, fill, fill_with_towers

import toolkit.base.files
from device_harness.push.push import default_target
from device_harness.push.source import PushSource, open_source, require_unchanged
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.write import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", fill)
    return tmp_path / "bundle"


def names(source: PushSource) -> list[str]:
    return [file.name for file in source.files]


def test_all_files_go_by_default_and_the_manifest_last(bundle: Path) -> None:
    found = names(open_source(bundle))
    assert sorted(found) == sorted(path.name for path in bundle.iterdir()) and found[-1] == "manifest.json"


def test_tokenizer_and_template_go_with_every_choice_of_groups(bundle: Path) -> None:
    always = ["chat_template.jinja", "tokenizer.json", "manifest.json"]
    assert names(open_source(bundle, [])) == always
    assert names(open_source(bundle, ["per_layer_embedding"])) == [
        "chat_template.jinja",
        "ple_00000.bin",
        "tokenizer.json",
        "manifest.json",
    ]


def test_text_includes_its_embeddings(bundle: Path) -> None:
    found = names(open_source(bundle, ["text"]))
    assert {"text_decoder.tflite", "embedder.tflite", "ple_00000.bin"} < set(found)
    assert found == names(open_source(bundle, ["text", "per_layer_embedding"]))


def test_a_group_that_the_bundle_lacks_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match=f"groups: found audio, wanted {' or '.join(DRAFT.groups)}"):
        open_source(bundle, ["text", "audio"])


def test_files_of_groups_that_stay_here_may_be_missing_or_damaged(bundle: Path) -> None:
    (bundle / "ple_00000.bin").unlink()
    assert "ple_00000.bin" not in names(open_source(bundle, []))
    with pytest.raises(BundleError, match="no such file"):
        open_source(bundle)


def test_a_copy_without_a_group_says_which_and_how_to_go_on(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", fill_with_towers)
    for path in (tmp_path / "b").glob("vision_*"):
        path.unlink()
    wanted = (
        r"b: a copy without the files of the group vision; copy it again with vision, or convert it again; "
        r"gemma-edge push --groups audio,per_layer_embedding,text sends the rest"
    )
    with pytest.raises(BundleError, match=wanted):
        open_source(tmp_path / "b")
    assert len(open_source(tmp_path / "b", ["audio", "per_layer_embedding", "text"]).files) > 5


def test_a_file_of_another_size_is_refused(bundle: Path) -> None:
    with open(bundle / "embedder.tflite", "ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"embedder\.tflite: found [\d,]+ bytes, wanted"):
        open_source(bundle)


@pytest.mark.parametrize("name", ["tokenizer.json.part", "x.PART", "Manifest.json.old"])
def test_names_that_a_push_keeps_for_itself_are_refused(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["tokenizer.json"]
    (bundle / "manifest.json").write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="which a push uses itself"):
        open_source(bundle)


def test_a_litertlm_has_no_groups_and_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"model")
    source = open_source(path)
    assert (names(source), default_target(source)) == (["model.litertlm"], "/data/local/tmp/gemma-edge")
    with pytest.raises(UsageError, match="--groups"):
        open_source(path, ["text"])


def test_a_litertlm_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"LITERTLM and so on")
    assert names(open_source(path)) == ["model.bin"]


@pytest.mark.parametrize("name", ["model.bin", "missing.litertlm"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(UsageError, match=r"a bundle's directory or a \.litertlm"):
        open_source(tmp_path / name)


def test_a_bundle_goes_to_a_folder_of_its_name_if_that_is_a_plain_one(bundle: Path) -> None:
    assert default_target(open_source(bundle)) == "/data/local/tmp/gemma-edge/bundle"
    odd = bundle.rename(bundle.with_name("my bundle"))
    with pytest.raises(UsageError, match="--target"):
        default_target(open_source(odd))


def test_hashes_of_a_litertlm_are_computed_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", 1000)
    path = tmp_path / "model.litertlm"
    path.write_bytes(bytes(2500))
    [file] = open_source(path).files
    path.write_bytes(b"\1" * 2500)
    digests = [hashlib.sha256(b"\1" * size).hexdigest() for size in (1000, 1000, 500)]
    assert list(file.chunks) == digests == list(file.chunks[:])
    require_unchanged(file, 1)
    path.write_bytes(b"\2" * 2500)
    with pytest.raises(BundleError, match=", from byte 1,000 on: the file has changed"):
        require_unchanged(file, 1)
    path.write_bytes(b"\1" * 1200)
    with pytest.raises(BundleError, match="found an end at byte 1,200"):
        require_unchanged(file, 1)
