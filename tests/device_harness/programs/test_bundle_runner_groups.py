"""The runner in C opens every bundle that the format allows, whatever groups it has beside the text's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import AUDIO, TEXT, VISION, fill
from native_runner import NativeRunner, litert_path, runner_path

from toolkit.bundle.manifest import DRAFTER, GROUP_NAMES, CheckpointRecord, DrafterRecord, GroupKind, GroupRuntime
from toolkit.bundle.write import BundleDraft, GroupDraft, write_bundle

PUBLISHED = DrafterRecord("large", checkpoint=CheckpointRecord("drafter", "ab" * 32), caches=("kv_cache_k_0",))
RUNTIMES: dict[GroupKind, GroupRuntime] = {"text": TEXT, "vision": VISION, "audio": AUDIO, "drafter": PUBLISHED}


def with_group(path: Path, name: str, kind: GroupKind, file: str) -> Path:
    """A bundle with one more group, whose one file holds nothing that text needs."""

    def filled(directory: Path) -> BundleDraft:
        draft = fill(directory)
        (directory / file).write_bytes(b"unused")
        text = replace(draft.groups["text"], runtime=replace(TEXT, draft_tokens=3))  # which a drafter needs
        group = GroupDraft(kind, (file,), 10, RUNTIMES.get(kind))
        return replace(draft, groups={**draft.groups, "text": text, name: group})

    write_bundle(path, filled)
    return path


@pytest.mark.parametrize("kind", GROUP_NAMES)
def test_a_group_of_another_name_may_be_of_any_kind(kind: GroupKind, tmp_path: Path) -> None:
    bundle = with_group(tmp_path / "bundle", "more", kind, "more.bin")
    with NativeRunner([runner_path(), litert_path()]) as native:
        assert native.ok("open", bundle=str(bundle), threads=1)["sizes"] == ["large", "small"]


def test_a_drafter_is_not_needed_for_text(tmp_path: Path) -> None:
    bundle = with_group(tmp_path / "bundle", "drafter", "drafter", DRAFTER)
    (bundle / DRAFTER).unlink()
    with NativeRunner([runner_path(), litert_path()]) as native:
        assert native.ok("open", bundle=str(bundle), threads=1)["context"] == TEXT.context
