"""A published drafter in a bundle drafts in our session what it drafts in transformers, on the model's own caches."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gemma4_assistants import fit_head, hf_drafts, make_assistant
from gemma4_models import write_random_model
from gemma4_oracle import hf_greedy
from gpu_process import driver
from native_runner import NativeRunner, litert_path, runner_path
from numpy.typing import NDArray

from converters.assistant import AssistantChoice
from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge import cli
from toolkit.base.errors import BundleError
from toolkit.bundle.manifest import DRAFTER
from toolkit.bundle.manifest_json import dump_manifest, read_manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import AnswerRequest, SessionConversation
from toolkit.runtime.drafts.drafter import DrafterSource, DraftModel
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.generate import Generation, GenerationReport
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings
from toolkit.runtime.speculative import SpeculativeDecoder

pytestmark = pytest.mark.reference

SETTINGS = SessionSettings(threads=1, weight_cache="memory")
LONG = [2, *np.random.default_rng(5).integers(20, 300, 520).tolist()]
PROMPT, TOKENS = LONG[:6], 40
WORDS = 300
"""Ids below may be drawn."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gemma4") / "checkpoint")


@pytest.fixture(scope="module")
def text(checkpoint: Path) -> list[int]:
    """What the model says after `PROMPT`."""
    return hf_greedy(checkpoint, PROMPT, TOKENS)


@pytest.fixture(scope="module")
def assistant(checkpoint: Path, text: list[int]) -> Path:
    """A random drafter whose output matrix was fitted to the model's text, so that it is often right."""
    path = make_assistant(checkpoint.parent / "assistant", seed=6, sliding_window=16, max_position_embeddings=4096)
    return fit_head(path, checkpoint, [*PROMPT, *text], first=len(PROMPT))


def converted(checkpoint: Path, assistant: Path, path: Path, *, quant: str = "f32", context: int = 2048) -> Path:
    """A bundle with rings of 24 rows and, with a context of 2,048, a bucket of 512."""
    chosen = AssistantChoice(assistant)
    request = ConvertRequest(checkpoint, path, {"text": quant}, context=context, prefill_sizes=(4, 8), drafter=chosen)
    convert(request, gate=None)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, assistant: Path) -> Path:
    return converted(checkpoint, assistant, checkpoint.parent / "bundle")


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Session]:
    with Session(Bundle(bundle), SETTINGS) as session:
        yield session


@pytest.fixture(scope="module")
def drafter(shared: Session) -> DrafterSource:
    return DrafterSource(*shared.drafter())


@pytest.fixture
def session(shared: Session) -> Session:
    shared.truncate(0)
    return shared


def drafts_of_transformers(checkpoint: Path, assistant: Path, ids: Sequence[int]) -> list[int]:
    return [int(draft.logits.argmax()) for draft in hf_drafts(checkpoint, assistant, ids, 3)]


# The window is 16 and the drafter sees one key more; rings have 24 rows, and the bucket 512.
@pytest.mark.parametrize("length", [3, 17, 18, 19, 41, 512, 513, 514], ids="{} tokens".format)
def test_drafts_are_those_of_transformers(
    session: Session, drafter: DrafterSource, checkpoint: Path, assistant: Path, length: int
) -> None:
    ids = LONG[:length]
    session.feed(ids[:-1])
    found = drafter.propose(ids, session.activations()[0], 3)
    assert list(found) == drafts_of_transformers(checkpoint, assistant, ids)


def test_drafts_after_rejected_drafts_and_in_the_next_turn(
    session: Session, drafter: DrafterSource, checkpoint: Path, assistant: Path
) -> None:
    ids = LONG[:34]
    session.feed(ids[:-1])
    token = int(session.verify([ids[-1], 7, 8, 9])[0].argmax())
    state = session.activations()[0]
    session.truncate(len(ids))  # three rows of each ring are those of drafts that were wrong
    ids = [*ids, token]
    assert list(drafter.propose(ids, state, 3)) == drafts_of_transformers(checkpoint, assistant, ids)
    turn = [*ids[:-4], *LONG[100:120]]  # the next turn goes on before the end
    assert session.rewind_to(turn) == len(ids) - 4
    session.prefill(turn[session.position : -2])
    session.decode(turn[-2])
    assert list(drafter.propose(turn, session.activations()[0], 3)) == drafts_of_transformers(
        checkpoint, assistant, turn
    )


def test_drafts_after_a_return_as_far_back_as_the_rings_reach(
    session: Session, drafter: DrafterSource, checkpoint: Path, assistant: Path
) -> None:
    session.prefill(LONG[:64])
    back_to = min(position for position in range(1, 64) if session._caches.can_return_to(position))
    assert 50 < back_to < 60
    session.truncate(back_to)
    session.decode(LONG[back_to])
    ids = LONG[: back_to + 2]
    assert list(drafter.propose(ids, session.activations()[0], 3)) == drafts_of_transformers(checkpoint, assistant, ids)


def test_the_caches_are_read_in_place_and_stay_as_they_are(session: Session) -> None:
    model, embedding = session.drafter()
    buffers = session._caches.buffers
    assert all(model._caches[name] is buffers[name] for name in session.bundle.manifest.drafter.caches)  # type: ignore[union-attr]
    session.feed(LONG[:30])
    before = {name: buffer.read() for name, buffer in buffers.items()}
    assert len(DrafterSource(model, embedding).propose(LONG[:31], session.activations()[0], 3)) == 3
    for name, buffer in buffers.items():
        np.testing.assert_array_equal(buffer.read(), before[name])


# --- answers ---------------------------------------------------------------------------------------------------------


def generated(
    session: Session, sampling: Sampling, sources: DraftSources | None, prompt: Sequence[int] = PROMPT, limit: int = 60
) -> GenerationReport:
    drafts = None if sources is None else sources.for_answer()
    answer = Generation(session, prompt, Sampler(sampling, WORDS), limit=limit, stops=(), drafts=drafts)
    assert tuple(answer) == answer.report().token_ids and len(answer.report().token_ids) == limit
    return answer.report()


SAMPLINGS = [Sampling(), Sampling(temperature=1.0, top_k=20, seed=3)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("start", [6, 480], ids=["rings wrap", "the bucket changes"])
def test_tokens_are_those_of_plain_decoding(session: Session, sampling: Sampling, start: int) -> None:
    prompt = LONG[:start]
    plain = generated(session, sampling, None, prompt)
    with closing(DraftSources(session)) as sources:
        session.truncate(0)
        drafted = generated(session, sampling, sources, prompt)
        assert drafted.token_ids == plain.token_ids
        assert drafted.drafts is not None and drafted.drafts.offered > 0
        assert drafted.drafts.steps + drafted.drafts.accepted == len(drafted.token_ids)
        # A second turn, which keeps the first one's tokens.
        turn = [*prompt, *drafted.token_ids, *LONG[300:310]]
        session.truncate(session.position)
        again = generated(session, sampling, sources, turn, limit=20)
        session.truncate(0)
        assert again.reused_tokens > 0 and again.token_ids == generated(session, sampling, None, turn, 20).token_ids


@pytest.mark.slow
@pytest.mark.parametrize("quant", [pytest.param("int8", marks=pytest.mark.full), "int4-channel"])
def test_tokens_of_quantised_models_are_those_of_plain_decoding(
    checkpoint: Path, assistant: Path, tmp_path: Path, quant: str
) -> None:
    path = converted(checkpoint, assistant, tmp_path / "bundle", quant=quant, context=256)
    with Session(Bundle(path), SETTINGS) as session, closing(DraftSources(session)) as sources:
        plain = generated(session, Sampling(), None)
        session.truncate(0)
        drafted = generated(session, Sampling(), sources)
    assert drafted.token_ids == plain.token_ids and drafted.drafts is not None and drafted.drafts.offered > 0


class Watched:
    """A source whose drafts are kept."""

    def __init__(self, source: DrafterSource) -> None:
        self.source = source
        self.steps: list[Sequence[int]] = []

    def propose(self, ids: Sequence[int], activations: NDArray[np.float32] | None, most: int) -> Sequence[int]:
        drafts = self.source.propose(ids, activations, most)
        if drafts:
            self.steps.append(drafts)
        return drafts


def test_as_many_drafts_are_accepted_as_of_transformers(
    session: Session, drafter: DrafterSource, checkpoint: Path, assistant: Path, text: list[int]
) -> None:
    watched = Watched(drafter)
    session.prefill(PROMPT[:-1])
    decoder = SpeculativeDecoder(session, watched, PROMPT[:-1], clock=lambda: 0.0)  # it drafts whatever it costs
    token, found = PROMPT[-1], []
    for _ in range(TOKENS):
        token = int(decoder.decode(token).argmax())
        found.append(token)
    assert found == text
    # A draft counts once it is processed in place of the token that was drawn; the last one that was drawn is not.
    wanted, accepted, at = [], 0, 0
    while at < TOKENS - 1:
        wanted.append(drafts_of_transformers(checkpoint, assistant, [*PROMPT, *text[: at + 1]]))
        pairs = zip(wanted[-1], text[at + 1 : TOKENS - 1], strict=False)
        right = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        accepted, at = accepted + right, at + 1 + right
    assert [list(step) for step in watched.steps] == wanted
    counts = decoder.statistics
    assert (counts.offered, counts.accepted) == (3 * len(wanted), accepted) and accepted > len(wanted)


def test_an_interrupt_between_drafts_leaves_a_conversation_that_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generated(session, Sampling(), None)
    session.truncate(0)
    own, calls = DraftModel.guess, []

    def interrupted(self: DraftModel, *args: NDArray[np.float32]) -> tuple[int, NDArray[np.float32]]:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return own(self, *args)

    monkeypatch.setattr(DraftModel, "guess", interrupted)
    with closing(DraftSources(session)) as sources:
        sampler, drafts = Sampler(Sampling(), WORDS), sources.for_answer()
        answer = Generation(session, PROMPT, sampler, limit=60, stops=(), drafts=drafts)
        with pytest.raises(KeyboardInterrupt):
            list(answer)
        kept = answer.report().token_ids
        assert kept == plain.token_ids[: len(kept)] and 0 < len(kept) < 60
        rest = generated(session, Sampling(), sources, [*PROMPT, *kept], limit=60 - len(kept))
    assert (*kept, *rest.token_ids) == plain.token_ids and len(calls) > 5


@pytest.mark.gpu
@pytest.mark.full
def test_a_gpu_drafts_on_the_caches_in_its_memory_what_the_cpu_drafts(
    session: Session, drafter: DrafterSource, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in driver().environment.items():
        monkeypatch.setenv(name, value)
    with Session(Bundle(bundle), replace(SETTINGS, backend="gpu")) as other, closing(DraftSources(other)) as sources:
        source = sources.drafter()
        assert source is not None
        for length in (3, 41, 514):
            found = []
            for one, drafts in ((session, drafter), (other, source)):
                one.truncate(0)
                one.feed(LONG[: length - 1])
                found.append(list(drafts.propose(LONG[:length], one.activations()[0], 3)))
            assert found[0] == found[1]
        session.truncate(0)
        other.truncate(0)
        assert generated(other, Sampling(), sources).token_ids == generated(session, Sampling(), None).token_ids


def test_it_is_loaded_for_the_first_answer_that_is_drafted(bundle: Path) -> None:
    with closing(SessionConversation(Bundle(bundle), SETTINGS)) as conversation:
        request = AnswerRequest(PROMPT, Sampler(Sampling(), WORDS), limit=4, stops=())
        assert len(tuple(conversation.answer(request))) == 4 and "drafter" not in conversation.groups_loaded
        conversation.forget()
        assert len(tuple(conversation.answer(replace(request, speculative=True)))) == 4
        assert "drafter" in conversation.groups_loaded


def test_run_says_how_many_drafts_were_right(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["--speculative"]):
        arguments = ["run", str(bundle), "-p", "on a mat", "--raw", "--max-tokens", "40", "--json", *more]
        assert cli.main([*arguments, "--temperature", "0", "--threads", "1", "--weight-cache", "memory"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, drafted = found
    assert drafted["token_ids"] == plain["token_ids"] and plain["drafts"] is None
    counts = drafted["drafts"]
    assert counts["steps"] + counts["accepted"] == len(plain["token_ids"]) and counts["offered"] > 0
    assert "drafter" in drafted["groups_loaded"] and "drafter" not in plain["groups_loaded"]


@pytest.mark.slow
def test_the_program_in_c_has_the_same_bits_in_plain_decoding(session: Session, bundle: Path) -> None:
    with NativeRunner([runner_path(), litert_path()]) as native:
        native.ok("open", bundle=str(bundle), threads=1)
        for part in (LONG[:30], LONG[30:41]):
            assert (native.logits(part) == session.feed(part)).all()


# --- what is not run -------------------------------------------------------------------------------------------------


def test_a_graph_that_the_manifest_does_not_describe_is_refused_before_it_is_opened(
    bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = read_manifest(copy)
    record = manifest.drafter
    assert record is not None
    group = replace(manifest.groups["drafter"], runtime=replace(record, caches=record.caches[:2]))
    (copy / "manifest.json").write_bytes(dump_manifest(replace(manifest, groups={**manifest.groups, "drafter": group})))
    with (
        Session(Bundle(copy), SETTINGS) as session,
        closing(DraftSources(session)) as sources,
        pytest.raises(BundleError, match=r"drafter\.tflite.*input kv_cache_k_3: found FLOAT32.*, wanted nothing"),
    ):
        sources.for_answer()


def test_a_damaged_file_is_refused_before_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    data = bytearray((copy / DRAFTER).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / DRAFTER).write_bytes(data)
    refusal = pytest.raises(BundleError, match=r"drafter\.tflite, chunk 0: found sha256")
    with Session(Bundle(copy), SETTINGS) as session, refusal:
        session.drafter()
