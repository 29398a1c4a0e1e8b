"""Logs each warning only once, even if the same input is read twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def each_warning_once(package: str) -> Iterator[None]:
    """Inside this context, no module of `package` logs the same text twice in this thread.

    Only loggers that already exist are covered: import the modules first.
    """
    said, thread = set[str](), threading.get_ident()

    def is_new(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        text = record.getMessage()
        known = text in said
        said.add(text)
        return not known

    known = dict(logging.root.manager.loggerDict)
    loggers = [item for name, item in known.items() if f"{name}.".startswith(f"{package}.")]
    covered = [item for item in loggers if isinstance(item, logging.Logger)]
    for logger in covered:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in covered:
            logger.removeFilter(is_new)
