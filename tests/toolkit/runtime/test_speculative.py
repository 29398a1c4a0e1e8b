"""Speculative decoding gives the tokens of plain decoding, whatever is drafted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.base.errors import BundleError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.prompt_lookup import PromptLookup
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.generate import Generation, GenerationReport
from toolkit.runtime.sampling import Sampler, Sampling, distribution
from toolkit.runtime.session import Session, SessionSettings
from toolkit.runtime.speculative import SpeculativeDecoder

PROMPT = [2, 30, 40, 50, 60, 70, 80]
WORDS = 281
"""Ids below may be drawn."""
F32 = NDArray[np.float32]


class Foreseen:
    """Drafts the right tokens, of which every `wrong`-th is replaced by another; 0: none is."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], *, wrong: int = 0) -> None:
        self.text = [*prompt, *answer]
        self.wrong = wrong

    def propose(self, ids: Sequence[int], activations: F32 | None, most: int) -> Sequence[int]:
        drafts = self.text[len(ids) : len(ids) + most]
        return [
            (token + 1) % WORDS if self.wrong and (len(ids) + i) % self.wrong == 0 else token
            for i, token in enumerate(drafts)
        ]


class Nothing:
    """Never has a guess."""

    def propose(self, ids: Sequence[int], activations: F32 | None, most: int) -> Sequence[int]:
        return ()


@pytest.fixture(scope="module")
def shared(drafting_bundle: Path) -> Iterator[Session]:
    with Session(Bundle(drafting_bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        yield session


@pytest.fixture
def session(shared: Session) -> Session:
    shared.use("full")
    shared.truncate(0)
    return shared


def generate(
    session: Session,
    prompt: Sequence[int] = PROMPT,
    *,
    drafts: DraftSource | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008, it is frozen
    limit: int = 40,
    stops: Sequence[int] = (),
) -> GenerationReport:
    generation = Generation(session, prompt, Sampler(sampling, WORDS), limit=limit, stops=stops, drafts=drafts)
    assert tuple(generation) == generation.report().token_ids
    return generation.report()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=20, seed=3)])
@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("wrong", [0, 1, 2, 5])
def test_tokens_and_their_random_numbers_are_those_of_plain_decoding(
    session: Session, sampling: Sampling, size: str, wrong: int
) -> None:
    session.use(size)
    plain = generate(session, sampling=sampling)
    session.truncate(0)
    report = generate(session, sampling=sampling, drafts=Foreseen(PROMPT, plain.token_ids, wrong=wrong))
    assert report.token_ids == plain.token_ids and report.ending == plain.ending
    assert report.drafts is not None and plain.drafts is None
    assert report.drafts.steps + report.drafts.accepted == len(report.token_ids)
    if wrong == 0:
        # Three drafts a step, but in the fifth: how long a step without them takes has to be known.
        assert (report.drafts.steps, report.drafts.accepted) == (11, 29)
    if wrong == 1:
        assert report.drafts.accepted == 0


@pytest.mark.full
def test_fifty_prompts_have_the_text_of_plain_greedy_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    convert(ConvertRequest(EXAMPLE, path, groups=("text",), context=2048, draft_tokens=3), gate=None)
    bundle = Bundle(path)
    tokenizer = bundle.tokenizer()
    lines = [line for line in (EXAMPLE / "eval.txt").read_text().splitlines() if line.strip()][:50]
    accepted = 0
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        for line in lines:
            prompt = tokenizer.encode(line, special=True)
            session.truncate(0)
            plain = generate(session, prompt, limit=80)
            session.truncate(0)
            report = generate(session, prompt, limit=80, drafts=PromptLookup())
            assert report.token_ids == plain.token_ids, line
            assert report.drafts is not None
            accepted += report.drafts.accepted
    assert len(lines) == 50 and accepted > 500  # it repeats itself


def test_sampled_pairs_of_tokens_have_the_models_distribution(session: Session) -> None:
    """Chi-squared over 500 seeds, where the most likely tokens are drafted and often refused."""
    sampling = Sampling(temperature=1.5, top_k=4)
    draws = 500
    expected: dict[tuple[int, int], float] = {}
    for first, chance in choices(session.feed(PROMPT), sampling):
        session.truncate(len(PROMPT))
        expected |= {(first, second): chance * p for second, p in choices(session.decode(first), sampling)}
    greedy = generate(session, limit=2).token_ids
    counts = dict.fromkeys(expected, 0)
    accepted = 0
    for seed in range(1000, 1000 + draws):
        drafts = Foreseen(PROMPT, greedy)
        report = generate(session, drafts=drafts, sampling=replace(sampling, seed=seed), limit=2)
        first, second = report.token_ids
        counts[first, second] += 1
        assert report.drafts is not None
        accepted += report.drafts.accepted
    assert 0.1 < accepted / draws < 0.9
    cells = len(expected)
    squares = sum((counts[pair] - draws * p) ** 2 / (draws * p) for pair, p in expected.items())
    # Its mean is the degrees of freedom, its variance twice that.
    assert squares < cells - 1 + 3 * (2 * (cells - 1)) ** 0.5


def choices(logits: F32, sampling: Sampling) -> list[tuple[int, float]]:
    """The tokens that may be drawn, and their probabilities."""
    ids, probabilities = distribution(logits[:WORDS], sampling)
    return list(zip(ids.tolist(), probabilities.tolist(), strict=True))


def test_a_stop_token_among_drafts_ends_the_answer(session: Session) -> None:
    plain = generate(session)
    stop = plain.token_ids[6]
    session.truncate(0)
    drafts = Foreseen(PROMPT, plain.token_ids)
    report = generate(session, drafts=drafts, stops=(stop,))
    assert report.ending == "stop token"
    assert report.token_ids == plain.token_ids[: plain.token_ids.index(stop) + 1]


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 8])
def test_an_answer_has_at_most_as_many_tokens_as_wanted(session: Session, limit: int) -> None:
    plain = generate(session)
    session.truncate(0)
    report = generate(session, drafts=Foreseen(PROMPT, plain.token_ids), limit=limit)
    assert (report.token_ids, report.ending) == (plain.token_ids[:limit], "length")


@pytest.mark.parametrize("before", [110, 115, 116, 117, 118, 119, 120])
def test_the_end_of_the_context_ends_it_as_ever(session: Session, before: int) -> None:
    prompt = [2, *np.random.default_rng(before).integers(10, WORDS, before - 1).tolist()]
    plain = generate(session, prompt)
    session.truncate(0)
    report = generate(session, prompt, drafts=Foreseen(prompt, plain.token_ids))
    assert (report.ending, len(report.token_ids)) == ("context", 121 - before)
    assert report.token_ids == plain.token_ids


def test_the_next_turn_goes_on_with_what_was_kept_of_a_broken_off_answer(session: Session) -> None:
    plain = generate(session)
    session.truncate(0)
    generation = Generation(
        session, PROMPT, Sampler(Sampling(), WORDS), limit=40, stops=(), drafts=Foreseen(PROMPT, plain.token_ids)
    )
    tokens = iter(generation)
    kept = [next(tokens) for _ in range(6)]
    generation.end("interrupted")
    assert session.position > len(PROMPT) + 5  # drafts that were not drawn
    longer = [*PROMPT, *kept, 90, 100]
    second = generate(session, longer, drafts=PromptLookup())
    # All that was kept but perhaps its last token, which is in the caches if it was drafted.
    assert second.reused_tokens == len(PROMPT) + 6
    session.use("small")
    session.use("full")
    session.truncate(0)
    assert generate(session, longer).token_ids == second.token_ids


def test_a_source_without_guesses_costs_no_other_steps(session: Session) -> None:
    plain = generate(session)
    session.truncate(0)
    report = generate(session, drafts=Nothing())
    assert report.token_ids == plain.token_ids
    assert report.drafts is not None and report.drafts.to_json() == {"steps": 40, "offered": 0, "accepted": 0}


@pytest.mark.parametrize(("seconds", "steps_with_drafts"), [(1.5, 10), (3.0, 4)])
def test_drafts_that_cost_more_than_they_save_are_left_out_for_a_while(
    session: Session, monkeypatch: pytest.MonkeyPatch, seconds: float, steps_with_drafts: int
) -> None:
    """By a clock that only steps move: one without drafts takes a second. Every second draft is wrong."""
    now, checked = 0.0, 0
    decode, verify = Session.decode, Session.verify

    def timed_decode(self: Session, token: int) -> F32:
        nonlocal now
        now += 1.0
        return decode(self, token)

    def timed_verify(self: Session, ids: Sequence[int]) -> F32:
        nonlocal now, checked
        now, checked = now + seconds, checked + 1
        return verify(self, ids)

    answer = generate(session, limit=30).token_ids
    session.truncate(0)
    session.prefill(PROMPT[:-1])
    monkeypatch.setattr(Session, "decode", timed_decode)
    monkeypatch.setattr(Session, "verify", timed_verify)
    source = Foreseen(PROMPT, answer, wrong=2)
    decoder = SpeculativeDecoder(session, Late(source, len(PROMPT) + 2), PROMPT[:-1], clock=lambda: now)
    token, found = PROMPT[-1], []
    for _ in range(22):
        token = int(decoder.decode(token)[:WORDS].argmax())
        found.append(token)
    assert tuple(found) == answer[:22]
    assert checked == steps_with_drafts


class Late:
    """Has guesses only after some tokens."""

    def __init__(self, source: DraftSource, after: int) -> None:
        self.source, self.after = source, after

    def propose(self, ids: Sequence[int], activations: F32 | None, most: int) -> Sequence[int]:
        return self.source.propose(ids, activations, most) if len(ids) > self.after else ()


def test_a_bundle_that_cannot_check_drafts_says_how_to_convert_one(random_bundle: Path) -> None:
    settings, says = SessionSettings(threads=1, weight_cache="memory"), "convert the checkpoint with --draft-tokens 3"
    with Session(Bundle(random_bundle), settings) as session, pytest.raises(BundleError, match=says):
        generate(session, drafts=PromptLookup())


class TestPromptLookup:
    def test_a_longer_match_comes_before_a_later_one(self) -> None:
        ids = [1, 2, 3, 4, 9, 9, 3, 4, 7, 7, 1, 2, 3, 4]
        assert PromptLookup().propose(ids, None, 2) == [9, 9]

    def test_of_equal_matches_the_latest_counts(self) -> None:
        assert PromptLookup().propose([1, 2, 3, 1, 2, 4, 1, 2], None, 1) == [4]

    def test_a_repetition_is_continued_beyond_the_text(self) -> None:
        assert PromptLookup().propose([8, 5, 6, 5, 6], None, 5) == [5, 6, 5, 6, 5]

    def test_text_that_grows_is_indexed_once(self) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 4, 300).tolist()
        growing = PromptLookup()
        for count in range(1, 300):
            assert growing.propose(ids[:count], None, 5) == PromptLookup().propose(ids[:count], None, 5)
        assert PromptLookup().propose([3], None, 5) == []
