"""Bundles with towers: what the manifest says about them, what each group holds, and the same bytes every time."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path

import pytest
from towers import write_multimodal_checkpoint, write_vision_checkpoint

from converters.convert import convert
from converters.families import open_checkpoint
from converters.family import Checkpoint
from converters.request import ConvertRequest
from toolkit.base.errors import CheckpointError
from toolkit.bundle.manifest import LOCK, TOWER_FILES, AudioRecord, VisionRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.check import check


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_multimodal_checkpoint(tmp_path_factory.mktemp("multimodal")))


def request(checkpoint: Checkpoint, output: Path, **towers: str) -> ConvertRequest:
    """Of the text groups and the towers named with their recipes."""
    return ConvertRequest(checkpoint, output, towers, groups=("text", *towers), context=64, prefill_sizes=(4, 16))


@pytest.mark.slow
def test_a_bundle_says_of_its_towers_what_the_checkpoint_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    manifest = convert(
        request(checkpoint, tmp_path / "bundle", vision="int8", audio="int8"),
        gate=None,
        progress=lambda done, total: steps.append((done, total)),
    ).manifest
    assert manifest.vision == VisionRecord(6, 3073, 3072, 3072, 8, image_size=128, soft_tokens=16, feature_size=2048)
    assert manifest.audio == AudioRecord(
        *(7, 3081, 3080, 3080, 8),
        frame_lengths=(112, 320),
        mel_bins=16,
        frames_per_token=16,
        soft_tokens=20,
        feature_size=32,
        padding_token_id=3087,
    )
    assert {role: quant.recipe for role, quant in manifest.quant.items()} == {
        "text": "int8",
        "ple": "int8",
        "vision": "vision-int8",
        "audio": "audio-int8",
    }
    stored = {group.name: group for group in checkpoint.groups}
    assert {name: manifest.groups[name].files for name in TOWER_FILES} == TOWER_FILES
    assert manifest.groups["audio"].parameters == stored["audio"].parameters
    assert manifest.groups["vision"].parameters == stored["vision"].parameters
    assert steps[-1][0] == steps[-1][1] == steps[0][1], "one total over all groups"
    assert read_manifest(tmp_path / "bundle") == manifest
    assert check(tmp_path / "bundle") == []


@pytest.mark.full
def test_two_conversions_with_towers_give_identical_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 3)):
        convert(replace(request(checkpoint, tmp_path / name, vision="f16", audio="int4"), workers=workers), gate=None)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])


@pytest.mark.slow
def test_groups_that_are_not_asked_for_are_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = convert(request(checkpoint, tmp_path / "text"), gate=None).manifest
    assert (text.vision, text.audio) == (None, None)
    assert not {"vision", "audio"} & {*text.groups, *text.quant}
    both = convert(request(checkpoint, tmp_path / "both", vision="int8"), gate=None).manifest
    assert both.audio is None and both.vision is not None
    for name in text.files.keys() - {LOCK}:  # the lock has the groups that were asked for
        assert text.files[name] == both.files[name], "text does not depend on the other groups"


def test_a_tower_that_the_checkpoint_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    path = write_vision_checkpoint(tmp_path / "checkpoint")
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="without audio tensors"):
        convert(request(checkpoint, tmp_path / "bundle", audio="int8"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.full
def test_lengths_of_sound_are_chosen_by_the_caller(checkpoint: Checkpoint, tmp_path: Path) -> None:
    wanted = replace(request(checkpoint, tmp_path / "bundle", audio="int8"), audio_seconds=(0.9, 0.48))
    manifest = convert(wanted, gate=None).manifest
    assert manifest.audio is not None and manifest.audio.frame_lengths == (48, 96)
    assert check(tmp_path / "bundle") == []
