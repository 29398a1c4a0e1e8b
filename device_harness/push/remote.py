"""The device's side of a push: shell commands that stay inside one folder, and the parsing of their output."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from device_harness.adb.transport import DeviceRefusal, Transport, quote, remote_path
from device_harness.adb.turns import in_turn
from device_harness.push.chunks import ChunkShell, OnDigest, OnSent, timeout_s
from device_harness.push.scripts import ChunkRun, Chunks, batches, chunk_word, missing_programs_script, sync_command
from device_harness.push.source import PART, PushFile
from toolkit.base.strict_json import shorten

MAX_SCRIPT_CHARACTERS = 1500
"""Old devices take messages of at most 4096 bytes, and quoting makes a command longer."""

_STAT_BLOCK_BYTES = 512
"""Linux's st_blocks counts these, whatever a file system's own blocks are (stat(2))."""
_SIZE = re.compile(r"\d{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PartStart:
    """How NAME.part starts: with the first `keep_bytes` of itself or of NAME (`takes_whole`); if NAME is removed."""

    name: str
    keep_bytes: int
    takes_whole: bool
    removes_whole: bool


class RemoteFolder:
    """The folder that a bundle is pushed to; all names in it have been checked by `safe_name`."""

    def __init__(self, device: Transport, folder: str, receiver: str | None = None) -> None:
        """`receiver`: the path of our program on the device, or None to use the device's own tools."""
        self._device = device
        self._chunks = ChunkShell(device, self._inside, receiver)
        self.receiver = receiver
        self.folder = remote_path(folder)
        self.what = f"{device.serial} {self.folder}"

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return remote_path(self.folder, name)

    def held(self) -> AbstractContextManager[None]:
        """Wait until no other push from this computer uses the folder: both would write into the same .part files."""
        return in_turn("pushes", self._device.serial, self.folder, waiting_for="another push that writes there")

    def create(self) -> None:
        """Create the folder, readable by apps, if it does not exist; DeviceRefusal if the device lacks programs."""
        command = f"umask 022; mkdir -p {quote(self.folder)} && {{ {missing_programs_script(self.receiver)}; }}"
        result = self._device.shell(command, timeout=timeout_s(0))
        if result.exit_code:
            found = (result.stderr or result.stdout).strip() or f"exit code {result.exit_code}"
            raise DeviceRefusal(self.what, found=found, remedy="name a folder that the device's shell can write to")
        missing = result.stdout.split()
        if not missing:
            return
        needs_native = self.receiver is None and set(missing) <= {"dd", "head", "sha256sum"}
        native = "push with --receiver native, which needs none (to build it: pip install 'gemma-edge[probe]')"
        raise DeviceRefusal(
            f"{self._device.serial} push",
            found=f"a device without {' and '.join(missing)}",
            remedy=native if needs_native else "use a device with Android 8 or later",
        )

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes of those files that exist; DeviceRefusal for a link, which may lead elsewhere, or a directory."""
        return self._numbers("%s", names)

    def stored_bytes(self, names: Iterable[str]) -> dict[str, int]:
        """How much storage those files take that exist, without holes in them; DeviceRefusal as for `sizes`."""
        return {name: blocks * _STAT_BLOCK_BYTES for name, blocks in self._numbers("%b", names).items()}

    def _numbers(self, form: str, names: Iterable[str]) -> dict[str, int]:
        """What `stat` says of each file that exists."""
        found: dict[str, int] = {}
        test = (
            f"if [ -L $n ]; then echo $n link; elif [ -f $n ]; then echo $n $(stat -c {form} $n); elif [ -e $n ]; then "
        )
        for words in batches(map(chunk_word, names), MAX_SCRIPT_CHARACTERS):
            output = self._run_inside(f"for n in {' '.join(words)}; do {test}echo $n directory; fi; done")
            found |= self._parse_sizes(output, set(words))
        return found

    def digests(self, wanted: Sequence[Chunks], tick: Callable[[int], None]) -> dict[str, dict[int, str]]:
        """The sha256 of chunks by file name, computed by the device; `tick` gets the bytes of each chunk."""
        found: dict[str, dict[int, str]] = {chunks.name: {} for chunks in wanted}
        files = {chunks.name: chunks.file for chunks in wanted}
        numbers = {chunks.name: set(chunks.numbers) for chunks in wanted}
        for name, number, digest in self._chunks.hash(wanted):
            self._require_asked(name, number, numbers)
            found[name][number] = digest
            tick(files[name].length(number))
        for chunks in wanted:
            if len(found[chunks.name]) != len(chunks.numbers):
                hashes = f"{len(found[chunks.name])} hashes"
                remedy = "use a device with Android 8 or later, which has dd and sha256sum"
                what = f"{self.what}: sha256sum {chunks.name}"
                raise DeviceRefusal(what, found=hashes, wanted=str(len(chunks.numbers)), remedy=remedy)
        return found

    def store(self, runs: Sequence[ChunkRun], on_sent: OnSent, on_digest: OnDigest) -> None:
        """Send runs of chunks to their NAME.part; `on_digest` gets the hash of each chunk as stored."""
        self._chunks.store(runs, on_sent, self._checked(runs, on_digest))

    def free_bytes(self) -> int:
        """The free bytes on the folder's file system."""
        return parse_df(self._run_inside("df -k ."), self.what)

    def start_parts(self, starts: Iterable[PartStart]) -> None:
        """Create NAME.part from the first bytes of an old NAME.part or of NAME; then remove NAME if it must go.

        A NAME.part that starts empty is a new file, because commands of a lost connection may still write to the old
        one.
        """
        commands = []
        for start in starts:
            name, part = chunk_word(start.name), chunk_word(start.name + PART)
            if start.takes_whole:
                commands.append(f"mv -f {name} {part}")
            elif start.removes_whole:
                commands.append(f"rm -f {name}")
            if not start.keep_bytes:
                commands.append(f"rm -f {part}")
            commands.append(f": >> {part} && truncate -s {start.keep_bytes} {part}")
        self._run_all(commands)

    def copy(self, runs: Sequence[ChunkRun], on_digest: OnDigest) -> None:
        """Copy chunks of NAME to the same places in NAME.part; `on_digest` gets the hash of each copy."""
        take = self._checked(runs, on_digest)
        for name, number, digest in self._chunks.copy(runs):
            take(name, number, digest)

    def settle(self, files: Sequence[PushFile]) -> None:
        """Truncate each NAME.part to its size, and sync it to the storage."""
        commands = []
        for file in files:
            part = file.name + PART
            # Apps are other users. Where modes have no effect, as on /sdcard, chmod may fail.
            readable = f"chmod 644 {part} 2>/dev/null"
            commands.append(f"truncate -s {file.size} {part} && {{ {readable}; {sync_command(part)}; }}")
        self._run_all(commands, sum(file.size for file in files))

    def switch(self, moves: Iterable[tuple[str, str]], removals: Iterable[str]) -> None:
        """Rename, then remove files, in order, and sync. After a lost connection, the remaining steps are not done."""
        renames = [f"mv -f {chunk_word(old)} {chunk_word(new)}" for old, new in moves]
        self._run_all([*renames, *(f"rm -f {chunk_word(name)}" for name in removals), sync_command(".")], 1 << 30)

    def _checked(self, runs: Sequence[ChunkRun], on_digest: OnDigest) -> OnDigest:
        """`on_digest`, but DeviceRefusal for the hash of a chunk that is in none of the runs."""
        numbers: dict[str, set[int]] = {}
        for run in runs:
            numbers.setdefault(run.name, set()).update(range(run.first, run.stop))

        def take(name: str, number: int, digest: str) -> None:
            self._require_asked(name, number, numbers)
            on_digest(name, number, digest)

        return take

    def _require_asked(self, name: str, number: int, asked: Mapping[str, Collection[int]]) -> None:
        if number not in asked.get(name, ()):
            found = f"a hash of {name} {number}"
            raise DeviceRefusal(f"{self.what}: sha256sum", found=found, wanted="a hash that was asked for")

    def _run_all(self, commands: Iterable[str], size: int = 0) -> None:
        for batch in batches(commands, MAX_SCRIPT_CHARACTERS):
            self._run_inside(" && ".join(batch), size)

    def _parse_sizes(self, output: str, asked: Collection[str]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, _, kind in (line.partition(" ") for line in output.split("\n") if line):
            if name not in asked or not _SIZE.fullmatch(kind):
                known = name in asked and kind in ("link", "directory")
                found = f"a {kind}" if known else shorten(f"{name} {kind}")
                remedy = "remove it, or choose another --target"
                raise DeviceRefusal(f"{self.what}/{name}", found=found, wanted="a regular file or none", remedy=remedy)
            sizes[name] = int(kind)
        return sizes

    def _inside(self, script: str) -> str:
        # In a Linux board's language, dd would not say what the scripts look for. Files that others may read get their
        # mode at the end.
        return f"export LC_ALL=C; umask 077; cd {quote(self.folder)} && {{ {script}; }}"

    def _run_inside(self, script: str, size: int = 0) -> str:
        return self._run(self._inside(script), size)

    def _run(self, command: str, size: int = 0) -> str:
        return self._device.shell(command, timeout=timeout_s(size)).require(self.what)


def parse_df(text: str, what: str) -> int:
    """The free bytes in the output of `df -k`, in which a long name may have a separate line.

    >>> parse_df("Filesystem 1K-blocks Used Available Use% Mounted on\\n/dev/fuse 100 40 60 40% /sdcard\\n", "sdcard")
    61440
    """
    words = " ".join(text.strip().splitlines()[1:]).split()
    percents = [i for i, word in enumerate(words) if re.fullmatch(r"\d+%", word)]
    if len(percents) != 1 or percents[0] < 4 or not _SIZE.fullmatch(words[percents[0] - 1]):
        raise DeviceRefusal(f"{what}: df", found=repr(text.strip()[-200:]), wanted="size, used, available, use%")
    return int(words[percents[0] - 1]) * 1024
