"""Chunks on the device: the shell scripts that store and hash them there, several at once, and what those print."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from device_harness.push_source import PART, PushFile
from device_harness.transport import DeviceRefusal, ExecStream, Transport, quote
from device_harness.transport_payload import FileRange, part_of
from toolkit.files import safe_name

MAX_CALL_CHARACTERS = 1200
"""Of the calls in one script, beside its functions: old devices take 4096 bytes a message."""

SLOWEST_BYTES_PER_S = 4_000_000
"""Slower than any storage that a model runs from: what takes longer hangs."""
LEAST_S = 60.0

_BLOCK_BYTES = 64 * 1024
"""Fits a pipe; larger ones leave the processor's cache."""
_MESSAGE_BYTES = 1024 * 1024
_JOBS = 4
_DIGEST = re.compile(r"([A-Za-z0-9._-]+) (\d+) ([0-9a-f]{64})\b", re.ASCII)
_STATISTICS = re.compile(r"\d+\+\d+ records (in|out)|\d+ bytes? .*", re.ASCII)
_END, _FAILED = "end", "failed"
_FLOWING, _ASKING, _NEXT = "flowing", "asking", "next"

# Android's sha256sum is BoringSSL's, which uses the processor's instructions. Elsewhere openssl does where it is there,
# and sha256sum may be plain C, many times slower.
_HASH = """case $(openssl dgst -sha256 -r 2>/dev/null </dev/null) in
e3b0c44298fc1c14*) sum='openssl dgst -sha256 -r';; *) sum=sha256sum;; esac
digest() { echo "$1 $2 $(dd if=$1 bs=BLOCK skip=$(($2*STEP)) count=STEP 2>/dev/null | $sum)"; }
"""

# At most _JOBS hashes at once: a new one waits for the oldest.
_LATER = """later() { [ -z "$a" ] || wait $a; a=$b; b=$c; c=$d; d=$!; }
"""

# put NAME FIRST STOP LAST: chunks FIRST to before STOP come in, the last of them with LAST bytes. Each is hashed while
# the next ones come in. dd says how much it wrote: less is the connection's end.
# Without fullblock only head is left to collect a chunk, and it reads ahead: then each chunk is asked for.
_PUT = """dd iflag=fullblock if=/dev/null of=/dev/null 2>/dev/null && full=1
[ "$full" ] && echo FLOWING || echo ASKING
fail() { echo "$said"; echo FAILED; exit 1; }
take() { said=$(dd bs=BLOCK iflag=fullblock count=$3 of=$1 seek=$2 conv=notrunc 2>&1)
case $said in *"$3+0 records out"*);; *) fail;; esac; }
get() { if [ "$full" ]; then dd bs=$1 iflag=fullblock count=1 2>/dev/null; else head -c $1; fi; }
rest() { said=$(get $3 | dd bs=BLOCK of=$1 seek=$2 conv=notrunc 2>&1)
case ${said##*
} in "$3 byte"*);; *) fail;; esac; }
store() { q=$(($3/BLOCK)); [ "$full" ] || q=0; r=$(($3-q*BLOCK))
[ $q = 0 ] || take $1 $(($2*STEP)) $q; [ $r = 0 ] || rest $1 $(($2*STEP+q)) $r; }
put() { k=$2; while [ $k -lt $3 ]; do z=CHUNK; [ $((k+1)) -lt $3 ] || z=$4; [ "$full" ] || echo NEXT; store $1 $k $z
digest $1 $k </dev/null & later; k=$((k+1)); done; }
"""


# Beside all that, what was written goes to the storage, so that little is left for the end; while the script lives.
_FLUSH = """{ while kill -0 $$ && sleep 1; do for n in *PART; do SYNC; done; done
} </dev/null >/dev/null 2>&1 & flusher=$!
finish() { kill $flusher; wait; }
"""

# The same by native/push_receiver.c, which keeps no line from the next one: it ends when its chunks are hashed.
_RECEIVE = """echo FLOWING
put() { RECEIVER $1 CHUNK $2 $3 $4 || exit 1; }
finish() { :; }
"""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of ``file``, by their numbers, in the file ``name`` on the device."""

    name: str
    file: PushFile
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks ``first`` to before ``stop`` of a file, which go to its NAME.part."""

    file: PushFile
    first: int
    stop: int

    @property
    def name(self) -> str:
        """On the device."""
        return self.file.name + PART

    @property
    def bytes(self) -> int:
        return self.file.offset(self.stop) - self.file.offset(self.first)


OnSent = Callable[[PushFile, int], None]
"""Called with a local file and how many bytes of it have just gone."""
OnDigest = Callable[[str, int, str], None]
"""Called with a file's name on the device, the number of a chunk, and its sha256 there."""


def stream_digests(
    device: Transport, folder_script: Callable[[str], str], wanted: Sequence[Chunks]
) -> Iterator[tuple[str, int, str]]:
    """Names, chunk numbers and hashes as the device computes them; ``folder_script`` puts a script into the folder."""
    calls = [
        (f"digest {chunk_word(chunks.name)} {number} & later", chunks.file.chunk_bytes)
        for chunks in wanted
        for number in chunks.numbers
    ]
    if not calls:
        return
    chunk_bytes = calls[0][1]
    for batch in batches((call for call, _ in calls), MAX_CALL_CHARACTERS):
        script = _filled(_HASH + _LATER, chunk_bytes) + "\n".join([*batch, "wait"])
        rest = ""
        with device.stream_shell(folder_script(script), timeout=timeout_s(chunk_bytes * len(batch))) as stream:
            for kind, data in stream:
                if kind == "stdout":
                    *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
                    yield from parse_digests(lines)


def send_runs(
    device: Transport,
    folder_script: Callable[[str], str],
    runs: Sequence[ChunkRun],
    on_sent: OnSent,
    on_digest: OnDigest,
    receiver: str | None,
) -> None:
    """Store runs in the device's files; ``on_digest`` hears what it then reads there.

    DeviceRefusal with the device's words if it cannot store them; BundleError if a local file has shrunk.
    """
    for batch in _run_batches(runs):
        calls = "\n".join(_put_call(run) for run in batch)
        script = folder_script(f"{_put_script(receiver, batch[0].file.chunk_bytes)}{calls}\nfinish; echo {_END}")
        # What the last jobs read and write may take its time without a word.
        silence_s = timeout_s(2 * _JOBS * batch[0].file.chunk_bytes)
        with device.stream_exec(f"{{ {script}; }} 2>&1", timeout=silence_s) as stream:
            listener = _Listener(device, stream, on_digest)
            for run in batch:
                listener.what = f"{device.serial} {run.name}"
                _send_run(stream, run, listener, on_sent)
            listener.finish()


def parse_digests(lines: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """File names, chunk numbers and hashes of lines such as ``a.bin 3 9f86d0...0a08 -``; anything else is noise.

    >>> list(parse_digests(["sh: noise", f"a.bin 3 {'0a' * 32}  -"])) == [("a.bin", 3, "0a" * 32)]
    True
    """
    for line in lines:
        match = _DIGEST.match(line.strip())
        if match is not None:
            yield match[1], int(match[2]), match[3]


def batches(words: Iterable[str], most_characters: int) -> Iterator[list[str]]:
    """As many words as one command may have."""
    batch: list[str] = []
    room = most_characters
    for word in words:
        if batch and room < len(word):
            yield batch
            batch, room = [], most_characters
        batch.append(word)
        room -= len(word) + 4
    if batch:
        yield batch


def chunk_word(name: str) -> str:
    """A name as one word of a script."""
    return safe_name(name, "file on the device")


def sync_command(name: str) -> str:
    """Toybox has fsync; coreutils' sync takes a name; anything has sync."""
    return f"{{ fsync {name} || sync {name} || sync; }} 2>/dev/null"


def timeout_s(size: int) -> float:
    """How long the device may take over so many bytes."""
    return LEAST_S + size / SLOWEST_BYTES_PER_S


class _Listener:
    """Takes in what the device says while bytes are sent to it."""

    def __init__(self, device: Transport, stream: ExecStream, on_digest: OnDigest) -> None:
        self.what = f"{device.serial} push"
        self._stream = stream
        self._on_digest = on_digest
        self._rest = ""
        self._words: list[str] = []
        self._ended = False
        self._turns: float = 0

    def wait_for_turn(self) -> None:
        """Until the device wants a chunk: at once, unless it has to ask for each."""
        while self._turns < 1:
            data = self._stream.read()
            if not data:
                raise self.refusal()
            self._take(data)
        self._turns -= 1

    def listen(self) -> None:
        """What has come so far."""
        while self._stream.has_input:
            data = self._stream.read()
            if not data:
                raise self.refusal()
            self._take(data)

    def finish(self) -> None:
        """Everything up to the end."""
        while data := self._stream.read():
            self._take(data)
        if not self._ended:
            raise self.refusal()

    def refusal(self) -> DeviceRefusal:
        words = [line for line in self._words if not _STATISTICS.match(line)]
        found = " ".join(words) or "an end before all was stored"
        remedy = "mend that and push again: what was sent is kept"
        return DeviceRefusal(self.what, found=found, wanted="every chunk stored", remedy=remedy)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        for line in map(str.strip, lines):
            digests = list(parse_digests([line]))
            for digest in digests:
                self._on_digest(*digest)
            if line == _END:
                self._ended = True
            elif line == _FAILED:
                raise self.refusal()
            elif line in (_FLOWING, _NEXT):
                self._turns += math.inf if line == _FLOWING else 1
            elif line and not digests and line != _ASKING:
                self._words.append(line)


def _send_run(stream: ExecStream, run: ChunkRun, listener: _Listener, on_sent: OnSent) -> None:
    file = run.file
    with open(file.path, "rb", buffering=0) as source:
        for number in range(run.first, run.stop):
            listener.wait_for_turn()
            chunk = FileRange(file.path, source.fileno(), file.offset(number), file.length(number))
            for start in range(0, len(chunk), _MESSAGE_BYTES):
                listener.listen()
                message = part_of(chunk, start, _MESSAGE_BYTES)
                if not stream.write(message):
                    listener.finish()
                    raise listener.refusal()
                on_sent(file, len(message))


def _put_script(receiver: str | None, chunk_bytes: int) -> str:
    """Defines ``put`` and ``finish``."""
    if receiver is not None:
        return _filled(_RECEIVE, chunk_bytes).replace("RECEIVER", quote(receiver))
    flush = _FLUSH.replace("SYNC", sync_command("$n")).replace("PART", PART)
    return _filled(_HASH + _LATER + flush + _PUT, chunk_bytes)


def _put_call(run: ChunkRun) -> str:
    return f"put {chunk_word(run.name)} {run.first} {run.stop} {run.file.length(run.stop - 1)}"


def _run_batches(runs: Sequence[ChunkRun]) -> Iterator[Sequence[ChunkRun]]:
    """As many runs as one script may have."""
    done = 0
    for calls in batches(map(_put_call, runs), MAX_CALL_CHARACTERS):
        yield runs[done : done + len(calls)]
        done += len(calls)


def _filled(script: str, chunk_bytes: int) -> str:
    block = min(chunk_bytes, _BLOCK_BYTES)
    values: dict[str, object] = {"BLOCK": block, "STEP": chunk_bytes // block, "CHUNK": chunk_bytes}
    values |= {"FAILED": _FAILED, "FLOWING": _FLOWING, "ASKING": _ASKING, "NEXT": _NEXT}
    for name, value in values.items():
        script = script.replace(name, str(value))
    return script
