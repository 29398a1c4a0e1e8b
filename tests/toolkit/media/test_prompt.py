"""Prompts with pictures and sounds are those of transformers' processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.errors import UsageError
from toolkit.media.prompt import IMAGE, SOUND, SoftTokens, expand_placeholders, soft_token_starts

PIECES = (IMAGE.placeholder, SOUND.placeholder, "\n", "\n\n", "a ", "<start_of_turn>user\n", "é\\1\\g<0>", "{}")
NAMES = ("<start_of_turn>", *(text for soft in (IMAGE, SOUND) for text in (soft.begin, soft.placeholder, soft.end)))


@pytest.fixture(scope="module")
def processor() -> Any:
    """transformers' own, around a tokenizer of bytes that joins newlines as Gemma's does."""
    pytest.importorskip("transformers")
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast
    from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
    from transformers.models.gemma3n.processing_gemma3n import Gemma3nProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    vocab = {"<unk>": 0, "\n": 1, "\n\n": 2, "\n\n\n": 3, "\n\n\n\n": 4, **{f"<0x{n:02X}>": 5 + n for n in range(256)}}
    merges = [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n")]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.ByteFallback()
    core.add_special_tokens([AddedToken(name, normalized=False) for name in NAMES])
    spelled = {
        "boi_token": IMAGE.begin,
        "image_token": IMAGE.placeholder,
        "eoi_token": IMAGE.end,
        "boa_token": SOUND.begin,
        "audio_token": SOUND.placeholder,
        "eoa_token": SOUND.end,
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", extra_special_tokens=spelled)
    side = {"height": 8, "width": 8}
    images = SiglipImageProcessorPil(size=side, resample=2, do_normalize=False)
    return Gemma3nProcessor(Gemma3nAudioFeatureExtractor(), images, tokenizer)


def ids_of_transformers(processor: Any, text: str) -> list[int]:
    images = [np.zeros((8, 8, 3), np.uint8)] * text.count(IMAGE.placeholder)
    sounds = [np.zeros(1000, np.float32)] * text.count(SOUND.placeholder)
    encoded = processor(text=text, images=images or None, audio=sounds or None, return_tensors="np")
    return list(encoded["input_ids"][0])


def expanded(text: str) -> str:
    return expand_placeholders(text, text.count(IMAGE.placeholder), text.count(SOUND.placeholder))


@pytest.mark.reference
@pytest.mark.parametrize(
    "text",
    [
        "no picture",
        "<start_of_turn>user\n<image_soft_token>What is it?",
        "See\n<image_soft_token>\n<audio_soft_token>\nand <image_soft_token><audio_soft_token><image_soft_token>",
        "<audio_soft_token>",
    ],
)
def test_ids_are_transformers(text: str, processor: Any) -> None:
    assert processor.tokenizer(expanded(text))["input_ids"] == ids_of_transformers(processor, text)


@pytest.mark.reference
def test_expanding_among_ids_would_not_be_transformers(processor: Any) -> None:
    """The newline before a placeholder and the two of its block are one token."""
    ids = ids_of_transformers(processor, f"\n{IMAGE.placeholder}")
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert names == ["\n\n\n", IMAGE.begin, *[IMAGE.placeholder] * 256, IMAGE.end, "\n\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_everything_but_placeholders_stays(pieces: list[str]) -> None:
    blocks = {IMAGE.placeholder: IMAGE.block(), SOUND.placeholder: SOUND.block()}
    assert expanded("".join(pieces)) == "".join(blocks.get(piece, piece) for piece in pieces)


def test_blocks_have_the_counts_of_gemma_3n() -> None:
    assert IMAGE.block().count(IMAGE.placeholder) == 256
    assert SOUND.block().count(SOUND.placeholder) == 188


def test_a_placeholder_too_many_or_too_few_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^prompt's images: found 1 placeholders .*wanted 0, .*; do not write"):
        expand_placeholders("What does <image_soft_token> mean?")
    with pytest.raises(
        UsageError, match=r"^prompt's sounds: found 1 placeholders .*wanted 2, one for each sound given$"
    ):
        expand_placeholders("<audio_soft_token>", sounds=2)


def test_other_counts_and_spellings_are_followed() -> None:
    tiny = SoftTokens("image", "<i>", "<b>", "<e>", 1)
    assert expand_placeholders("<i>?", 1, image=tiny) == "\n\n<b><i><e>\n\n?"


@given(st.lists(st.integers(0, 2), max_size=6))
def test_starts_are_where_blocks_begin(gaps: list[int]) -> None:
    ids: list[int] = []
    wanted = []
    for gap in gaps:
        ids += [1] * (gap + 1)
        wanted.append(len(ids))
        ids += [7] * 3
    assert soft_token_starts(ids, 7, 3) == tuple(wanted)


@pytest.mark.parametrize("ids", [[7], [7, 7], [1, 7, 7, 7, 7], [7, 7, 7, 1, 7]])
def test_a_run_of_another_length_is_refused(ids: list[int]) -> None:
    with pytest.raises(UsageError, match=r"soft tokens of id 7 at position \d+, wanted runs of 3"):
        soft_token_starts(ids, 7, 3)


def test_no_soft_tokens_have_no_starts() -> None:
    assert soft_token_starts([], 7, 3) == ()
    assert soft_token_starts([1, 2], 7, 3) == ()
