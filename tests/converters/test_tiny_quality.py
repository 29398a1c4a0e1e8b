"""What quantisation costs the tiny trained model, on text it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.convert import convert
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.request import ConvertRequest
from converters.thresholds import thresholds_for
from converters.verify import sequences_of, verify
from toolkit.base.elements import ElementName
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

TINY = EXAMPLE
TOKENS = 1024


@pytest.fixture(scope="module")
def checkpoint() -> Gemma3nCheckpoint:
    return open_gemma3n(TINY)


@pytest.mark.full
@pytest.mark.parametrize(
    ("quant", "ple", "limit"), [pytest.param("int8", "int8", 1.01, marks=pytest.mark.full), ("int4", "int4", 1.05)]
)
@pytest.mark.parametrize("size", ["large", "small"])
def test_perplexity_on_held_out_text_stays_within_the_limit(
    tmp_path: Path, checkpoint: Gemma3nCheckpoint, quant: ElementName, ple: ElementName, limit: float, size: str
) -> None:
    part = checkpoint.slices[size]
    recipes = {"text": quant, "ple": ple}
    request = ConvertRequest(checkpoint, tmp_path / "bundle", recipes, groups=("text",), sizes=(part,), context=512)
    convert(request, gate=None)
    bundle = Bundle(tmp_path / "bundle")
    ids = bundle.tokenizer().encode((TINY / "eval.txt").read_text(encoding="utf-8"), special=False)
    sequences = sequences_of(ids, checkpoint.config.bos_token_id, context=512, tokens=TOKENS)
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        report = verify(session, checkpoint.reference(part), sequences, thresholds_for([quant]))
    quality = report.quality
    assert quality.tokens == TOKENS
    assert quality.perplexity_checkpoint < 150  # the text is of the kind that the model was trained on
    assert quality.perplexity_bundle is not None
    assert quality.perplexity_bundle / quality.perplexity_checkpoint <= limit
