"""`convert --report`: a page about the conversion, the same bytes each time, and never without the conversion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from paths import REPOSITORY

import gemma_edge
from converters.convert import Conversion
from gemma_edge.cli import main
from toolkit.base.errors import UsageError
from toolkit.runtime.session import SessionSettings

SETTINGS = SessionSettings(threads=1, weight_cache="memory")


def converted(checkpoint: Path, folder: Path) -> tuple[Conversion, str]:
    page = folder / "page.html"
    result = gemma_edge.convert(
        checkpoint, folder / "bundle", quant="f32", sizes=["small"], context=64, prefill_sizes=[16], session=SETTINGS,
        report=page,
    )  # fmt: skip
    return result, page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def conversion(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Conversion, str]:
    return converted(random_checkpoint, tmp_path_factory.mktemp("report"))


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_the_page_has_groups_reads_what_was_judged_and_what_a_size_needs(
    conversion: tuple[Conversion, str],
) -> None:
    result, page = conversion
    text = text_of(page)
    for name, group in result.manifest.groups.items():
        assert name in text and f"{group.files[0]}" in text
    assert "lm_head" in text and "Bytes read per token" in text and "KV cache" in text
    assert result.report is not None
    quality = result.report.sizes["small"].quality
    assert f"{quality.kl_divergence_mean:.3g} nats" in text and "Passed the quality gate" in text
    assert "at most 1e-06 nats" in text and "at least 99.0%" in text
    assert result.manifest.checkpoint.sha256 in text


def test_each_judged_prediction_is_drawn_and_each_passage_has_its_row(
    conversion: tuple[Conversion, str],
) -> None:
    result, page = conversion
    assert result.report is not None
    quality, passages = result.report.sizes["small"].quality, result.report.passages
    assert len(quality.divergences) == quality.tokens == sum(passage.predictions for passage in passages) == 256
    assert sum(quality.divergences) / 256 == pytest.approx(quality.kl_divergence_mean)
    (points,) = re.findall(r'<polyline class="l0" points="([^"]*)"', page)
    assert len(points.split()) == 256
    assert page.count(" to 256</td>") == 1


@pytest.mark.slow
def test_the_same_conversion_gives_the_same_page_and_no_place_is_on_it(
    conversion: tuple[Conversion, str], random_checkpoint: Path, tmp_path: Path
) -> None:
    _, again = converted(random_checkpoint, tmp_path)
    assert again == conversion[1]
    assert str(REPOSITORY) not in again and "/tmp" not in again


def test_without_the_gate_the_page_says_that_nothing_was_judged(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    short = ["--sizes", "small", "--context", "32", "--prefill", "4", "--no-verify", "--json"]
    assert main(["convert", str(random_checkpoint), "-o", str(tmp_path / "b"), *short, "--report", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(page)
    text = text_of(page.read_text(encoding="utf-8"))
    assert "Not verified" in text and "The weights were not verified." in text and "Divergence over" not in text


def test_a_page_that_may_not_be_written_stops_the_conversion_before_it_begins(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "notes.html"
    stranger.write_text("mine")
    for place in (stranger, tmp_path / "no" / "page.html", random_checkpoint / "config.json"):
        with pytest.raises(UsageError):
            gemma_edge.convert(random_checkpoint, tmp_path / "b", verify=False, report=place)
    assert stranger.read_text() == "mine" and not (tmp_path / "b").exists()
