"""Runs one command as `gemma-edge` does, and sends itself a signal before or after a chosen rename.

    python -m killed_command SIGNAL MOMENT COUNT ARGUMENT...

MOMENT is `before` or `after`; COUNT is the rename, from 1; if there is no such rename, the command runs to its end.
A rename is a call of `os.replace`, or the exchange of two directories. With COUNT 0 no signal is sent, and the number
of renames is written to stderr.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    number, moment, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    done = 0

    def aimed(rename: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(rename)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal done
            done += 1
            aim = done == count
            if aim and moment == "before":
                os.kill(os.getpid(), number)
            value = rename(*args, **kwargs)
            if aim and moment == "after":
                os.kill(os.getpid(), number)
            return value

        return wrapped

    from gemma_edge import cli
    from toolkit.base import directory_swap

    os.replace = aimed(os.replace)
    if os.environ.get("WITHOUT_EXCHANGE"):
        directory_swap._exchange = lambda first, second: False
    else:
        directory_swap._exchange = aimed(directory_swap._exchange)
    sys.argv = ["gemma-edge", *sys.argv[4:]]
    try:
        cli.entry()
    finally:
        if not count:
            sys.stderr.write(f"renames: {done}\n")


if __name__ == "__main__":
    main()
