"""Which chunks are sent, copied or kept, and what fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_harness.push.plan import ChunkSpan, FilePlan, FileState, Remote, plan_push
from device_harness.push.source import PushFile
from toolkit.base.errors import EnvironmentFault, UsageError

CHUNK = 100
PLENTY = 10**9


def make_file(size: int, name: str = "a.bin") -> PushFile:
    count = -(-size // CHUNK)
    return PushFile(name, Path(name), size, tuple(str(i) for i in range(count)), CHUNK)


def remote(size: int, *good: int) -> Remote:
    return Remote(size, frozenset(good), size)


def plan_one(size: int, whole: Remote | None, part: Remote | None, free: int = PLENTY) -> FilePlan:
    [plan] = plan_push([FileState(make_file(size), whole, part)], free, "device")
    return plan


def test_a_file_that_is_not_there_is_sent_in_one_run() -> None:
    plan = plan_one(250, None, None)
    assert (plan.keep_bytes, plan.runs, plan.bytes_of("send")) == (0, (ChunkSpan("send", 0, 3),), 250)


def test_a_file_that_is_there_needs_no_plan() -> None:
    state = FileState(make_file(250), remote(250, 0, 1, 2), remote(9))
    assert state.is_done and plan_push([state], 0, "device") == ()


def test_a_longer_file_of_the_same_beginning_is_not_done() -> None:
    assert not FileState(make_file(200), remote(201, 0, 1), None).is_done


def test_an_empty_file_is_done_only_if_it_is_there() -> None:
    assert FileState(make_file(0), remote(0), None).is_done
    assert plan_one(0, None, None).runs == ()


def test_good_chunks_of_the_old_file_are_copied_and_the_others_sent() -> None:
    plan = plan_one(450, remote(450, 0, 1, 3), None)
    assert plan.runs == (
        ChunkSpan("copy", 0, 2),
        ChunkSpan("send", 2, 3),
        ChunkSpan("copy", 3, 4),
        ChunkSpan("send", 4, 5),
    )
    assert (plan.bytes_of("copy"), plan.bytes_of("send"), plan.written) == (300, 150, (0, 1, 2, 3, 4))


def test_what_a_cut_left_is_kept_up_to_its_last_good_chunk() -> None:
    plan = plan_one(450, None, remote(399, 0, 2))
    assert (plan.keep_bytes, plan.runs) == (300, (ChunkSpan("send", 1, 2), ChunkSpan("send", 3, 5)))


def test_what_a_cut_left_comes_before_the_old_file() -> None:
    plan = plan_one(300, remote(300, 0, 1), remote(200, 0))
    assert plan.runs == (ChunkSpan("copy", 1, 2), ChunkSpan("send", 2, 3)) and not plan.gives_up_whole


@pytest.mark.parametrize(("free", "in_place"), [(402, False), (400, True), (0, True)])
def test_without_room_for_both_the_old_file_is_changed_in_place(free: int, in_place: bool) -> None:
    plan = plan_one(400, remote(400, 0, 1, 2), None, free)
    assert plan.gives_up_whole == plan.starts_as_whole == in_place
    assert (plan.keep_bytes, plan.bytes_of("send")) == ((300, 100) if in_place else (0, 100))
    assert plan.bytes_of("copy") == (0 if in_place else 300)


def test_in_place_the_better_of_old_file_and_cut_push_is_taken() -> None:
    plan = plan_one(400, remote(400, 0), remote(250, 0, 1), 0)
    assert (plan.gives_up_whole, plan.starts_as_whole, plan.keep_bytes) == (True, False, 200)


def test_no_more_files_are_changed_in_place_than_room_demands() -> None:
    states = [FileState(make_file(1000, name), remote(1000, 0), None) for name in ("a", "b", "c")]
    plans = plan_push(states, 2100, "device")
    assert [plan.gives_up_whole for plan in plans] == [True, False, False]


@pytest.mark.parametrize(("size", "whole", "part", "free"), [(1000, None, None, 1003), (1000, 300, 200, 501)])
def test_too_little_room_says_how_much_is_wanted(size: int, whole: int | None, part: int | None, free: int) -> None:
    found = [None if size is None else remote(size) for size in (whole, part)]
    state = FileState(make_file(size), *found)
    assert plan_push([state], free, "device")
    with pytest.raises(EnvironmentFault, match=f"device: found {free - 1:,} bytes free, wanted {free:,}"):
        plan_push([state], free - 1, "device")


def test_holes_in_what_a_cut_left_need_room() -> None:
    """The second half was copied on the device before the first was sent."""
    half = frozenset(range(5, 10))
    state = FileState(make_file(1000), Remote(1000, half, 1000), Remote(1000, half, 500))
    assert not plan_push([state], 501, "device")[0].gives_up_whole
    assert plan_push([state], 500, "device")[0].gives_up_whole


@pytest.mark.parametrize("name", ["../a", "a b", "-a", "", "a;b"])
def test_a_file_for_the_device_has_a_safe_name(name: str) -> None:
    with pytest.raises(UsageError, match="file to push"):
        make_file(1, name)
