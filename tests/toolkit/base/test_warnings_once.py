"""Each warning once."""

from __future__ import annotations

import logging
import threading

import pytest

from toolkit.base.warnings_once import each_warning_once

ONE, OTHER, STRANGER = (logging.getLogger(name) for name in ("some_package.one", "some_package.other", "some_packages"))


def test_the_same_text_is_said_once_by_a_package(caplog: pytest.LogCaptureFixture) -> None:
    with each_warning_once("some_package"):
        for logger in (ONE, OTHER, STRANGER):
            for number in (1, 1, 2):
                logger.warning("number %d", number)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("some_package.one", "number 1"),
        ("some_package.one", "number 2"),
        *[("some_packages", f"number {number}") for number in (1, 1, 2)],
    ]


def test_it_ends_with_its_block_even_if_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="x"), each_warning_once("some_package"):
        ONE.warning("again")
        raise ValueError("x")
    ONE.warning("again")
    assert len(caplog.records) == 2


def test_another_thread_says_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with each_warning_once("some_package"):
        ONE.warning("both")
        other = threading.Thread(target=ONE.warning, args=("both",))
        other.start()
        other.join()
    assert len(caplog.records) == 2
