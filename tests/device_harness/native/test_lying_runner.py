"""A program on a device that answers anything at all: each lie is one error, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import pytest

from device_harness.machines.machine import Machine
from device_harness.native.client import NativeClient
from device_harness.native.place import PlacedRunner
from toolkit.base.errors import ToolkitError, UsageError
from toolkit.runtime.sampling import Sampling

START = {"ok": "start", "protocol": 1, "pid": 7}
OPEN = {"ok": "open", "size": "small", "context": 16, "text_ids": 100, "threads": 1, "weight_cache": "off",
        "seconds": 0.5}  # fmt: skip
END = {"ok": "generate", "ending": "length", "tokens": 1, "position": 3, "prefill_s": 0, "first_s": 0, "decode_s": 0}


class Liar:
    """A machine and its dialogue; the pieces come one at each reading."""

    serial = "liar"

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.written = b""

    def open_dialogue(self, command: str, *, silence: float) -> Liar:
        return self

    def __enter__(self) -> Liar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def write(self, data: bytes) -> bool:
        self.written += data
        return True

    def read(self) -> bytes:
        return next(self._pieces, b"")


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def client(*pieces: bytes, then: Iterable[bytes] = ()) -> NativeClient:
    def every() -> Iterator[bytes]:
        yield from pieces
        yield from then

    placed = cast(PlacedRunner, SimpleNamespace(argv=("runner",), runtime="1"))
    return NativeClient(cast(Machine, Liar(every())), placed)


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@pytest.mark.full
def test_what_never_ends_is_refused_at_its_bound() -> None:
    for noise in (b"x" * 65536, b"noise\n" * 8192, b"{" * 65536):
        with pytest.raises(ToolkitError, match="bytes without an answer"):
            client(then=endless(noise))
    running = client(line(START), line(OPEN), then=endless(line({"token": 5})))
    running.open("bundle")
    with pytest.raises(ToolkitError, match="more than 16 tokens"):
        list(running.generate([1], Sampling()))


@pytest.mark.parametrize(
    "answer",
    [
        {"token": 100}, {"token": -1}, {"token": True}, {"token": "5"}, {**END, "ending": "never"},
        {**END, "ending": 3}, {**END, "tokens": 10**30}, {**END, "first_s": -1}, {"ok": "prefill"}, {}, [],
        {"error": {}}, {"error": 5}, {"error": {"kind": "usage"}}, {"error": {"kind": [], "found": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_answer_to_generate_is_one_error(answer: Any) -> None:
    running = client(line(START), line(OPEN), line(answer))
    running.open("bundle")
    with pytest.raises(ToolkitError):
        list(running.generate([1], Sampling()))


@pytest.mark.parametrize("count", [-4, 0, 3, 2**31, 1e9, "4", None])
def test_logits_of_an_impossible_size_are_refused_before_they_are_waited_for(count: object) -> None:
    running = client(line(START), line({"ok": "decode", "bytes": count}), then=endless(bytes(65536)))
    with pytest.raises(ToolkitError):
        running.decode(1)


def test_numbers_that_the_program_cannot_hold_are_cut_where_that_changes_nothing_and_a_seed_is_refused() -> None:
    running = client(line(START), line(OPEN))
    running.open("bundle")
    running.generate([1], Sampling(1.0, 10**30, 0.5, 2**63 - 1), limit=10**30)
    sent = json.loads(cast(Any, running._dialogue).written.splitlines()[-1])
    assert (sent["limit"], sent["top_k"], sent["seed"]) == (17, 100, 2**63 - 1)
    with pytest.raises(UsageError, match=f"seed: found {2**63}, wanted 0 to {2**63 - 1} on a device"):
        running.generate([1], Sampling(seed=2**63))


def test_weights_that_cannot_be_kept_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fault = "/weights: 10 bytes free, wanted 20"
    running = client(line(START), line({**OPEN, "weight_cache": "memory", "weight_cache_fault": fault}))
    assert running.open("bundle").weight_cache == "memory"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"liar bundle_runner: packing weights in memory, because they cannot be kept: {fault}"
    ]


def test_text_without_a_newline_hides_no_answer() -> None:
    running = client(b"half a line\n" + line(START), b"\nhalf another\n" + line(OPEN))
    assert running.open("bundle").context == 16


@pytest.mark.parametrize("name", list(OPEN))
@pytest.mark.parametrize("value", [None, -1, 2**40, "x" * 10, [], {}], ids=str)
def test_a_wrong_answer_to_open_is_one_error_or_a_text(name: str, value: object) -> None:
    running = client(line(START), line({**OPEN, name: value}))
    try:
        running.open("bundle")
    except ToolkitError:
        return
    assert isinstance(value, str) and isinstance(OPEN[name], str)
