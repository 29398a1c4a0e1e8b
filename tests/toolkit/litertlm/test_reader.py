"""What a .litertlm says of itself, and what is no .litertlm."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import CONTEXT, fill
from litert_lm_builder import litertlm_core as core
from litert_lm_builder import litertlm_header_schema_py_generated as fb

from toolkit.base.errors import BundleError
from toolkit.bundle.write import write_bundle
from toolkit.litertlm import tables
from toolkit.litertlm.export import export_litertlm
from toolkit.litertlm.reader import read_litertlm


@pytest.fixture(scope="module")
def litertlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_bundle(folder / "bundle", fill)
    export_litertlm(folder / "bundle", folder / "model.litertlm")
    return folder / "model.litertlm"


def test_sections_belong_to_groups_and_the_context_is_the_metadata_s(litertlm: Path) -> None:
    found = read_litertlm(litertlm)
    assert found.context == CONTEXT
    assert {name: [section.label for section in sections] for name, sections in found.groups().items()} == {
        "token_embedding": ["tf_lite_embedder"],
        "text": ["tf_lite_prefill_decode"],
        "per_layer_embedding": ["tf_lite_per_layer_embedder"],
    }
    assert max(section.end for section in found.sections) == litertlm.stat().st_size


@pytest.mark.parametrize("kept", [0, 20, 100, -1])
def test_a_file_that_was_cut_off_is_one_error(litertlm: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.litertlm"
    path.write_bytes(litertlm.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"cut\.litertlm.*run gemma-edge check"):
        read_litertlm(path)


def test_a_lying_header_is_one_error(litertlm: Path, tmp_path: Path) -> None:
    path = tmp_path / "lying.litertlm"
    data = bytearray(litertlm.read_bytes())
    data[24:32] = (2**60).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"found {2**60}"):
        read_litertlm(path)
    with pytest.raises(BundleError, match="no such file"):
        read_litertlm(tmp_path / "none.litertlm")


def test_the_numbers_of_the_format_are_those_of_its_own_library() -> None:
    kinds = {name: value for name, value in vars(fb.AnySectionDataType).items() if isinstance(value, int)}
    assert {name: number for number, name in enumerate(tables.SECTION_TYPES)} == kinds
    assert (core.HEADER_MAGIC_BYTES, core.HEADER_END_LOCATION_BYTE_OFFSET) == (tables.MAGIC, tables.HEADER_END_OFFSET)
    version = (core.LITERTLM_MAJOR_VERSION, core.LITERTLM_MINOR_VERSION, core.LITERTLM_PATCH_VERSION)
    assert (version, core.HEADER_BEGIN_BYTE_OFFSET) == (tables.VERSION, tables.METADATA_OFFSET)
