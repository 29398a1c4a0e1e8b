"""Makes the shell scripts that hash, copy and store chunks on a device, with its own tools or our receiver."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from device_harness.adb.transport import quote
from device_harness.push.source import PART, PushFile
from toolkit.base.files import safe_name

MAX_CALL_CHARACTERS = 1200
"""The maximum length of the calls in one script, without its functions: old devices take messages of 4096 bytes."""
HASH_JOBS = 4
"""How many chunks the device hashes at once."""
END, FAILED = "end", "failed"
FLOWING, ASKING, NEXT = "flowing", "asking", "next"
PIECE_BYTES = 4 * 1024 * 1024
"""How many bytes are stored before the device prints NEXT; push_receiver.c has the same number."""

_BLOCK_BYTES = 64 * 1024
"""dd's block size: it fits into a pipe, and larger blocks do not fit into the processor's cache."""
_ALWAYS_NEEDED = ("chmod", "df", "mv", "rm", "stat", "truncate")
_SHELL_NEEDS = ("dd", "head")
_STORAGE_FAULTS = r"*/O\ error*|*/output\ error*|*No\ space\ left*|*uota\ exceeded*"
"""What the messages for EIO, ENOSPC and EDQUOT have in Android's C library, musl and glibc, as patterns of a `case`."""
_DIGEST = re.compile(r"([A-Za-z0-9._-]{1,255}) (\d{1,9}) ([0-9a-f]{64}|unreadable)\b", re.ASCII)

# Android's sha256sum is BoringSSL's, which uses the processor's SHA instructions. Elsewhere sha256sum may be plain C,
# many times slower, so openssl is used if it exists.
_HASH = """case $(openssl dgst -sha256 -r 2>/dev/null </dev/null) in
e3b0c44298fc1c14*) sum='openssl dgst -sha256 -r';; *) sum=sha256sum;; esac
digest() { echo "$1 $2 $(dd if=$1 bs=BLOCK skip=$(($2*STEP)) count=STEP 2>/dev/null | $sum)"; }
"""

# At most HASH_JOBS hashes run at once: a new one waits for the oldest.
_LATER = """later() { [ -z "$a" ] || wait $a; a=$b; b=$c; c=$d; d=$!; }
"""

# digests NAME FIRST STOP LAST: hash chunks FIRST up to but not including STOP.
_DIGESTS = """digests() { k=$2; while [ $k -lt $3 ]; do digest $1 $k & later; k=$((k+1)); done; }
"""

# copy NAME FIRST STOP LAST FROM: copy chunks FIRST up to but not including STOP, and hash each during the next copies.
# dd's messages are held back: in the middle of a line with a hash, they would hide that hash.
_COPY = """fail() { echo "$said"; exit 1; }
copy() { k=$2; while [ $k -lt $3 ]; do
said=$(dd if=$5 of=$1 bs=BLOCK skip=$((k*STEP)) seek=$((k*STEP)) count=STEP conv=notrunc 2>&1) || fail
digest $1 $k </dev/null & later; k=$((k+1)); done; }
"""

# put NAME FIRST STOP LAST: store chunks FIRST up to but not including STOP from the input, the last with LAST bytes.
# While the next ones arrive, each is hashed, and synced to the storage, so that little is left for the end.
# dd prints how much it wrote: less means that the connection has ended. busybox's dd prints records, but not bytes.
# NEXT is printed after each piece, because AOSP's adbd holds all that it is sent in memory. If dd lacks fullblock,
# head collects a piece; since head reads ahead, only one piece may then be in flight.
_PUT = """dd iflag=fullblock if=/dev/null of=/dev/null 2>/dev/null && full=1
[ "$full" ] && echo FLOWING || echo ASKING
fail() { echo "$said"; echo FAILED; exit 1; }
take() { said=$(dd bs=BLOCK iflag=fullblock count=$3 of=$1 seek=$2 conv=notrunc 2>&1)
case $said in *"$3+0 records out"*);; *) fail;; esac; }
rest() { if [ "$full" ]; then
said=$({ dd bs=$3 iflag=fullblock count=1 | dd bs=BLOCK of=$1 seek=$2 conv=notrunc; } 2>&1) || fail
case $said in *"1+0 records in"*);; *) fail;; esac
else said=$(head -c $3 | dd bs=BLOCK of=$1 seek=$2 conv=notrunc 2>&1)
case ${said##*
} in "$3 byte"*);; *) fail;; esac; fi; }
piece() { q=$(($3/BLOCK)); [ "$full" ] || q=0; r=$(($3-q*BLOCK))
[ $q = 0 ] || take $1 $2 $q; [ $r = 0 ] || rest $1 $(($2+q)) $r; echo NEXT; }
store() { o=$(($2*STEP)); l=$3; while [ $l -gt 0 ]; do p=PIECE; [ $l -gt $p ] || p=$l
piece $1 $o $p; o=$((o+p/BLOCK)); l=$((l-p)); done; }
put() { k=$2; while [ $k -lt $3 ]; do z=CHUNK; [ $((k+1)) -lt $3 ] || z=$4; store $1 $k $z
{ digest $1 $k; SYNC || echo FAILED; } </dev/null & later; k=$((k+1)); done; }
"""

# The same functions, by native/push_receiver.c, which exits only when its chunks are hashed.
_RECEIVE = """receive() { m=$1 n=$2; shift 2; RECEIVER $m $n CHUNK "$@" || exit 1; }
digests() { receive hash "$@"; }
copy() { receive copy "$@"; }
put() { [ "$flowing" ] || echo FLOWING; flowing=1; receive store "$@"; }
"""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of `file` in the device's file `name`, by number, in ascending order."""

    name: str
    file: PushFile
    numbers: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return sum(map(self.file.length, self.numbers))

    @property
    def stretches(self) -> Iterator[tuple[int, int]]:
        """Runs of neighbouring chunks: the first number, and the one after the last."""
        first = 0
        for at in range(1, len(self.numbers) + 1):
            if at == len(self.numbers) or self.numbers[at] != self.numbers[at - 1] + 1:
                yield self.numbers[first], self.numbers[at - 1] + 1
                first = at

    def without(self, numbers: Iterable[int]) -> Chunks:
        """The chunks that are not among `numbers`."""
        left_out = frozenset(numbers)
        return Chunks(self.name, self.file, tuple(number for number in self.numbers if number not in left_out))


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks `first` up to but not including `stop` of a file, to be stored in its NAME.part."""

    file: PushFile
    first: int
    stop: int

    @property
    def name(self) -> str:
        """The file's name on the device."""
        return self.file.name + PART

    @property
    def bytes(self) -> int:
        return self.file.extent(self.first, self.stop)


@dataclass(frozen=True, slots=True)
class Script:
    """A script for the device's shell, to run in the folder. `bytes`: how many it processes, for its time limit."""

    text: str
    bytes: int


def hash_scripts(wanted: Sequence[Chunks], receiver: str | None) -> Iterator[Script]:
    """Scripts that print a line for each chunk, in any order, for `parse_digests`."""
    calls = [
        (f"digests {_place(chunks.name, chunks.file, first, stop)}", chunks.file.extent(first, stop))
        for chunks in wanted
        for first, stop in chunks.stretches
    ]
    if calls:
        yield from _in_batches(calls, wanted[0].file.chunk_bytes, _HASH + _LATER + _DIGESTS, receiver)


def copy_scripts(runs: Sequence[ChunkRun], receiver: str | None) -> Iterator[Script]:
    """Scripts that copy chunks of NAME to the same places in NAME.part, and print the hashes of the copies."""
    calls = [
        (f"copy {_place(run.name, run.file, run.first, run.stop)} {chunk_word(run.file.name)}", run.bytes)
        for run in runs
    ]
    if calls:
        yield from _in_batches(calls, runs[0].file.chunk_bytes, _HASH + _LATER + _COPY, receiver)


def store_script(runs: Sequence[ChunkRun], receiver: str | None) -> str:
    """A script that stores the chunks of `runs` from its input, and prints their hashes, then `END`."""
    chunk_bytes = runs[0].file.chunk_bytes
    put = _PUT.replace("SYNC", sync_command("$1"))
    functions = _functions(_HASH + _LATER + put, receiver, chunk_bytes)
    calls = "\n".join(map(_put_call, runs))
    return f"{functions}{calls}\nwait; echo {END}"


def store_batches(runs: Sequence[ChunkRun]) -> Iterator[Sequence[ChunkRun]]:
    """Split runs into groups that fit into one script each."""
    done = 0
    for calls in batches(map(_put_call, runs), MAX_CALL_CHARACTERS):
        yield runs[done : done + len(calls)]
        done += len(calls)


def parse_digests(lines: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Yield file name, chunk number and hash from lines such as `a.bin 3 9f86d0...0a08 -`; ignore other lines.

    Instead of a hash a line may have `unreadable`, which equals no chunk's hash.

    >>> list(parse_digests(["sh: noise", f"a.bin 3 {'0a' * 32}  -"])) == [("a.bin", 3, "0a" * 32)]
    True
    """
    for line in lines:
        match = _DIGEST.match(line.strip())
        if match is not None:
            yield match[1], int(match[2]), match[3]


def batches(words: Iterable[str], most_characters: int) -> Iterator[list[str]]:
    """Split words into groups that fit into one command each."""
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


def missing_programs_script(receiver: str | None) -> str:
    """A script that prints the programs that a push needs and the device lacks, one on each line."""
    needed = [*_ALWAYS_NEEDED, *(() if receiver is not None else _SHELL_NEEDS)]
    script = f"for p in {' '.join(needed)}; do command -v $p >/dev/null || echo $p; done"
    if receiver is None:
        script += "; command -v sha256sum >/dev/null || command -v openssl >/dev/null || echo sha256sum"
    return script


def sync_command(name: str) -> str:
    """A command that syncs one file, and fails with the message if the storage could not take what was written.

    toybox has fsync, coreutils' sync takes a file, and every system has sync. One that fails for another reason is
    followed by the next: toybox's fsync cannot open a file of another owner, as on /sdcard.
    """
    synced = f"said=$({{ fsync {name} || sync {name} || sync; }} 2>&1)"
    return f'{{ {synced} && case $said in {_STORAGE_FAULTS}) false;; esac || {{ echo "$said" >&2; false; }}; }}'


def _put_call(run: ChunkRun) -> str:
    return f"put {_place(run.name, run.file, run.first, run.stop)}"


def _place(name: str, file: PushFile, first: int, stop: int) -> str:
    """The arguments NAME FIRST STOP LAST for a run of chunks."""
    return f"{chunk_word(name)} {first} {stop} {file.length(stop - 1)}"


def _in_batches(
    calls: Sequence[tuple[str, int]], chunk_bytes: int, functions: str, receiver: str | None
) -> Iterator[Script]:
    """Scripts with these calls, each given with the bytes that it processes; `functions`: the shell functions."""
    done = 0
    for batch in batches((call for call, _ in calls), MAX_CALL_CHARACTERS):
        size = sum(size for _, size in calls[done : done + len(batch)])
        done += len(batch)
        text = _functions(functions, receiver, chunk_bytes) + "\n".join([*batch, "wait"])
        yield Script(text, size)


def _functions(functions: str, receiver: str | None, chunk_bytes: int) -> str:
    """The functions for the calls: those of the shell, or, with the same names, those that call the receiver."""
    if receiver is None:
        return _filled(functions, chunk_bytes)
    return _filled(_RECEIVE, chunk_bytes).replace("RECEIVER", quote(receiver))


def _filled(script: str, chunk_bytes: int) -> str:
    block = min(chunk_bytes, _BLOCK_BYTES)
    values: dict[str, object] = {"BLOCK": block, "STEP": chunk_bytes // block, "CHUNK": chunk_bytes}
    values |= {"PIECE": PIECE_BYTES}
    values |= {"FAILED": FAILED, "FLOWING": FLOWING, "ASKING": ASKING, "NEXT": NEXT}
    for name, value in values.items():
        script = script.replace(name, str(value))
    return script
