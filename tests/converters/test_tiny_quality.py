"""What quantisation costs the tiny trained model, on text it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.convert import ConvertRequest, convert
from converters.gemma3n.recipes import built_in, ple_recipe
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from converters.verify import sequences_of, thresholds_for, verify
from toolkit.base.elements import ElementName
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

TINY = EXAMPLE
TOKENS = 2048


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(TINY)


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "ple", "limit"), [("int8", "int8", 1.01), ("int4", "int4", 1.05)])
@pytest.mark.parametrize("size", ["large", "small"])
def test_perplexity_on_held_out_text_stays_within_the_limit(
    tmp_path: Path, checkpoint: Checkpoint, quant: ElementName, ple: ElementName, limit: float, size: str
) -> None:
    part = checkpoint.slices[size]
    recipes = built_in(quant), ple_recipe(ple, checkpoint.config.ple_size)
    convert(ConvertRequest(checkpoint, tmp_path / "bundle", *recipes, (part,), context=512))
    bundle = Bundle(tmp_path / "bundle")
    ids = bundle.tokenizer().encode((TINY / "eval.txt").read_text(encoding="utf-8"), special=False)
    sequences = sequences_of(ids, checkpoint.config, context=512, tokens=TOKENS)
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        report = verify(session, SlicedCheckpoint(checkpoint, part), sequences, thresholds_for([quant]))
    quality = report.quality
    assert quality.tokens > TOKENS // 3
    assert quality.perplexity_checkpoint < 150  # the text is of the kind that the model was trained on
    assert quality.perplexity_bundle is not None
    assert quality.perplexity_bundle / quality.perplexity_checkpoint <= limit
