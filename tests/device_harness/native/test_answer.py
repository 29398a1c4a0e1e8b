"""The end of an answer on a machine, with a program that computes until it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from waiting import wait_until

from device_harness.native.answer import DeviceConversation, DeviceTokens
from device_harness.native.client import GenerationEnd, NativeGeneration
from toolkit.base.errors import BundleError, EnvironmentFault
from toolkit.runtime.conversation import AnswerRequest
from toolkit.runtime.sampling import Sampler, Sampling

ASKED_S = 20.0
"""How long the program waits; only without a word to stop does it take so long."""


class Program:
    """A program in the middle of a prefill, and the conversation that it belongs to."""

    media_s = None

    def __init__(self, *, fault: Exception | None = None, is_lost: bool = False) -> None:
        self.end: GenerationEnd | None = None
        self.tokens: list[int] = []
        self.asked = threading.Semaphore(0)
        self.begins, self.is_computing = threading.Event(), threading.Event()
        self.failures: list[BaseException] = []
        self._fault, self._is_lost = fault, is_lost

    def begin(self, request: AnswerRequest) -> tuple[int, NativeGeneration]:
        assert self.begins.wait(ASKED_S)
        return 0, cast("NativeGeneration", self)

    def ask_to_stop(self) -> None:
        self.asked.release()
        if self._is_lost:
            raise EnvironmentFault("program", found="gone")

    def __iter__(self) -> Iterator[int]:
        self.is_computing.set()
        assert self.asked.acquire(timeout=ASKED_S), "nobody has asked it to stop"
        assert not self.asked.acquire(blocking=False), "it was asked twice"
        if self._fault is not None:
            raise self._fault
        self.end = GenerationEnd("interrupted", 0, 2, 0.0, 0.0, 0.0)
        yield from ()

    def ended(self, generation: NativeGeneration) -> None:
        assert generation.end is not None

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


def tokens_of(program: Program) -> DeviceTokens:
    request = AnswerRequest([1, 2, 3, 4], Sampler(Sampling(), 10), 5, ())
    return DeviceTokens(cast("DeviceConversation", program), request)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_program_that_has_no_token_yet_is_asked_to_stop_once(when: str) -> None:
    program = Program()
    tokens = tokens_of(program)
    if when == "during":
        program.begins.set()
    tokens._receiver.start()
    wait_until(lambda: when == "before" or program.is_computing.is_set())
    ending = threading.Thread(target=tokens.end, args=("interrupted",))
    ending.start()
    wait_until(lambda: tokens._is_stopping)
    program.begins.set()
    ending.join()
    report = tokens.report()
    assert (report.token_ids, report.ending, program.failures) == ((), "interrupted", [])
    assert (report.prefill_tokens_per_s, report.decode_tokens_per_s, report.time_to_first_token_s) == (None, None, None)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_fault_that_comes_after_the_end_is_not_lost(is_lost: bool) -> None:
    program = Program(fault=BundleError(file="ple_00000.bin", found="damaged bytes"), is_lost=is_lost)
    program.begins.set()
    tokens = tokens_of(program)
    tokens._receiver.start()
    wait_until(program.is_computing.is_set)
    tokens.end("stop text")
    assert program.failures == [program._fault] and tokens.report().ending == "stop text"


def test_a_stream_ends_if_its_answer_is_ended_while_it_is_read() -> None:
    """As by closing the model in a loop over its answer."""
    program = Program()
    program.begins.set()
    tokens = tokens_of(program)
    tokens._receiver.start()
    wait_until(program.is_computing.is_set)
    tokens.settle()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(tokens._received.get).result(timeout=ASKED_S) is None


def test_an_answer_is_waited_for_although_an_earlier_wait_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    tokens = tokens_of(program)
    tokens._receiver.start()
    wait = tokens._is_over.wait

    def interrupted(timeout: float | None = None) -> bool:
        monkeypatch.setattr(tokens._is_over, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens._is_over, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokens.settle()
    program.begins.set()
    tokens.settle()
    assert program.end is not None and tokens.report().ending == "interrupted"


def test_closing_waits_only_a_moment_for_a_silent_program() -> None:
    program = Program()
    tokens = tokens_of(program)
    tokens._receiver.start()
    tokens.settle(0.01)
    assert not tokens._is_over.is_set() and program.end is None
    program.begins.set()
    tokens.settle()
    assert program.end is not None
