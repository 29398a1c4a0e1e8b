"""A flipped bit anywhere in a bundle or a .litertlm is found by `check`, which names the file or the section."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from bundles import fill_with_towers

from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.bundle.manifest_json import parse_manifest
from toolkit.bundle.write import write_bundle
from toolkit.check import check
from toolkit.litertlm.export import export_litertlm
from toolkit.litertlm.hashes import require_hashes
from toolkit.litertlm.header import read_header

FULL = pytest.mark.full


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    write_bundle(path / "bundle", fill_with_towers)
    export_litertlm(path / "bundle", path / "model.litertlm")
    return path


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("flips", [500, pytest.param(5000, marks=FULL)])
def test_a_flip_of_any_bit_of_the_manifest_is_found(whole: Path, flips: int) -> None:
    data = (whole / "bundle" / MANIFEST_NAME).read_bytes()
    rng = random.Random(1)
    for bit in rng.sample(range(8 * len(data)), flips):
        faults: list[Fault] = []
        assert parse_manifest(flipped(data, bit), faults) is None, bit
        assert faults and all(fault.file == MANIFEST_NAME for fault in faults)


@pytest.mark.slow
@pytest.mark.parametrize("flips", [2, pytest.param(50, marks=FULL)])
def test_a_flip_of_any_file_of_a_bundle_is_found_and_the_file_named(whole: Path, tmp_path: Path, flips: int) -> None:
    bundle = Path(shutil.copytree(whole / "bundle", tmp_path / "bundle"))
    rng = random.Random(2)
    for file in sorted(bundle.iterdir()):
        data = file.read_bytes()
        for _ in range(flips):
            bit = rng.randrange(8 * len(data))
            file.write_bytes(flipped(data, bit))
            assert file.name in {fault.file for fault in check(bundle)}, (file.name, bit)
        file.write_bytes(data)
    assert check(bundle) == []


@pytest.mark.slow
@pytest.mark.parametrize("flips", [2, pytest.param(50, marks=FULL)])
def test_a_flip_of_any_part_of_a_litertlm_is_found(whole: Path, tmp_path: Path, flips: int) -> None:
    data = (whole / "model.litertlm").read_bytes()
    header = read_header(whole / "model.litertlm")
    ends = [len(header.data), *(edge for s in header.metadata.sections for edge in (s.begin, s.end))]
    path = tmp_path / "model.litertlm"
    rng = random.Random(3)
    for begin, end in zip([0, *ends], ends, strict=False):
        for _ in range(flips * (end > begin)):
            bit = rng.randrange(8 * begin, 8 * end)
            path.write_bytes(flipped(data, bit))
            assert check(path), bit
    for section in header.metadata.sections:
        path.write_bytes(flipped(data, rng.randrange(8 * section.begin, 8 * section.end)))
        with pytest.raises(Exception, match=f"section {section.label}: found sha256"):
            require_hashes(path)
    path.write_bytes(data)
    require_hashes(path)
    assert check(path) == []
