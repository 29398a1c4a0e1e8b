"""What `convert` keeps beside a bundle of what its gates found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import gemma_edge
from converters.quality_record import QUALITY, read_quality
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, UsageError
from toolkit.runtime.session import SessionSettings

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ m.role.title() if messages[1] }}{% endfor %}"


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was judged."""
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("quality") / "checkpoint"))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    path = checkpoint.parent / "bundle"
    settings = SessionSettings(threads=1, weight_cache="memory")
    gemma_edge.convert(checkpoint, path, quant="f32", sizes=["small"], context=64, prefill_sizes=[16], session=settings)
    return path


def test_the_record_says_what_was_judged_and_how_sure_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_quality(bundle)
    assert record is not None and record.weights is not None and record.prompts is not None
    (measures,) = record.weights.values()
    assert measures.tokens == 256 and measures.top1_agreement_interval is not None
    low, high = measures.perplexity_ratio_interval or (0, 0)
    assert low <= (measures.perplexity_bundle or 0) / measures.perplexity_checkpoint <= high
    assert record.prompts.compared > 5 and ".title()" in str(record.prompts.engine)
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "quality of small, when it was converted: 256 predictions" in shown and "export refuses this bundle" in shown
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["weights"]["small"]["tokens"] == 256


def test_a_record_of_another_bundle_of_this_name_is_not_shown(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    assert read_quality(copy) is None
    shutil.copy(QUALITY.path(bundle), QUALITY.path(copy))
    assert read_quality(copy) == read_quality(bundle)
    with open(copy / "manifest.json", "ab") as manifest:
        manifest.write(b"\n")
    assert read_quality(copy) is None


def test_the_record_is_found_from_inside_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert read_quality(Path()) == read_quality(bundle)
    assert main(["inspect", "."]) == 0


def test_a_broken_record_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    value = json.loads(QUALITY.path(bundle).read_text())
    value["weights"]["small"]["tokens"] = "many"
    QUALITY.path(copy).write_text(json.dumps(value))
    with pytest.raises(BundleError, match=r"b.quality.json, weights small tokens: found many"):
        read_quality(copy)


def test_a_file_of_ones_own_in_its_place_is_kept(random_checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "b.quality.json"
    own.write_text("mine")
    with pytest.raises(UsageError, match="how good a bundle was found to be"):
        gemma_edge.convert(random_checkpoint, tmp_path / "b", context=64)
    assert own.read_text() == "mine" and list(tmp_path.iterdir()) == [own]


def test_a_bundle_that_was_not_judged_says_so(random_checkpoint: Path, tmp_path: Path) -> None:
    gemma_edge.convert(random_checkpoint, tmp_path / "b", sizes=["small"], context=32, verify=False)
    record = read_quality(tmp_path / "b")
    assert record is not None and record.weights is None and record.prompts is not None
