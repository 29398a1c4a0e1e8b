"""A loaded model from Python: answers, streams, conversations, threads, and nothing printed."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import gemma_edge
from gemma_edge.api.model import Model
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.chat import Message
from toolkit.runtime.answer import Answer
from toolkit.runtime.session import Session


@pytest.fixture(scope="module")
def shared_model(random_bundle: Path) -> Iterator[Model]:
    with gemma_edge.load(random_bundle, weight_cache="memory") as model:
        yield model


@pytest.fixture(scope="module")
def talker(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """With room for a conversation."""
    path = tmp_path_factory.mktemp("talker") / "bundle"
    words = ["--context", "200", "--prefill", "4,16", "--sizes", "full,small", "--no-verify", "-q"]
    assert main(["convert", str(random_checkpoint), "-o", str(path), *words]) == 0
    with gemma_edge.load(path, weight_cache="memory") as model:
        yield model


@pytest.fixture
def model(shared_model: Model) -> Model:
    return shared_model


def test_an_answer_has_what_the_verb_prints(model: Model) -> None:
    answer = model.generate("the cat", raw=True, max_tokens=6)
    assert answer.prompt_tokens == 3
    assert len(answer.token_ids) == 6
    assert (answer.ending, answer.size) == ("length", "full")
    assert answer.decode_tokens_per_s and answer.time_to_first_token_s


def test_the_pieces_of_a_stream_are_the_text_of_the_answer(model: Model) -> None:
    heard: list[str] = []
    answer = model.generate("the cat", raw=True, max_tokens=8, on_text=heard.append)
    stream = model.stream("the cat", raw=True, max_tokens=8)
    assert list(stream) == heard
    assert "".join(heard) == stream.answer.text == answer.text


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(model: Model) -> None:
    def tokens(seed: int) -> tuple[int, ...]:
        return model.generate("cat", raw=True, max_tokens=12, temperature=3, top_k=0, top_p=1, seed=seed).token_ids

    first = tokens(7)
    assert tokens(8) != first
    assert tokens(7) == first


def test_a_size_is_chosen_for_each_call_and_leaves_no_trace(model: Model) -> None:
    assert model.sizes == ("full", "small")
    full = model.generate("the cat sat", raw=True, max_tokens=8)
    small = model.generate("the cat sat", raw=True, max_tokens=8, size="small")
    assert (full.size, small.size) == ("full", "small")
    assert full.token_ids != small.token_ids
    assert model.generate("the cat sat", raw=True, max_tokens=8).token_ids == full.token_ids
    with pytest.raises(BundleError, match="tiny"):
        model.generate("cat", size="tiny")


def test_an_answer_ends_before_a_stop_text_and_says_so(model: Model) -> None:
    whole = model.generate("the cat", raw=True, max_tokens=12, ignore_eos=True).text
    assert len(whole) > 6
    stop = whole[4:6]
    for given in (stop, ["never said", stop]):
        cut = model.generate("the cat", raw=True, max_tokens=12, ignore_eos=True, stop=given)
        assert cut.text == whole[: whole.index(stop)]
        assert cut.ending == "stop text"
    assert model.generate("the cat", raw=True, max_tokens=12, ignore_eos=True, stop="never said").text == whole


def test_drafts_change_no_word_of_an_answer_or_a_conversation(drafting_bundle: Path) -> None:
    said = []
    with gemma_edge.load(drafting_bundle, threads=1, weight_cache="memory") as model:
        for speculative in (False, True):
            answer = model.generate("the cat the cat", raw=True, max_tokens=12, stop="zq", speculative=speculative)
            assert (answer.drafts is not None) == speculative
            chat = model.chat(max_tokens=6, temperature=1.2, seed=5, speculative=speculative)
            turns = [chat.send("cat"), chat.send("cat")]
            chat.size = "small"
            said.append([answer.text, *(turn.token_ids for turn in (*turns, chat.send("cat")))])
    assert said[0] == said[1]


def test_a_stream_that_is_left_early_frees_the_model_and_keeps_what_came(model: Model) -> None:
    stream = model.stream("the cat", raw=True, max_tokens=20, ignore_eos=True)
    first = next(stream)
    stream.close()
    assert stream.answer.ending == "interrupted"
    assert stream.answer.text.startswith(first)
    assert model.generate("the cat", raw=True, max_tokens=2).ending == "length"


def test_a_stream_that_is_dropped_frees_the_model_at_once(talker: Model) -> None:
    chat = talker.chat(temperature=0, max_tokens=20)
    gc.disable()  # Python would find a cycle in the end
    try:
        for _ in talker.stream("the cat", raw=True, max_tokens=20, ignore_eos=True):
            break
        for _ in chat.stream("the cat"):
            break
        assert talker.generate("the cat", raw=True, max_tokens=2).ending == "length"
    finally:
        gc.enable()
    assert [message.role for message in chat.history] == ["user", "assistant"], "what came of the answer is kept"


def test_a_stream_without_an_answer_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = model.stream("the cat", raw=True)
    closed.close()
    failed = model.stream("the cat", raw=True)
    with monkeypatch.context() as patched:
        patched.setattr(model, "_opened", lambda: [][0])
        with pytest.raises(IndexError):
            next(failed)
    for stream in (closed, failed):
        with pytest.raises(UsageError, match="answer: none"):
            _ = stream.answer


def test_a_second_answer_beside_an_unfinished_one_of_the_same_thread_is_an_error(model: Model) -> None:
    stream = model.stream("the cat", raw=True, max_tokens=20, ignore_eos=True)
    next(stream)
    with pytest.raises(UsageError, match="an earlier answer is still unfinished"):
        model.generate("cat", raw=True)
    stream.close()


def test_what_cannot_be_asked_is_found_before_anything_is_computed(model: Model, random_bundle: Path) -> None:
    with pytest.raises(UsageError, match="tokens"):
        model.stream("cat " * 40, raw=True)
    with pytest.raises(UsageError, match="temperature"):
        model.stream("cat", temperature=-1)
    with pytest.raises(UsageError, match="stop text"):
        model.stream("cat", raw=True, stop="")
    with pytest.raises(BundleError, match="no group vision"):
        model.stream("cat", images=["a.png"])
    with pytest.raises(UsageError, match="backend: found gpu9, wanted cpu"):
        gemma_edge.load(random_bundle, backend="gpu9")
    with pytest.raises(UsageError, match="group eyes"):
        gemma_edge.load(random_bundle, groups=["eyes"])
    with pytest.raises(UsageError, match="ple: found disk, wanted flash or ram"):
        gemma_edge.load(random_bundle, ple="disk")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="activations: found fp16 on the CPU"):
        gemma_edge.load(random_bundle, activations="fp16")


def test_a_conversation_computes_only_what_is_new(talker: Model) -> None:
    chat = talker.chat(temperature=0, max_tokens=2)
    first = chat.send("cat")
    second = chat.send("sat")
    assert first.reused_tokens == 0
    assert second.reused_tokens >= first.prompt_tokens - 1
    assert [message.role for message in chat.history] == ["user", "assistant"] * 2
    assert chat.history[1].text == first.text
    chat.reset()
    assert chat.history == ()
    assert chat.send("cat").token_ids == first.token_ids


def test_a_message_is_not_answered_once_another_has_changed_the_conversation(talker: Model) -> None:
    chat = talker.chat(temperature=0, max_tokens=2)
    first, second = chat.stream("cat"), chat.stream("sat")
    list(first)
    with pytest.raises(UsageError, match="conversation: it has changed since this message was sent; send it again"):
        next(second)
    assert len(chat.history) == 2
    assert chat.send("sat").reused_tokens > 0
    assert [chat.undo(), len(chat.history), chat.undo(), chat.undo()] == [True, 2, True, False]


def test_instructions_that_are_no_text_are_refused_where_they_are_given(talker: Model) -> None:
    chat = talker.chat(system="be brief")
    for give in (
        lambda: setattr(chat, "system", "\udcff"),
        lambda: talker.chat(system="\udcff"),
        lambda: talker.stream("cat", system="\udcff"),
    ):
        with pytest.raises(UsageError, match="system prompt: found bytes that are not text"):
            give()
    assert chat.system == "be brief"


def test_messages_that_are_no_text_leave_a_conversation_as_it_was(talker: Model) -> None:
    chat = talker.chat(system="be brief", max_tokens=1)
    chat.send("cat")
    history = chat.history
    user, answer = Message("user", "the"), Message("assistant", "cat")
    for messages in (
        (Message("system", "\udcff"), user, answer),
        (Message("user", "\udcff"), answer),
        (user, Message("assistant", "\udcff")),
    ):
        with pytest.raises(UsageError, match="found bytes that are not text"):
            chat.restore(messages)
        assert chat.history == history


def test_a_conversation_goes_on_although_other_prompts_come_between(talker: Model) -> None:
    alone = talker.chat(temperature=0, max_tokens=2)
    wanted = [alone.send(text).token_ids for text in ("cat", "sat")]
    chat = talker.chat(temperature=0, max_tokens=2)
    first = chat.send("cat")
    talker.generate("the", raw=True, size="small", max_tokens=2)
    second = chat.send("sat")
    assert [first.token_ids, second.token_ids] == wanted
    assert second.reused_tokens == 0


def test_a_message_that_does_not_fit_leaves_the_conversation_as_it_was(model: Model) -> None:
    chat = model.chat(max_tokens=2)
    with pytest.raises(UsageError, match="conversation: found"):
        chat.send("cat " * 40)
    assert chat.history == ()


def test_the_second_call_of_one_model_waits_for_the_first(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    decode = Session.decode
    steps: list[str] = []

    def slow(session: Session, token: int) -> object:
        entered.set()
        assert go_on.wait(60)
        steps.append(threading.current_thread().name)
        return decode(session, token)

    monkeypatch.setattr(Session, "decode", slow)
    ask = partial(model.generate, "cat", raw=True, max_tokens=2, ignore_eos=True)
    first, second = (threading.Thread(target=ask, name=name) for name in ("first", "second"))
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.2)
    assert second.is_alive() and not steps
    go_on.set()
    first.join(60)
    second.join(60)
    assert steps == [*["first"] * 2, *["second"] * 2]


class LateLock:
    """A lock that, before it is given the first time, lets another caller finish."""

    def __init__(self, first: Callable[[], object]) -> None:
        self._lock, self._first = threading.Lock(), [first]

    def __enter__(self) -> None:
        while self._first:
            self._first.pop()()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("look", [Model.memory, lambda model: model.ple_statistics, Model.prepare])
def test_a_look_that_waited_for_an_answer_leaves_its_conversation_in_the_caches(
    look: Callable[[Model], object], talker: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker.generate("the", raw=True, max_tokens=2)
    chat = talker.chat(temperature=0, max_tokens=2)
    answers: list[Answer] = []
    monkeypatch.setattr(talker, "_lock", LateLock(lambda: answers.append(chat.send("cat"))))
    look(talker)
    assert chat.send("sat").reused_tokens >= answers[0].prompt_tokens - 1


def test_two_models_answer_in_two_threads_at_once(
    random_bundle: Path, shared_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits in its first step until the other is in its own: one after the other they would wait for ever."""
    wanted = [
        shared_model.generate("the cat", raw=True, max_tokens=6, size=size).token_ids for size in ("full", "small")
    ]
    both = threading.Barrier(2, timeout=60)
    decode = Session.decode

    def meeting(session: Session, token: int) -> object:
        both.wait()
        return decode(session, token)

    monkeypatch.setattr(Session, "decode", meeting)
    found: dict[str, tuple[int, ...]] = {}

    def run(size: str) -> None:
        with gemma_edge.load(random_bundle, size=size, weight_cache="memory") as model:
            found[size] = model.generate("the cat", raw=True, max_tokens=6).token_ids

    threads = [threading.Thread(target=run, args=(size,)) for size in ("full", "small")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found["full"], found["small"]] == wanted


def test_a_closed_model_says_so(random_bundle: Path) -> None:
    model = gemma_edge.load(random_bundle, weight_cache="memory")
    chat = model.chat()
    stream = model.stream("cat", raw=True)
    begun = model.stream("cat", raw=True, ignore_eos=True, max_tokens=20)
    next(begun)
    model.close()
    model.close()
    for use in (lambda: model.generate("cat"), lambda: chat.send("cat"), lambda: next(stream), lambda: list(begun)):
        with pytest.raises(UsageError, match="closed"):
            use()


ONE_LINER = "import sys, gemma_edge; print(gemma_edge.load(sys.argv[1]).generate('cat', max_tokens=8).text)"


def test_one_line_prints_an_answer_and_nothing_else(random_bundle: Path, tmp_path: Path) -> None:
    environment = {"GEMMA_EDGE_CACHE": str(tmp_path), "PATH": "/usr/bin"}
    words = [sys.executable, "-c", ONE_LINER, str(random_bundle)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert run.stderr == ""
    assert len(run.stdout) > 1


LIGHT = """
import sys, time
started = time.perf_counter()
import gemma_edge
took = time.perf_counter() - started
heavy = {"numpy", "ai_edge_litert", "jinja2", "tokenizers", "argparse"} & set(sys.modules)
assert not heavy, heavy
print(took)
assert set(gemma_edge.__all__) <= set(dir(gemma_edge))
for name in gemma_edge.__all__:
    getattr(gemma_edge, name)
"""


def test_importing_the_package_imports_nothing_heavy_and_every_name_is_there() -> None:
    run = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        gemma_edge.lod  # noqa: B018
