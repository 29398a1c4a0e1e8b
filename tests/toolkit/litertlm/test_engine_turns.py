"""A chat of several turns in Google's engine, and in ours: what their second answers were given.

The engine does not look up the embeddings of an answer's last token: when it goes on with the next message, that token
has zeros in their place. So a second answer of the engine is that of our session where a token without embeddings
stands for the last one, and not where the right one does (docs/verify.md).
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from litert_lm_engine import open_engine
from paths import EXAMPLE

import gemma_edge
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session

pytestmark = [pytest.mark.lm, pytest.mark.slow]

EMPTY = 3000
"""A token that no text has; its embeddings are made zeros."""
TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")
FIRST = ("Tell me a story about a ship.", "Who are you?", "Name three animals.", "My dog is called Max.")
SECOND = "And then?"
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example in float32, with one token that has no embeddings."""
    folder = tmp_path_factory.mktemp("turns")
    checkpoint = Path(shutil.copytree(EXAMPLE, folder / "checkpoint"))
    erase_row(checkpoint / "model.safetensors", EMPTY)
    path = folder / "bundle"
    gemma_edge.convert(
        checkpoint, path, quant="f32", groups=["text"], context=128, prefill_sizes=[16], verify=False
    )  # fmt: skip
    return path


def erase_row(path: Path, row: int) -> None:
    """Make one row of both embedding tables zeros."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = [(name, entry) for name, entry in json.loads(file.read(length)).items() if name.endswith(TABLES)]
        assert len(tensors) == len(TABLES)
        for _, entry in tensors:
            begin, end = entry["data_offsets"]
            row_bytes = (end - begin) // entry["shape"][0]
            file.seek(8 + length + begin + row * row_bytes)
            file.write(bytes(row_bytes))


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with Session(Bundle(bundle)) as opened:
        yield opened


def greedy(session: Session, prompt: list[int]) -> list[int]:
    """The most likely tokens after a prompt, up to one that stops, which is the last of them, or a number."""
    session.truncate(0)
    logits, found = session.feed(prompt), [0] * 0
    while len(found) < NEW_TOKENS and (not found or found[-1] not in session.text.stop_token_ids):
        found.append(int(np.argmax(logits[: session.text.text_ids])))
        logits = session.decode(found[-1])
    return found


def test_the_engine_forgets_the_embeddings_of_an_answers_last_token(bundle: Path, session: Session) -> None:
    export = bundle.parent / "bundle.litertlm"
    gemma_edge.export(bundle, export)
    tokenizer: Tokenizer = session.bundle.tokenizer()
    stops = set(session.text.stop_token_ids)

    def shown(ids: list[int]) -> str:
        return tokenizer.decode([token for token in ids if token not in stops], skip_special=True)

    as_zeros, as_drawn = [], []
    with open_engine(export) as engine:
        for first in FIRST:
            with engine.engine.create_conversation(
                sampler_config=engine.greedy_sampler(), max_output_tokens=NEW_TOKENS
            ) as conversation:
                texts, answers, positions = [], [], []
                for message in (first, SECOND):
                    texts.append(conversation.render_message_to_string(message))
                    answer = conversation.send_message(message)
                    answers.append("".join(part["text"] for part in answer["content"]))
                    positions.append(conversation.token_count)
            prompt = [session.text.bos_token_id, *tokenizer.encode(texts[0], special=False)]
            drawn = greedy(session, prompt)
            assert answers[0] == shown(drawn) and positions[0] == len(prompt + drawn)
            # The engine's text for a later message begins with that message: no newline follows the answer.
            assert texts[1].startswith("<start_of_turn>")
            following = tokenizer.encode(texts[1], special=False)
            zeros = greedy(session, [*prompt, *drawn[:-1], EMPTY, *following])
            assert positions[1] == len([*prompt, *drawn, *following, *zeros])
            as_zeros.append(shown(zeros) == answers[1])
            as_drawn.append(shown(greedy(session, [*prompt, *drawn, *following])) == answers[1])
    assert all(as_zeros) and not any(as_drawn)
