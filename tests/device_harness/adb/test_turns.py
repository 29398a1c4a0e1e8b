"""What is not done twice at once at a device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import wait_until

from device_harness.adb.turns import in_turn
from toolkit.base.errors import EnvironmentFault


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("one", "other"),
    [("R58M123", "adb-R58M123-vIqgVe._adb-tls-connect._tcp"), ("emulator-5554", "localhost:5555"), ("host", "host")],
)
def test_two_names_of_one_device_take_turns(one: str, other: str, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def second() -> None:
        with in_turn("pushes", other, "/data/x", waiting_for="another push"):
            done.append(other)

    with ThreadPoolExecutor(1) as pool:
        with in_turn("pushes", one, "/data/x", waiting_for="nobody"):
            ended = pool.submit(second)
            wait_until(lambda: f"{other} /data/x: waiting for another push" in caplog.text)
            done.append(one)
        ended.result()
    assert done == [one, other]


def test_other_devices_places_and_work_are_not_waited_for() -> None:
    with (
        in_turn("pushes", "R58M123", "/data/x", waiting_for="nobody"),
        in_turn("pushes", "R58M123", "/data/y", waiting_for="nobody"),
        in_turn("pushes", "R58M124", "/data/x", waiting_for="nobody"),
        in_turn("benchmarks", "R58M123", waiting_for="nobody"),
    ):
        pass


def test_where_nothing_can_be_locked_a_benchmark_goes_on_and_a_push_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "file"))
    with in_turn("benchmarks", "R58M123", waiting_for="nobody", required=False):
        assert "do not let two processes do this at once" in caplog.text
    with pytest.raises(EnvironmentFault, match="GEMMA_EDGE_CACHE"), in_turn("pushes", "R58M123", waiting_for="nobody"):
        pass
