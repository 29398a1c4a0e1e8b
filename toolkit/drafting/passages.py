"""Passages that a model writes itself, with its hidden states: what a drafter is fitted to.

Each passage is a random opening, drawn from the model token by token, and the model's greedy continuation of it. Every
other opening is a user's message, and the greedy part is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError
from toolkit.base.limited import limited
from toolkit.bundle.chat import Message
from toolkit.bundle.manifest import CHAT_TEMPLATE
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session

F32 = NDArray[np.float32]

OPENING_TOKENS = (4, 48)
"""The fewest and the most tokens of an opening."""
ANSWER_TOKENS = 112
"""The most greedy tokens of a passage; it is small because variety comes from the openings."""
_PERIODS, _REPEATS = 16, 3
_MESSAGE = "MESSAGE"


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, of which the greedy ones begin at index `opening`, and the states that they were predicted from.

    `states`: f32[len(ids) - first - 1, hidden], the rows that logits are computed from, from position `first` on.
    `likeliest`: for each state, the token that the model finds likeliest; in the greedy part, the token that follows.
    """

    ids: tuple[int, ...]
    opening: int
    first: int
    states: F32
    likeliest: tuple[int, ...]


def write_passages(
    bundle: Bundle, session: Session, tokens: int, *, seed: int = 0, progress: Callable[[int], None] = lambda _: None
) -> list[Passage]:
    """Have the model write passages with at least `tokens` greedy tokens in all.

    `progress` gets the number of greedy tokens of each passage. BundleError if the chat template leaves out the
    user's message.
    """
    tokenizer = bundle.tokenizer()
    drawn = Sampler(Sampling(temperature=1.0, seed=seed), bundle.drawable_ids(tokenizer))
    greedy = Sampler(Sampling(), drawn.vocabulary)
    lengths = np.random.default_rng(seed)
    frames = _frames(bundle)
    passages: list[Passage] = []
    written = 0
    while written < tokens:
        before, after = frames[len(passages) % len(frames)]
        wanted = int(lengths.integers(*OPENING_TOKENS, endpoint=True))
        passages.append(_write(session, before, after, wanted, drawn, greedy))
        count = len(passages[-1].ids) - passages[-1].opening
        written += count
        progress(count)
    return passages


def _frames(bundle: Bundle) -> list[tuple[list[int], list[int]]]:
    """The ids before and after an opening: the first token of a text, or what surrounds a user's message in a chat."""
    text = ([bundle.manifest.text.bos_token_id], list[int]())
    if CHAT_TEMPLATE not in bundle.manifest.files:
        return [text]
    tokenizer = bundle.tokenizer()
    template = bundle.chat_template(tokenizer)
    rendered = limited("chat template", partial(template.render, [Message("user", _MESSAGE)]))
    before, mark, after = rendered.partition(_MESSAGE)
    if not mark:
        raise BundleError("chat template", file=bundle.path / CHAT_TEMPLATE, found="it leaves a user's message out")
    message = (tokenizer.encode_limited(before), tokenizer.encode_limited(after))
    return [text, message]


def _write(
    session: Session, before: Sequence[int], after: Sequence[int], wanted: int, drawn: Sampler, greedy: Sampler
) -> Passage:
    stops = session.text.stop_token_ids
    room = session.context - len(after) - 2
    session.truncate(0)
    ids, states, likeliest = list(before), list[F32](), list[int]()

    def step(token: int) -> F32:
        logits = session.decode(token)
        states.append(session.activations()[0].copy())
        likeliest.append(greedy.draw(logits))
        return logits

    session.prefill(ids[:-1])
    logits = step(ids[-1])
    while len(ids) < min(len(before) + wanted, room) and (token := drawn.draw(logits)) not in stops:
        ids.append(token)
        logits = step(token)
    for token in after:
        ids.append(token)
        logits = step(token)
    opening = len(ids)
    while len(ids) < min(opening + ANSWER_TOKENS, session.context):
        ids.append(likeliest[-1])
        if ids[-1] in stops or repeats(ids[opening:]):
            break
        step(ids[-1])
    first = len(before) - 1
    kept = len(ids) - 1 - first
    return Passage(tuple(ids), opening, first, np.array(states[:kept], np.float32), tuple(likeliest[:kept]))


def repeats(ids: Sequence[int]) -> bool:
    """Whether a text ends in a loop: the same 16 or fewer tokens `_REPEATS` times, 16 tokens in all at least.

    >>> repeats([7] * 15), repeats([7] * 16), repeats([1, 2, 3] * 6)
    (False, True, True)
    """
    for period in range(1, _PERIODS + 1):
        length = max(_PERIODS, period * _REPEATS)
        tail = ids[-length:]
        if len(ids) >= length and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def dump_passages(passages: Sequence[Passage]) -> bytes:
    """The ids of passages as JSON lines, one passage each."""
    lines = (json.dumps({"opening": p.opening, "ids": p.ids}, separators=(",", ":")) for p in passages)
    return "".join(f"{line}\n" for line in lines).encode("ascii")
