"""Hashes, copies and stores chunks on the device with shell commands, and parses their output."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from device_harness.adb.payload import FilePayload, part_of
from device_harness.adb.transport import DeviceRefusal, ExecStream, Transport
from device_harness.push.scripts import (
    ASKING,
    END,
    FAILED,
    FLOWING,
    HASH_JOBS,
    NEXT,
    PIECE_BYTES,
    ChunkRun,
    Chunks,
    Script,
    copy_scripts,
    hash_scripts,
    parse_digests,
    store_batches,
    store_script,
)
from device_harness.push.source import PushFile

SLOWEST_BYTES_PER_S = 4_000_000
"""Slower than any storage that a model runs from; a slower device counts as hanging."""
LEAST_S = 60.0

_PIECES_AHEAD = 2
"""How many pieces may be in flight to a device that stores them as they arrive: one being stored, one arriving."""
_STORED = "every chunk stored"
_STATISTICS = re.compile(r"\d+\+\d+ records (in|out)|\d+ bytes? .*", re.ASCII)

OnSent = Callable[[PushFile, int], None]
"""Called with a local file and the number of its bytes that the device has just stored."""
OnDigest = Callable[[str, int, str], None]
"""Called with a file's name on the device, a chunk's number, and its sha256 there."""


class ChunkShell:
    """The device's shell in the target folder, with the programs that do the work there."""

    def __init__(self, device: Transport, folder_script: Callable[[str], str], receiver: str | None) -> None:
        """`folder_script` makes a script run in the folder. `receiver`: our program, or None for the device's tools."""
        self._device = device
        self._folder_script = folder_script
        self._receiver = receiver

    def hash(self, wanted: Sequence[Chunks]) -> Iterator[tuple[str, int, str]]:
        """Yield names, chunk numbers and hashes as the device computes them; DeviceRefusal if it cannot."""
        for script in hash_scripts(wanted, self._receiver):
            yield from parse_digests(self._lines(script, "every chunk hashed"))

    def copy(self, runs: Sequence[ChunkRun]) -> Iterator[tuple[str, int, str]]:
        """Copy chunks of NAME to NAME.part; yield the hashes of the copies. DeviceRefusal if the device cannot."""
        for script in copy_scripts(runs, self._receiver):
            yield from parse_digests(self._lines(script, _STORED))

    def store(self, runs: Sequence[ChunkRun], on_sent: OnSent, on_digest: OnDigest) -> None:
        """Send runs to NAME.part; `on_digest` gets the hash of each chunk that the device has stored.

        DeviceRefusal with the device's message if it cannot store them; BundleError if a local file has shrunk.
        """
        for batch in store_batches(runs):
            script = self._folder_script(store_script(batch, self._receiver))
            # The last jobs may read and write for some time without any output.
            silence_s = timeout_s(2 * HASH_JOBS * batch[0].file.chunk_bytes)
            with self._device.stream_exec(f"{{ {script}; }} 2>&1", timeout=silence_s) as stream:
                listener = _Listener(self._device, stream, on_sent, on_digest)
                for run in batch:
                    listener.what = f"{self._device.serial} {run.name}"
                    _send_run(stream, run, listener)
                listener.finish()

    def _lines(self, script: Script, wanted: str) -> Iterator[str]:
        """Yield complete lines of a script's output; if it fails, DeviceRefusal with the device's message."""
        text, rest = f"{{ {self._folder_script(script.text)}; }} 2>&1", ""
        words: list[str] = []
        with self._device.stream_shell(text, timeout=timeout_s(script.bytes)) as stream:
            for _, data in stream:
                *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
                words += lines
                yield from lines
            if stream.exit_code:
                what, otherwise = f"{self._device.serial} push", f"exit code {stream.exit_code}"
                raise _refusal(what, [*words, rest], otherwise, wanted)


def timeout_s(size: int) -> float:
    """The time limit in seconds for processing this many bytes."""
    return LEAST_S + size / SLOWEST_BYTES_PER_S


def _refusal(what: str, lines: Iterable[str], otherwise: str, wanted: str = _STORED) -> DeviceRefusal:
    """The error with the device's message: its output without hashes and statistics; `otherwise` if nothing is left."""
    words = [line for line in map(str.strip, lines) if line and line != FAILED and not _STATISTICS.match(line)]
    found = " ".join(line for line in words if not list(parse_digests([line]))) or otherwise
    remedy = "fix that and push again; what was sent is kept"
    return DeviceRefusal(what, found=found, wanted=wanted, remedy=remedy)


class _Listener:
    """Reads the device's output while bytes are sent to it."""

    def __init__(self, device: Transport, stream: ExecStream, on_sent: OnSent, on_digest: OnDigest) -> None:
        self.what = f"{device.serial} push"
        self._stream = stream
        self._on_sent = on_sent
        self._on_digest = on_digest
        self._rest = ""
        self._words: list[str] = []
        self._ended = False
        self._most_ahead = 0
        self._ahead: deque[tuple[PushFile, int]] = deque()
        """Pieces that were sent and are not stored yet, each as its file and its size in bytes."""

    def wait_for_turn(self, file: PushFile, size: int) -> None:
        """Wait until the device is ready for another piece, which the caller then sends."""
        while len(self._ahead) >= self._most_ahead:
            data = self._stream.read()
            if not data:
                raise self.refusal()
            self._take(data)
        self._ahead.append((file, size))

    def listen(self) -> None:
        """Process the digests received so far."""
        while self._stream.has_input:
            data = self._stream.read()
            if not data:
                raise self.refusal()
            self._take(data)

    def finish(self) -> None:
        """Process all digests up to the end of the stream."""
        while data := self._stream.read():
            self._take(data)
        if not self._ended:
            raise self.refusal()

    def refusal(self) -> DeviceRefusal:
        return _refusal(self.what, self._words, "the end of the output before every chunk was stored")

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        for line in map(str.strip, lines):
            digests = list(parse_digests([line]))
            for digest in digests:
                self._on_digest(*digest)
            if line == END:
                self._ended = True
            elif line == FAILED:
                raise self.refusal()
            elif line in (FLOWING, ASKING):
                self._most_ahead = _PIECES_AHEAD if line == FLOWING else 1
            elif line == NEXT and self._ahead:
                self._on_sent(*self._ahead.popleft())
            elif line and not digests:
                self._words.append(line)


def _send_run(stream: ExecStream, run: ChunkRun, listener: _Listener) -> None:
    file = run.file
    with open(file.path, "rb", buffering=0) as source:
        for number in range(run.first, run.stop):
            chunk = FilePayload(file.path, source.fileno(), file.offset(number), file.length(number))
            for start in range(0, len(chunk), PIECE_BYTES):
                listener.listen()
                piece = part_of(chunk, start, PIECE_BYTES)
                listener.wait_for_turn(file, len(piece))
                if not stream.write(piece):
                    listener.finish()
                    raise listener.refusal()
