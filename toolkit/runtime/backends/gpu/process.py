"""Starts the process with the GPU, sends it requests, and reports how it ended: a driver's fault ends it, not us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.gpu.log import driver_fault, explained_refusal, selected_adapter
from toolkit.runtime.backends.gpu.messages import Failure, Request

_WORKER = "toolkit.runtime.backends.gpu.worker"
_END_S = 5.0


class GpuProcess:
    """A process that has LiteRT and the GPU to itself."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                # The child imports from the same places as this process; Ctrl-C at a terminal reaches only this one.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        # Requests run in a thread, which no signal interrupts: so the answer to an interrupted request is still read,
        # and is not taken for the answer to the next one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._last: Future[object] | None = None

    @property
    def adapter(self) -> str | None:
        """The name of the GPU, or of a driver that computes on the CPU; None before it has opened a graph."""
        return selected_adapter(self._log_text())

    def ask(self, request: Request) -> object:
        """The reply to a request; EnvironmentFault if the process cannot fulfil it, or has ended."""
        self._last = self._thread.submit(self._exchange, request)
        try:
            reply = self._last.result()
        except (EOFError, OSError) as error:
            raise self._end_of_process() from error
        if isinstance(reply, Failure):
            raise self._fault(reply)
        return reply

    def close(self) -> None:
        """End the process; calling it again does nothing."""
        if self._log.closed:
            return
        if self._last is not None and not self._last.done():
            self._process.kill()
        else:
            with suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.shutdown(wait=True)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()
        self._socket.close()
        self._log.close()

    def _exchange(self, request: Request) -> object:
        self._connection.send(request)
        return self._connection.recv()

    def _fault(self, failure: Failure) -> EnvironmentFault:
        """The error for a refusal, with what the log adds to it."""
        refusal = EnvironmentFault(failure.place, file=failure.file, found=failure.found, wanted=failure.wanted)
        return explained_refusal(self._log_text(), refusal)

    def _end_of_process(self) -> EnvironmentFault:
        code = self._process.wait()
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return driver_fault(self._log_text(), f"with {reason}")

    def _log_text(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")
