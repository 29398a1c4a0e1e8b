"""Generation: where it ends, what it reuses, what it reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.errors import UsageError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.generate import Generation, GenerationReport
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

PROMPT = [2, 30, 40, 50, 60, 70, 80]


@pytest.fixture(scope="module")
def shared(random_bundle: Path) -> Iterator[Session]:
    with Session(Bundle(random_bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        yield session


@pytest.fixture
def session(shared: Session) -> Session:
    shared.truncate(0)
    return shared


def greedy(session: Session, prompt: list[int], *, limit: int = 8, stops: tuple[int, ...] = ()) -> GenerationReport:
    generation = Generation(session, prompt, Sampler(Sampling(), 281), limit=limit, stops=stops)
    assert tuple(generation) == generation.report().token_ids
    return generation.report()


def test_greedy_tokens_are_the_largest_logits_one_by_one(session: Session) -> None:
    report = greedy(session, PROMPT)
    ids = list(PROMPT)
    for token in report.token_ids:
        session.truncate(0)
        assert token == int(np.argmax(session.feed(ids)[:281]))
        ids.append(token)
    assert report.ending == "length"


def test_a_stop_token_ends_it_and_is_reported(session: Session) -> None:
    free = greedy(session, PROMPT).token_ids
    report = greedy(session, PROMPT, stops=(free[2],))
    assert report.ending == "stop token"
    assert report.token_ids == free[: free.index(free[2]) + 1]


def test_the_end_of_the_context_ends_it(session: Session) -> None:
    report = greedy(session, PROMPT, limit=100)
    assert report.ending == "context"
    assert len(report.token_ids) == 40 - len(PROMPT) + 1
    full = greedy(session, [2] * 40, limit=100)
    assert (full.ending, len(full.token_ids)) == ("context", 1)


def test_a_prompt_longer_than_the_context_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="found 41 tokens, wanted at most 40"):
        greedy(session, [2] * 41)


@pytest.mark.parametrize(("prompt", "limit"), [([], 4), ([2], 0)])
def test_nothing_to_do_is_refused(session: Session, prompt: list[int], limit: int) -> None:
    with pytest.raises(UsageError):
        greedy(session, prompt, limit=limit)


def test_the_next_turn_computes_only_new_tokens_and_says_the_same(session: Session) -> None:
    answer = greedy(session, PROMPT)
    longer = [*PROMPT, *answer.token_ids, 90, 100]
    second = greedy(session, longer)
    assert second.reused_tokens == len(PROMPT) + len(answer.token_ids) - 1
    session.truncate(0)
    fresh = greedy(session, longer)
    assert fresh.reused_tokens == 0
    assert fresh.token_ids == second.token_ids


def test_an_interrupted_answer_keeps_its_tokens(session: Session) -> None:
    generation = Generation(session, PROMPT, Sampler(Sampling(), 281), limit=8, stops=())
    tokens = iter(generation)
    kept = (next(tokens), next(tokens))
    generation.end("interrupted")
    assert generation.report().token_ids == kept
    assert generation.report().ending == "interrupted"


def test_rates_are_positive_or_absent(session: Session) -> None:
    report = greedy(session, PROMPT)
    assert report.prompt_tokens == 7
    assert report.prefill_tokens_per_s and report.prefill_tokens_per_s > 0
    assert report.decode_tokens_per_s and report.decode_tokens_per_s > 0
    assert report.time_to_first_token_s and report.time_to_first_token_s > 0
    session.truncate(0)
    assert greedy(session, [2]).prefill_tokens_per_s is None


def test_every_step_is_counted_in_one_figure(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the session's steps move: a prefilled token takes a second, a decode step a hundred."""
    now = 0.0
    prefill, decode = Session.prefill, Session.decode

    def slow_prefill(self: Session, ids: Sequence[int]) -> None:
        nonlocal now
        now += len(ids)
        prefill(self, ids)

    def slow_decode(self: Session, token: int) -> NDArray[np.float32]:
        nonlocal now
        now += 100
        return decode(self, token)

    monkeypatch.setattr(Session, "prefill", slow_prefill)
    monkeypatch.setattr(Session, "decode", slow_decode)
    monkeypatch.setattr("toolkit.runtime.generate.time.perf_counter", lambda: now)
    report = greedy(session, PROMPT, limit=4)
    assert report.prefill_tokens_per_s == 1
    assert report.time_to_first_token_s == len(PROMPT) - 1 + 100
    assert report.decode_tokens_per_s == pytest.approx(1 / 100)
    session.truncate(0)
    assert greedy(session, PROMPT, limit=1).decode_tokens_per_s is None


def test_ids_that_mean_nothing_are_never_generated(session: Session) -> None:
    sampler = Sampler(Sampling(temperature=100.0, seed=1), session.bundle.drawable_ids(session.bundle.tokenizer()))
    tokens = list(Generation(session, PROMPT, sampler, limit=30, stops=()))
    assert max(tokens) < 281
