"""Has a model write the text that it is calibrated with: the inputs of its matrices are then those of later use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from converters.calibration.text import CalibrationText, built_in_calibration_text
from toolkit.base.limited import limited
from toolkit.bundle.chat import Message
from toolkit.bundle.manifest import CHAT_TEMPLATE
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.generate import Generation
from toolkit.runtime.sampling import USUAL_TOP_K, USUAL_TOP_P, Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

CONTEXT = 256
_TOKENS = 4096
_BEGINNING = 12  # tokens of a paragraph that the model continues
_SEED = 1


def text_written_by(
    path: Path,
    settings: SessionSettings | None = None,
    *,
    tokens: int = _TOKENS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> CalibrationText:
    """About `tokens` tokens that a bundle writes, continuing paragraphs of the built-in text; then the built-in text.

    What a model writes may lack languages that it can read, which is why the built-in text follows. If the bundle has a
    chat template, every third beginning is a user's turn. Tokens are drawn at temperature 1 with a fixed seed.
    `progress` gets the number of beginnings done and their total.
    """
    bundle = Bundle(path)
    tokenizer = bundle.tokenizer()
    prompts = list(_prompts(bundle, tokenizer))
    share = max(1, tokens // len(prompts) - _BEGINNING)
    sampler = Sampler(Sampling(1.0, USUAL_TOP_K, USUAL_TOP_P, _SEED), bundle.drawable_ids(tokenizer))
    parts: list[str] = []
    given = built_in_calibration_text().text
    with Session(bundle, settings) as session:
        for done, prompt in enumerate(prompts, start=1):
            limit = min(share, session.context - len(prompt))
            stops = bundle.manifest.text.stop_token_ids
            ids = [*prompt, *Generation(session, prompt, sampler, limit=limit, stops=stops)]
            parts.append(tokenizer.decode(ids[1:], skip_special=False))
            progress(done, len(prompts))
    return CalibrationText("\n\n".join([*parts, given]))


def _prompts(bundle: Bundle, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of each beginning, bos first; none is longer than half of the context."""
    bos = bundle.manifest.text.bos_token_id
    chat = bundle.chat_template(tokenizer) if (bundle.path / CHAT_TEMPLATE).is_file() else None
    for number, paragraph in enumerate(built_in_calibration_text().text.split("\n\n")):
        ids = tokenizer.encode_limited(paragraph)[:_BEGINNING]
        if chat is not None and number % 3 == 2:
            text = limited("chat template", partial(chat.render, [Message("user", tokenizer.decode(ids))]))
            turn = tokenizer.encode_limited(text)
            ids = turn[1:] if turn[:1] == [bos] else turn
        yield [bos, *ids[: CONTEXT // 2]]
