"""A drafter that was published for a model becomes a group of its bundle, which every verb knows."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gemma4_assistants import make_assistant
from gemma4_models import write_random_model
from hub_server import COMMIT, HubServer
from safetensors.numpy import load_file

import gemma_edge
from converters.families import open_assistant
from device_harness.push.source import open_source
from gemma_edge import cli
from toolkit.base.errors import CheckpointError, UsageError
from toolkit.bundle.lock import read_lock
from toolkit.bundle.manifest import DRAFTER, CheckpointRecord, DrafterRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.signatures import bundle_signatures
from toolkit.litertlm.reader import read_litertlm

pytestmark = pytest.mark.reference

WINDOW: dict[str, Any] = {"sliding_window": 16, "max_position_embeddings": 4096}
CACHES = ("kv_cache_k_2", "kv_cache_v_2", "kv_cache_k_3", "kv_cache_v_3")
"""Those of the last owner with a window, and of the last with full attention."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gemma4") / "checkpoint")


@pytest.fixture(scope="module")
def assistant(checkpoint: Path) -> Path:
    return make_assistant(checkpoint.parent / "assistant", seed=3, **WINDOW)


def convert(checkpoint: Path | str, assistant: Path | str, output: Path, *more: str) -> int:
    arguments = ["convert", checkpoint, "-o", output, "--drafter", assistant, "--context", "2048", "--no-verify"]
    return cli.main([*map(str, arguments), *more, "--quiet"])


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, assistant: Path) -> Path:
    assert convert(checkpoint, assistant, checkpoint.parent / "bundle", "--prefill", "8") == 0
    return checkpoint.parent / "bundle"


def section(file: Path) -> bytes:
    found = next(s for s in read_litertlm(file).sections if s.label == "tf_lite_mtp_drafter")
    return file.read_bytes()[found.begin : found.end]


def test_the_bundle_has_the_drafter_and_its_lock_names_the_checkpoint(bundle: Path, assistant: Path) -> None:
    assert gemma_edge.check(bundle) == ()
    manifest, lock = read_manifest(bundle), read_lock(bundle)
    drafter = manifest.drafter
    with closing(open_assistant(assistant)) as opened:
        record = CheckpointRecord("assistant", opened.fingerprint())
    assert drafter == DrafterRecord("full", checkpoint=record, caches=CACHES) and manifest.text.draft_tokens == 3
    assert (lock.assistant, lock.drafter, lock.draft_tokens) == (record, None, 3)
    group = manifest.groups["drafter"]
    stored = [math.prod(tensor.shape) for tensor in load_file(assistant / "model.safetensors").values()]
    assert group.files == (DRAFTER,) and group.parameters == sum(stored)
    assert gemma_edge.inspect(bundle).groups["drafter"].parameters == group.parameters
    assert set(bundle_signatures(manifest)[DRAFTER]) == {"draft", "in_512_draft"}


@pytest.mark.full
def test_the_drafts_of_a_step_are_as_many_as_wanted(checkpoint: Path, assistant: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, assistant, tmp_path / "bundle", "--draft-tokens", "5") == 0
    assert read_manifest(tmp_path / "bundle").text.draft_tokens == 5


# Quantised, and without buckets: both forms of the file.
@pytest.mark.parametrize(
    "more",
    [pytest.param((), marks=pytest.mark.full), ("--quant", "f32", "--context", "256", "--prefill", "8")],
    ids=["int8", "f32"],
)
def test_an_export_has_the_section_that_export_drafter_would_give_it(
    checkpoint: Path, assistant: Path, tmp_path: Path, more: Sequence[str]
) -> None:
    assert convert(checkpoint, assistant, tmp_path / "bundle", *more) == 0
    assert gemma_edge.export(tmp_path / "bundle", tmp_path / "with.litertlm").groups == ("text", "drafter")
    gemma_edge.export(tmp_path / "bundle", tmp_path / "given.litertlm", drafter=assistant)
    assert section(tmp_path / "with.litertlm") == section(tmp_path / "given.litertlm")
    assert gemma_edge.check(tmp_path / "with.litertlm") == ()
    without = gemma_edge.export(tmp_path / "bundle", tmp_path / "without.litertlm", groups=["text"])
    assert without.groups == ("text",)


def test_the_group_may_be_left_out_of_a_copy(bundle: Path) -> None:
    def sent(*groups: str) -> set[str]:
        return {file.name for file in open_source(bundle, groups).files}

    assert sent("text", "drafter") - sent("text") == {DRAFTER}


@pytest.mark.full
def test_what_is_printed_names_the_checkpoint(
    checkpoint: Path, assistant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, page = tmp_path / "bundle", tmp_path / "page.html"
    assert convert(checkpoint, assistant, output, "--report", str(page)) == 0
    assert "drafter of assistant, which reads kv_cache_k_2, kv_cache_v_2" in capsys.readouterr().out
    sha256 = read_lock(output).assistant.sha256  # type: ignore[union-attr]
    assert sha256 in page.read_text()
    assert convert(checkpoint, assistant, output, "--json") == 0
    assert json.loads(capsys.readouterr().out)["drafter"]["checkpoint"]["sha256"] == sha256


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_a_drafter_on_the_hub_is_named_with_its_commit_and_rebuilt(
    checkpoint: Path, assistant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:
        hub.publish("someone/gemma-4-assistant", assistant)
        hub.use(monkeypatch, tmp_path / "cache")
        small = ("--context", "64", "--prefill", "8")
        assert convert(checkpoint, "someone/gemma-4-assistant", tmp_path / "bundle", *small) == 0
        record = read_lock(tmp_path / "bundle").assistant
        assert record is not None and record.name == f"someone/gemma-4-assistant@{COMMIT}"
        again = tmp_path / "again"
        gemma_edge.rebuild(tmp_path / "bundle", again, checkpoint=checkpoint, drafter="someone/gemma-4-assistant")
        assert (again / DRAFTER).read_bytes() == (tmp_path / "bundle" / DRAFTER).read_bytes()
        hub.use(monkeypatch, tmp_path / "another cache")
        told: list[tuple[int, int]] = []
        exported = gemma_edge.export(
            tmp_path / "bundle",
            tmp_path / "model.litertlm",
            drafter="someone/gemma-4-assistant",
            download_progress=lambda *done: told.append(done),
        )
        assert exported.groups == ("text", "drafter") and told[-1][0] == told[-1][1] > 1000


def test_a_model_on_the_hub_is_not_downloaded_for_a_drafter_of_another(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = make_assistant(tmp_path / "other", seed=1, backbone=48, **WINDOW)
    with HubServer() as hub:
        hub.publish("someone/gemma-4", checkpoint)
        hub.use(monkeypatch, tmp_path / "cache")
        assert "backbone_hidden_size: found 48" in refused(capsys, "someone/gemma-4", other, tmp_path / "bundle")
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_no_drafter_is_not_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:
        hub.publish("someone/gemma-4", checkpoint)
        hub.use(monkeypatch, tmp_path / "cache")
        assert "wanted a drafter's" in refused(capsys, checkpoint, "someone/gemma-4", tmp_path / "bundle")
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


# --- rebuilding ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_bundle_is_made_again_with_the_same_drafter(
    bundle: Path, checkpoint: Path, assistant: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    with pytest.raises(UsageError, match="drafter: found none, wanted assistant, as the lock says; name its directory"):
        gemma_edge.rebuild(bundle, again, checkpoint=checkpoint)
    other = make_assistant(tmp_path / "other", seed=4, **WINDOW)
    with pytest.raises(CheckpointError, match="fingerprint: found"):
        gemma_edge.rebuild(bundle, again, checkpoint=checkpoint, drafter=other)
    assert not again.exists()
    renamed = Path(shutil.copytree(assistant, tmp_path / "renamed"))
    gemma_edge.rebuild(bundle, again, checkpoint=checkpoint, drafter=renamed)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


@pytest.mark.full
def test_an_export_with_another_drafter_than_the_bundles_is_made_again_from_both(
    bundle: Path, checkpoint: Path, assistant: Path, tmp_path: Path
) -> None:
    other = make_assistant(tmp_path / "other", seed=4, **WINDOW)
    exported, again = tmp_path / "model.litertlm", tmp_path / "again.litertlm"
    gemma_edge.export(bundle, exported, drafter=other)
    with pytest.raises(UsageError, match=r"wanted assistant and other, as the lock says; name each .* in this order"):
        gemma_edge.rebuild(exported, again, checkpoint=checkpoint, drafter=other)
    gemma_edge.rebuild(exported, again, checkpoint=checkpoint, drafter=[assistant, other])
    assert again.read_bytes() == exported.read_bytes()


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path | str, assistant: Path | str, output: Path) -> str:
    """What is said of a drafter that does not fit; nothing may be written."""
    assert convert(checkpoint, assistant, output, "--context", "64", "--prefill", "8") == 2
    assert not output.exists() and not list(output.parent.glob(".bundle*"))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"vocab_size": 310},
            "vocab_size: found 310, wanted 300, as the bundle's model has it",
        ),
        ({"backbone": 48}, "backbone_hidden_size: found 48, wanted 32"),
        pytest.param({"sliding_window": 32}, "sliding_window: found 32, wanted 16", marks=pytest.mark.full),
        pytest.param({"num_key_value_heads": 1}, "num_key_value_heads: found 1, wanted 2", marks=pytest.mark.full),
        pytest.param(
            {"global_head_dim": 32},
            "head_dim of full layers: found 32, wanted a size that a cache has",
            marks=pytest.mark.full,
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_drafter_for_another_model_is_refused_before_any_weight_is_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    other = make_assistant(tmp_path / "other", seed=1, **{**WINDOW, **changes})
    assert says in refused(capsys, checkpoint, other, tmp_path / "bundle")


def test_gemma_3n_has_no_published_drafter(
    random_checkpoint: Path, assistant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, random_checkpoint, assistant, tmp_path / "bundle")
    assert "drafter: found Gemma4AssistantForCausalLM, wanted none, because none is published for Gemma3n" in error
    assert "fit one with --drafter fit" in error


def test_what_is_no_drafter_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "wanted a drafter's: Gemma4AssistantForCausalLM" in refused(
        capsys, checkpoint, checkpoint, tmp_path / "bundle"
    )
    assert str(tmp_path / "nothing") in refused(capsys, checkpoint, tmp_path / "nothing", tmp_path / "bundle")


def test_a_bundle_is_not_written_over_its_drafter(assistant: Path, checkpoint: Path) -> None:
    content = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in assistant.iterdir()}
    assert convert(checkpoint, assistant, assistant, "--force") == 2
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in assistant.iterdir()} == content
