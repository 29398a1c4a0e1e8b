"""Writing a bundle: whole or not at all, and nobody's files lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import DRAFT

from toolkit.base.errors import BundleError, QualityError, UsageError
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.write import BundleDraft, write_bundle

NAMES = ["embedder.tflite", "ple_00000.bin", "text_decoder.tflite", "tokenizer.json"]


def fill(directory: Path) -> BundleDraft:
    for name in NAMES:
        (directory / name).write_text(name)
    return DRAFT


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_bundle_has_its_files_and_a_manifest_that_reads(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle", fill)
    assert entries(tmp_path / "bundle") == sorted([*NAMES, MANIFEST_NAME])
    assert read_manifest(tmp_path / "bundle") == manifest
    assert entries(tmp_path) == ["bundle"]


def test_two_bundles_of_the_same_files_have_the_same_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", fill)
    write_bundle(tmp_path / "b", fill)
    assert (tmp_path / "a" / MANIFEST_NAME).read_bytes() == (tmp_path / "b" / MANIFEST_NAME).read_bytes()


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", fill)

    def fill_more(directory: Path) -> BundleDraft:
        (directory / "chat_template.jinja").write_text("{{ bos_token }}")
        return fill(directory)

    write_bundle(tmp_path / "bundle", fill_more)
    assert "chat_template.jinja" in entries(tmp_path / "bundle")


def test_a_directory_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="not a bundle"):
        write_bundle(tmp_path / "photos", fill)
    assert entries(tmp_path / "photos") == ["1.jpg"]


def test_a_bundle_with_a_strangers_file_is_left_alone(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", fill)
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        write_bundle(tmp_path / "bundle", fill)
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(UsageError, match="found a file, wanted a new directory for a bundle"):
        write_bundle(tmp_path / "bundle", fill)
    assert (tmp_path / "bundle").read_text() == "mine"


def test_a_bundle_that_is_not_accepted_never_appears(tmp_path: Path) -> None:
    def refuse(directory: Path) -> None:
        assert read_manifest(directory).files
        raise QualityError("perplexity", found=99, wanted=10)

    with pytest.raises(QualityError):
        write_bundle(tmp_path / "bundle", fill, accept=refuse)
    assert entries(tmp_path) == []


def test_a_group_with_a_missing_file_is_an_error(tmp_path: Path) -> None:
    def forget(directory: Path) -> BundleDraft:
        fill(directory)
        (directory / "embedder.tflite").unlink()
        return DRAFT

    with pytest.raises(BundleError, match=r"group text: no file embedder\.tflite"):
        write_bundle(tmp_path / "bundle", forget)
    assert entries(tmp_path) == []


def test_a_link_is_no_file_of_a_bundle(tmp_path: Path) -> None:
    def link(directory: Path) -> BundleDraft:
        fill(directory)
        (directory / "passwd").symlink_to("/etc/passwd")
        return DRAFT

    with pytest.raises(BundleError, match="passwd: not a regular file"):
        write_bundle(tmp_path / "bundle", link)
